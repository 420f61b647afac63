"""The trainer: schedules, the order of contexts, checkpoints, and runs that were stopped."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sprat.errors import RecipeError, SpratError
from sprat.training import processes
from sprat.training.checkpoint import Checkpoint
from sprat.training.loop import place, train
from sprat.training.schedule import Schedule

CONTEXTS = torch.arange(12).reshape(6, 2)


class Line:
    """Learns w so that w · x = 2 x, by Adam, with noise from torch's generator."""

    def __init__(self, stop_after: int | None = None):
        self.w = torch.zeros(2, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.w])
        self.seen: list[int] = []
        self.stop_after = stop_after

    def learn(self, context, share):
        if self.stop_after is not None and len(self.seen) == self.stop_after:
            raise KeyboardInterrupt
        self.seen.append(int(context[0]) // 2)
        loss = ((self.w - 2) * (context + torch.rand(2))).square().mean()
        (loss * share).backward()
        return loss.item()

    def average(self):
        processes.average_gradients([self.w])

    def step(self, rate):
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self):
        return {"w": self.w, "optimizer": self.optimizer.state_dict()}

    def restore(self, state):
        with torch.no_grad():
            self.w.copy_(state["w"])
        self.optimizer.load_state_dict(state["optimizer"])


def checkpoint(folder, **key):
    return Checkpoint(folder / "run.checkpoint", {"text": "t", **key}, every=0.0)


@pytest.mark.parametrize("stop", [1, 7, 23])
def test_interrupted_and_resumed_equals_uninterrupted_to_the_bit(tmp_path, stop):
    schedule = Schedule(0.1, 20)
    torch.manual_seed(3)
    whole = Line()
    points = train(whole, CONTEXTS, schedule, accumulate=2, seed=5)

    torch.manual_seed(3)
    with pytest.raises(KeyboardInterrupt):
        train(Line(stop), CONTEXTS, schedule, accumulate=2, seed=5, checkpoint=checkpoint(tmp_path))
    if stop == 1:  # nothing was kept before the first step
        assert not list(tmp_path.iterdir())
        return
    torch.manual_seed(99)
    rest = Line()
    resumed = train(
        rest, CONTEXTS, schedule, accumulate=2, seed=5, checkpoint=checkpoint(tmp_path), resume=True
    )
    assert torch.equal(whole.w, rest.w)
    assert [p.loss for p in resumed] == [p.loss for p in points]
    assert whole.seen[-len(rest.seen) :] == rest.seen
    assert [p.name for p in tmp_path.iterdir()] == ["run.checkpoint"]  # until what was learnt is written


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(tmp_path):
    kept = checkpoint(tmp_path)
    with pytest.raises(SpratError, match=r"no checkpoint .* start without --resume"):
        kept.load()
    kept.save({"step": 1})
    assert kept.load() == {"step": 1}
    with pytest.raises(SpratError, match="another run: its text is t, this one's other"):
        checkpoint(tmp_path, text="other").load()
    kept.path.write_bytes(kept.path.read_bytes()[:-200])
    with pytest.raises(SpratError, match="damaged"):
        kept.load()


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    kept = checkpoint(tmp_path)
    kept.save({"step": 1})

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(SpratError, match=r"cannot write the checkpoint .*no space left"):
        kept.save({"step": 2})
    monkeypatch.undo()
    assert kept.load() == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["run.checkpoint"]


def test_the_seed_is_the_order() -> None:
    orders = {tuple(place(20, i, seed) for i in range(40)) for seed in range(5)}
    assert len(orders) == 5
    assert all(order[:20] != order[20:] for order in orders)


@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**32))
def test_every_context_once_before_any_comes_again(count, passes, seed):
    order = [place(count, i, seed) for i in range(count * passes)]
    for start in range(0, len(order), count):
        assert sorted(order[start : start + count]) == list(range(count))


def test_accumulated_gradients_are_those_of_one_large_step():
    """Two contexts a step: the mean of their gradients, one step."""

    class Recorded(Line):
        def step(self, rate):
            self.gradient = self.w.grad.clone()
            super().step(rate)

    both = Recorded()
    torch.manual_seed(0)
    train(both, CONTEXTS[:2], Schedule(0.1, 1), accumulate=2)
    torch.manual_seed(0)
    w = torch.zeros(2, requires_grad=True)
    losses = [((w - 2) * (CONTEXTS[i] + torch.rand(2))).square().mean() for i in both.seen]
    torch.stack(losses).mean().backward()
    assert torch.allclose(both.gradient, w.grad)


def test_the_rate_rises_then_falls_to_nothing():
    schedule = Schedule(1.0, 100, warm_up=10)
    rates = [schedule.at(step, 0.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(0.91)
    assert rates.index(max(rates)) == 9
    assert rates[-1] == pytest.approx(0.01)
    clock = Schedule(1.0, seconds=60.0, warm_up=1)
    assert clock.at(5, 30.0) == pytest.approx(0.5)
    assert clock.done(5, 61.0) == 1


@pytest.mark.parametrize("given", [(None, None), (5, 5.0), (0, None), (None, 0.0), (None, -1.0)])
def test_impossible_lengths_are_refused(given):
    with pytest.raises(RecipeError):
        Schedule(0.1, *given)


def test_a_run_by_the_clock_ends_with_it():
    points = train(Line(), CONTEXTS, Schedule(0.1, seconds=0.2))
    assert points[-1].seconds < 1.0
    assert [p.contexts for p in points] == list(range(1, len(points) + 1))
