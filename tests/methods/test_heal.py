"""Healing: scales that were bent come back, integers stay, and the file stands for what was trained."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from sprat.coding.tensors import Entry, Lattice, LogScale
from sprat.level.check import rebuilt
from sprat.methods import heal as healing
from sprat.methods.distil import divergence, student_logits
from sprat.methods.healer import healer
from sprat.recipe import Recipe
from sprat.source.maps import groups
from sprat.training.loop import train
from sprat.training.schedule import Schedule

CONTEXTS = torch.from_numpy(np.random.default_rng(0).integers(0, 64, (6, 24)))


def model(family):
    torch.manual_seed(0)
    if family == "qwen2":  # biases in q, k and v
        config = Qwen2Config(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
        )
        made = Qwen2ForCausalLM(config)
    else:  # Conv1D keeps its weights the other way round
        config = GPT2Config(
            vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32, initializer_range=0.3
        )
        made = GPT2LMHeadModel(config)
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return made.eval()


def bent_entries(made, bend):
    """Every group as a fine lattice, whose scales are then wrong by factors around e^±bend."""
    random, out = np.random.default_rng(1), {}
    for group in groups(made):
        w = torch.cat([m.weight() for m in group.maps]).detach().float().numpy()
        row = LogScale.nearest(np.abs(w).max(1) / 100, 32)
        col = LogScale.nearest(np.ones(w.shape[1]), 32)
        q = np.rint(w / row.values()[:, None]).astype(np.int16)
        lattice = Lattice(q, row, col, np.full(len(q), 128, np.uint8), np.full(w.shape[1], 40, np.uint8))
        if bend:
            wrong = row.values() * np.exp(random.normal(0, bend, len(w)))
            lattice = replace(lattice, row=LogScale.nearest(wrong, 32))
        maps = tuple(m.name for m in group.maps)
        rows = tuple(m.shape[0] for m in group.maps)
        out[group.name] = Entry(maps, rows, lattice, group.maps[0].transposed)
    return out


def heal(original, entries, schedule):
    learner = healer(original, rebuilt(original, entries), entries, Recipe())
    train(learner, CONTEXTS, schedule)
    return learner.healed()


def mean_divergence(original, entries):
    with torch.no_grad():
        other = rebuilt(original, entries)
        each = [divergence(student_logits(original, c), student_logits(other, c)) for c in CONTEXTS]
        return float(torch.stack(each).mean())


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_bent_scales_come_back(family):
    made = model(family)
    entries = bent_entries(made, 0.1)
    before = mean_divergence(made, entries)
    healed = heal(made, entries, Schedule(0.01, 60))
    assert mean_divergence(made, healed) < 0.4 * before
    for name, entry in entries.items():
        assert np.array_equal(healed[name].tensor.q, entry.tensor.q)
        assert healed[name].maps == entry.maps


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_factors_at_the_ends_are_factors_of_the_weights(family):
    """Hooks and stored scales are the same function: biases untouched, shared inputs scaled once."""
    made = model(family)
    entries = bent_entries(made, 0)
    exact, factors = {}, []
    random = torch.Generator().manual_seed(2)
    for name, entry in entries.items():
        found = healing._factors(entry, healing._users(made), torch.device("cpu"))
        for f in found:
            for t in (f.inputs, f.outputs):
                t.data = torch.randint(-8, 9, t.shape, generator=random) / 32 * np.log(2)
        factors += found
        exact[name] = healing._healed(entry, found, None, 0.3)
    with torch.no_grad():
        plain = rebuilt(made, entries)
        places = {id(m): n for n, m in made.named_modules()}
        moved = [
            replace(f, modules=tuple(plain.get_submodule(places[id(m)]) for m in f.modules)) for f in factors
        ]
        with healing.attached(moved):
            hooked = plain(input_ids=CONTEXTS).logits
        stored = rebuilt(made, exact)(input_ids=CONTEXTS).logits
    assert torch.allclose(hooked, stored, atol=1e-3 * float(stored.abs().max()))
    assert not torch.allclose(hooked, plain(input_ids=CONTEXTS).logits, atol=0.1)


def test_what_is_kept_is_fine_first_and_then_coarser():
    made = model("qwen2")
    entries = bent_entries(made, 0.1)
    learner = healer(made, rebuilt(made, entries), entries, Recipe())
    train(learner, CONTEXTS, Schedule(0.01, 5))
    (versions,) = learner.candidates()
    steps = [{e.tensor.row.resolution for n, e in found.items() if n in entries} for found in versions]
    assert steps == [{32}, {16}, {8}, {4}]


def test_same_arguments_same_scales_and_the_original_is_left_alone():
    made = model("qwen2")
    before = copy.deepcopy(made.state_dict())
    entries = bent_entries(made, 0.1)
    runs = [heal(made, entries, Schedule(0.01, 5)) for _ in range(2)]
    for name in entries:
        a, b = (run[name].tensor for run in runs)
        assert np.array_equal(a.row.index, b.row.index)
        assert np.array_equal(a.col.index, b.col.index)
    assert all(torch.equal(v, before[k]) for k, v in made.state_dict().items())
