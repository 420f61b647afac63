"""Several processes: what they add up, a run that is stopped and gone on with, one by the clock, and one that fails."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from test_training import CONTEXTS, Line

from several import run
from sprat.errors import TrainingError
from sprat.training import processes
from sprat.training.checkpoint import Checkpoint
from sprat.training.loop import train
from sprat.training.schedule import Schedule


def sums() -> dict[str, object]:
    """What processes give each other; this one's numbers are 1 more than those of the one before."""
    rank = processes.rank()
    several = [torch.full((3, 2), 1.0 + rank), torch.full((5,), 10.0 * rank, dtype=torch.bfloat16)]
    processes.average(several)
    parameters = [torch.zeros(2, requires_grad=True) for _ in range(3)]
    parameters[0].grad = torch.full((2,), 2.0 + rank)
    if rank == 1:
        parameters[1].grad = torch.full((2,), 4.0)
    processes.average_gradients(parameters)
    with processes.alone():
        lonely = (processes.count(), processes.rank(), processes.total(rank), processes.shared(lambda: rank))
    return {
        "average": several,
        "gradients": [p.grad for p in parameters],
        "total": processes.total(rank, 1.0),
        "gathered": processes.gathered(torch.tensor([rank])),
        "shared": processes.shared(lambda: {"rank": rank}),
        "alone": lonely,
    }


def stopped_and_resumed(folder: Path) -> dict[str, object]:
    """A line learnt in one go, and stopped on the way; noise is another in each process."""
    schedule = Schedule(0.1, 20)
    checkpoint = Checkpoint(folder / "line.checkpoint", {}, every=0.0)
    whole, rest = Line(), Line()
    torch.manual_seed(processes.rank())
    train(whole, CONTEXTS, schedule, accumulate=2, seed=5)
    torch.manual_seed(processes.rank())
    with pytest.raises(KeyboardInterrupt):
        train(Line(stop_after=14), CONTEXTS, schedule, accumulate=2, seed=5, checkpoint=checkpoint)
    torch.manual_seed(99)
    points = train(rest, CONTEXTS, schedule, accumulate=2, seed=5, checkpoint=checkpoint, resume=True)
    return {
        "whole": whole.w.detach(),
        "rest": rest.w.detach(),
        "seen": whole.seen,
        "again": len(rest.seen),
        "contexts": [point.contexts for point in points],
    }


class Slow(Line):
    """Every process takes another time for a context."""

    def learn(self, context, share):
        time.sleep(0.01 * processes.rank())
        return super().learn(context, share)


def by_the_clock() -> dict[str, object]:
    line = Slow()
    points = train(line, CONTEXTS, Schedule(0.1, seconds=0.3))
    return {"w": line.w.detach(), "steps": len(points), "seconds": points[-1].seconds}


def one_of_two(folder: Path) -> None:
    with processes.joined() as first:
        assert first == (processes.rank() == 0)
        found = {"sums": sums(), "resumed": stopped_and_resumed(folder), "clock": by_the_clock()}
        torch.save(found, folder / f"{processes.rank()}.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of two processes ended with."""
    folder = tmp_path_factory.mktemp("processes")
    for process in run(one_of_two, folder):
        assert process.status == 0, process.err
    # Each process says what it learnt; the checkpoint is of the first alone.
    assert sorted(path.name for path in folder.iterdir()) == ["0.pt", "1.pt", "line.checkpoint"]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_what_they_give_each_other(both):
    for rank, found in enumerate(both):
        sums = found["sums"]
        assert torch.equal(sums["average"][0], torch.full((3, 2), 1.5))
        assert torch.equal(sums["average"][1], torch.full((5,), 5.0, dtype=torch.bfloat16))
        everywhere, only_there, nowhere = sums["gradients"]
        assert everywhere.tolist() == [2.5, 2.5]
        assert only_there.tolist() == [2.0, 2.0]
        assert nowhere is None
        assert sums["total"] == [1, 2]
        assert torch.cat(sums["gathered"]).tolist() == [0, 1]
        assert sums["shared"] == {"rank": 0}
        assert sums["alone"] == (1, 0, [rank], rank)


def test_a_large_tensor_is_averaged_by_itself(monkeypatch):
    monkeypatch.setattr(processes, "_AT_ONCE", 5)
    sizes = [[t.numel() for t in bucket] for bucket in processes._buckets(map(torch.ones, (2, 3, 1, 9, 4)))]
    assert sizes == [[2, 3], [1], [9], [4]]


def test_each_learns_from_contexts_of_its_own(both):
    """By turns, in the order in which all six come before any comes again."""
    mine, other = (found["resumed"]["seen"] for found in both)
    order = [number for pair in zip(mine, other, strict=True) for number in pair]
    assert len(order) == 80
    for start in range(0, 78, 6):
        assert sorted(order[start : start + 6]) == list(range(6))


def test_stopped_and_resumed_equals_uninterrupted_to_the_bit(both):
    for found in both:
        resumed = found["resumed"]
        assert torch.equal(resumed["rest"], resumed["whole"])
        assert resumed["again"] == 40 - 14
        assert resumed["contexts"] == list(range(4, 81, 4))
    assert torch.equal(both[0]["resumed"]["rest"], both[1]["resumed"]["rest"])


def test_the_first_ones_clock_is_everybodys(both):
    mine, other = (found["clock"] for found in both)
    assert mine["steps"] == other["steps"] > 1
    assert mine["seconds"] == other["seconds"] >= 0.3
    assert torch.equal(mine["w"], other["w"])


def one_fails(which: int) -> int:
    """2 where this process fails by itself, 3 where it does because another one did."""
    try:
        with processes.joined():
            learner = Line(stop_after=5 if processes.rank() == which else None)
            train(learner, CONTEXTS, Schedule(0.1, 10**6))
    except KeyboardInterrupt:
        return 2
    except TrainingError as error:
        assert "another process of this training ended" in str(error)
        return 3
    return 0


@pytest.mark.parametrize("which", [0, 1])
def test_one_that_fails_ends_the_others(which):
    statuses = [process.status for process in run(one_fails, which, seconds=60)]
    assert statuses == ([2, 3] if which == 0 else [3, 2])


def goes_on_alone() -> int:
    """The steps of what the first one trains when the others have left."""
    with processes.joined() as first:
        if not first:
            return 0
        with processes.alone():
            return len(train(Line(), CONTEXTS, Schedule(0.1, 7)))


def test_the_first_one_trains_alone_when_the_others_have_left():
    first, other = run(goes_on_alone, seconds=60)
    assert (first.status, other.status) == (7, 0), first.err


def test_processes_that_torchrun_did_not_start_are_told_how(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with (
        pytest.raises(TrainingError, match="start them with torchrun, or unset WORLD_SIZE"),
        processes.joined(),
    ):
        pass
