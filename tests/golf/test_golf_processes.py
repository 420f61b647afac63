"""Golf in several processes: two are one with twice the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small import documents, recipe

from several import run
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
