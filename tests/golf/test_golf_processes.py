"""Golf in several processes: two are one with twice the batch."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from small import documents, recipe

from several import run
from sprat.golf import golf as golfs
from sprat.golf import words
from sprat.golf.batches import Batches
from sprat.golf.loop import run as finish
from sprat.golf.schedule import Length
from sprat.golf.training import Training
from sprat.training import processes

TOKENS = 256 * 2 * 30


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
