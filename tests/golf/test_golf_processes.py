"""Golf in several processes: two are one with twice the batch."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small import documents, recipe, write

from several import run
from sprat.errors import SpratError
from sprat.golf import checkpoints, words
from sprat.golf import golf as golfs
from sprat.golf.batches import Batches
from sprat.golf.golf import golf
from sprat.golf.loop import Point
from sprat.golf.loop import run as finish
from sprat.golf.schedule import Length
from sprat.golf.training import Training
from sprat.training import processes

TOKENS = 256 * 2 * 30


class Killed(Exception):
    pass


def trained(batch: int) -> tuple[Training, list[float]]:
    texts = documents()
    tokenizer = words.learn(texts, 320)
    r = recipe(batch=batch, accumulate=2, noise=0.3, rate_term=0.3, prune_from=80)
    batches = Batches(words.stream(tokenizer, texts), r.context, r.batch, 0)
    training = Training(r, 320, batches, Length("tokens", TOKENS), 0)
    return training, [point.loss for point in finish(training)]


def one_of_two(folder: Path) -> None:
    with processes.joined() as first:
        made, losses = trained(4)
        if first:
            found = {"model": made.model.state_dict(), "losses": losses, "tokens": made.tokens}
            torch.save(found, folder / "two.pt")


def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    for process in run(one_of_two, tmp_path):
        assert process.status == 0, process.err
    two = torch.load(tmp_path / "two.pt")
    one, losses = trained(8)
    assert two["tokens"] == one.tokens
    assert two["losses"] == pytest.approx(losses, abs=2e-3)
    for name, weight in one.model.state_dict().items():
        # The order in which floats are added differs, and Muon makes much of a little.
        apart = (two["model"][name] - weight).norm() / weight.norm()
        assert float(apart) < 0.01, (name, float(apart))


def killed_and_resumed(folder: Path, files: list[Path]) -> None:
    """Each writes into a folder of its own, as on machines of their own; both are killed behind a checkpoint."""
    torch.set_num_threads(1)
    checkpoints.EVERY = 0.0
    with processes.joined():
        own, length = folder / f"{processes.rank()}", Length("tokens", TOKENS)
        for place in ("whole", "again"):
            (own / place).mkdir(parents=True)

        def play(place: str, resume: bool = False, **watched: Any) -> dict[str, Any]:
            return golf(recipe(), files, "28kB", length, own / place / "g.sprat", resume=resume, **watched)

        def die(point: Point, _: float) -> None:
            if point.share > 0.5:
                raise Killed

        with pytest.raises(Killed):
            play("again", watch=die)
        shares: list[float] = []
        play("again", resume=True, watch=lambda point, _: shares.append(point.share))
        assert shares[0] > 0.4, shares  # not from the first step
        play("whole")


def test_processes_of_two_machines_go_on_from_the_firsts_checkpoint_to_the_same_file(tmp_path):
    for process in run(killed_and_resumed, tmp_path, write(tmp_path, documents())):
        assert process.status == 0, process.err
    whole, again = tmp_path / "0" / "whole", tmp_path / "0" / "again"
    assert (again / "g.sprat").read_bytes() == (whole / "g.sprat").read_bytes()
    points = [json.loads((place / "g.json").read_text())["runs"][0]["points"] for place in (whole, again)]
    assert [point["loss"] for point in points[0]] == [point["loss"] for point in points[1]]
    assert not [*(tmp_path / "1").glob("*/*")] and not (again / "g.sprat.checkpoint").exists()


def of_another_text(folder: Path, files: list[Path]) -> None:
    with processes.joined():
        with pytest.raises(SpratError) as refused:
            own = files[processes.rank() :]
            golf(recipe(), own, "28kB", Length("tokens", TOKENS), folder / "g.sprat")
        (folder / f"{processes.rank()}.txt").write_text(str(refused.value))


def test_a_process_that_reads_another_text_is_refused(tmp_path):
    for process in run(of_another_text, tmp_path, write(tmp_path, documents())):
        assert process.status == 0, process.err
    assert (
        "process 1 trains something else than the first one: its text is" in (tmp_path / "1.txt").read_text()
    )
    assert "another process of this training ended" in (tmp_path / "0.txt").read_text()


def by_the_clock(folder: Path, kind: str) -> None:
    """A curriculum, which takes time before the first step too, and then steps; each process has a clock of its own."""
    with processes.joined():
        ticks, pace = itertools.count(), (1.0, 1.7)[processes.rank()]
        Length.now = lambda self: 1000 * processes.rank() + pace * next(ticks)  # type: ignore[method-assign]
        texts = documents()
        r = recipe(easy=0.5, noise=0.5, rate_term=0.4, prune_from=80, precision="float32")
        ids = words.stream(words.learn(texts, 320), texts)
        training = golfs._training(r, 320, ids, Length(kind, 30), 0)
        finish(training)
        found = {"model": training.model.state_dict(), "step": training.step, "seconds": training.seconds}
        torch.save(found, folder / f"{processes.rank()}.pt")


@pytest.mark.parametrize(("kind", "steps"), [("seconds", 29), ("processor seconds", 11)])
def test_the_first_processs_clock_is_everybodys(tmp_path, kind, steps):
    for process in run(by_the_clock, tmp_path, kind, seconds=60):
        assert process.status == 0, process.err
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["step"] == second["step"] == steps and first["seconds"] == second["seconds"]
    assert all(torch.equal(first["model"][name], weight) for name, weight in second["model"].items())
