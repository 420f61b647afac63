"""Healing on a GPU, as far as a machine without one can tell: nothing stays behind, and the numbers are the same."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from test_deep import coarse_entries
from test_heal import CONTEXTS, bent_entries, model

import pretend_gpu
from several import run
from sprat.coding.tensors import Dense, Entry, Lattice, LowRank
from sprat.level.check import rebuilt
from sprat.methods.deep import Deep
from sprat.methods.healer import healer
from sprat.recipe import Recipe
from sprat.training import processes
from sprat.training.loop import train
from sprat.training.schedule import Schedule

KINDS = ["scales", "rank", "deep", "deep 2:4"]
STEPS = 6


def learner_of(kind, device):
    original = model("qwen2")
    deep = kind.startswith("deep")
    entries = coarse_entries(original) if deep else bent_entries(original, 0.1)
    for name, vector in original.named_parameters():
        if vector.ndim == 1:
            entries[name] = Entry((name,), tuple(vector.shape), Dense(vector.detach().numpy().copy(), "f32"))
    recipe = Recipe(
        trellis=0, heal_deep=deep, heal_rank=2 * (kind == "rank"), sparsity="0.5" if "2:4" in kind else ""
    )
    rounded = rebuilt(original, entries)
    return healer(original.to(device), rounded.to(device), entries, recipe)


def learnt(kind, device, state=None, steps=STEPS):
    learner = learner_of(kind, device)
    if state:
        learner.restore(state)
    points = train(learner, CONTEXTS, Schedule(0.01, steps), seed=1)
    return learner, [point.loss for point in points]


def numbers(entries):
    """Of every tensor that is stored, the exact values that it stands for."""
    for name, entry in entries.items():
        assert isinstance(entry.tensor, Dense | Lattice | LowRank)
        yield name, entry.tensor.array if isinstance(entry.tensor, Dense) else entry.tensor.dense()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_learnt_there_is_what_is_learnt_here(kind):
    """Every candidate that may be stored, to a rounding of float32; the loss on the way."""
    here, losses = learnt(kind, "cpu")
    with pretend_gpu.here():
        there, others = learnt(kind, "cuda")
        scales = there.scales if isinstance(there, Deep) else there
        free = [t for group in scales.optimizer.param_groups for t in group["params"]]
        assert free and all(t.device.type == "cuda" for t in free)
        found = [dict(numbers(next(versions))) for versions in there.candidates()]
    assert others == pytest.approx(losses, rel=1e-4)
    assert others[-1] < 0.95 * others[0]
    for mine, its in zip((next(v) for v in here.candidates()), found, strict=True):
        for name, wanted in numbers(mine):
            off = np.abs(its[name] - wanted)
            # A number on the edge of two steps may go to either.
            assert np.mean(off > 1e-4 * np.abs(wanted).max()) < 0.01, name


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_saved_there_goes_on_there_and_here(kind, tmp_path):
    """Through a file, as checkpoints go: the processor's copy is what the next one starts from."""
    with pretend_gpu.here():
        learner = learner_of(kind, "cuda")
        train(learner, CONTEXTS, Schedule(0.01, 3), seed=1)
        state = {"learner": to_cpu(learner.state())}
        expected = train(learner, CONTEXTS, Schedule(0.01, 4), seed=2)
    torch.save(state, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", map_location="cpu", weights_only=True)["learner"]
    for device in ("cuda", "cpu"):
        with pretend_gpu.here():
            again = learner_of(kind, device)
            again.restore(copy.deepcopy(saved))
            points = train(again, CONTEXTS, Schedule(0.01, 4), seed=2)
        assert [p.loss for p in points] == pytest.approx([p.loss for p in expected], rel=1e-4)


def to_cpu(value):
    """What torch.save and `map_location` make of a GPU's tensors."""
    if isinstance(value, dict):
        return {key: to_cpu(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_cpu(v) for v in value)
    return value.detach().cpu().clone() if isinstance(value, torch.Tensor) else value


def averaged(folder: Path) -> None:
    with processes.joined(), pretend_gpu.here():
        mine = [torch.full((3,), float(processes.rank()), device="cuda"), torch.ones(2, 2, device="cuda")]
        processes.average(mine)
        assert all(t.device.type == "cuda" for t in mine)
        torch.save([t.cpu() for t in mine], folder / f"{processes.rank()}.pt")


def test_gradients_of_gpus_are_averaged_by_the_processor(tmp_path):
    ended = run(averaged, tmp_path)
    assert [e.status for e in ended] == [0, 0], ended[0].err + ended[1].err
    for rank in range(2):
        first, second = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert first.tolist() == [0.5] * 3
        assert second.tolist() == [[1.0, 1.0]] * 2


def test_the_pretended_gpu_refuses_what_a_real_one_refuses():
    linear = torch.nn.Linear(3, 2)
    with pretend_gpu.here():
        x = torch.arange(3.0, device="cuda")
        assert x.device == pretend_gpu.GPU
        with pytest.raises(RuntimeError, match="one device"):
            linear(x)
        with pytest.raises(RuntimeError, match="one device"):
            x + torch.ones(3)
        with pytest.raises((RuntimeError, TypeError)):
            x.numpy()
        with pytest.raises((RuntimeError, TypeError)):
            np.asarray(x)
        linear.to("cuda")(x).sum().backward()
        assert linear.weight.grad.device == pretend_gpu.GPU
        assert linear.weight.grad.cpu().tolist() == [[0.0, 1.0, 2.0]] * 2
        assert linear.cpu().weight.device == pretend_gpu.CPU
