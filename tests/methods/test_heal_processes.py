"""Healing in several processes: two are one that learns from twice the contexts a step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_deep import coarse_entries
from test_heal import CONTEXTS, bent_entries, model
from torch import Tensor

from several import run
from sprat.coding.tensors import Dense, Entry
from sprat.level.check import rebuilt
from sprat.methods.deep import Deep
from sprat.methods.healer import healer
from sprat.recipe import Recipe
from sprat.training import processes
from sprat.training.loop import train
from sprat.training.schedule import Schedule

KINDS = ["scales", "rank", "deep"]
STEPS = 8


def learnt(kind: str, accumulate: int) -> tuple[dict[str, Tensor], list[float]]:
    """How far parameters moved in STEPS on `accumulate` contexts in each process, by name; the losses."""
    original = model("qwen2")
    entries = coarse_entries(original) if kind == "deep" else bent_entries(original, 0.1)
    for name, vector in original.named_parameters():
        if vector.ndim == 1:
            entries[name] = Entry((name,), tuple(vector.shape), Dense(vector.detach().numpy().copy(), "f32"))
    recipe = Recipe(trellis=0, heal_deep=kind == "deep", heal_rank=2 * (kind == "rank"))
    learner = healer(original, rebuilt(original, entries), entries, recipe)
    starts = {name: tensor.detach().clone() for name, tensor in trained(learner)}
    points = train(learner, CONTEXTS, Schedule(0.01, STEPS), accumulate=accumulate, seed=1)
    moved = {name: tensor.detach() - starts[name] for name, tensor in trained(learner)}
    return moved, [point.loss for point in points]


def trained(learner):
    """Every tensor in training, by a name."""
    scales = learner.scales if isinstance(learner, Deep) else learner
    for name, factors in scales.factors.items():
        yield f"{name} inputs", factors[0].inputs
        for factor in factors:
            yield f"{name} outputs from {factor.first}", factor.outputs
    for name, made in scales.adapters.items():
        yield f"{name} left", made.left
        yield f"{name} right", made.right
    for name, (_, exact) in scales.dense.items():
        yield name, exact
    for name, latent in learner.latents.items() if isinstance(learner, Deep) else ():
        yield f"{name} latents", latent.value


def one_of_two(folder: Path) -> None:
    with processes.joined():
        torch.save({kind: learnt(kind, 2) for kind in KINDS}, folder / f"{processes.rank()}.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of two processes ended with."""
    folder = tmp_path_factory.mktemp("processes")
    for process in run(one_of_two, folder):
        assert process.status == 0, process.err
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_are_one_with_twice_the_contexts(both, kind):
    moved, losses = learnt(kind, 4)
    mine, other = (found[kind] for found in both)
    assert mine[1] == other[1] == pytest.approx(losses, rel=1e-4)
    far = 0
    for name, by in moved.items():
        assert torch.equal(mine[0][name], other[0][name]), name
        # The order in which floats are added differs, and Adam makes much of a gradient that is next to nothing.
        assert float((mine[0][name] - by).norm()) <= 0.01 * float(by.norm()), name
        far += bool(by.any())
    assert far > 0.8 * len(moved)
