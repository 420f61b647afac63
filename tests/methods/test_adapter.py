"""Products trained beside lattices: the same function while they are trained and as they are stored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_heal import CONTEXTS, bent_entries, mean_divergence, model

from sprat.coding import entropy
from sprat.coding.tensors import LogScale, LowRank, lattices
from sprat.errors import RecipeError
from sprat.level.check import rebuilt
from sprat.methods import adapter
from sprat.methods.distil import Teacher
from sprat.methods.heal import Scales, attached
from sprat.methods.healer import healer
from sprat.recipe import Recipe
from sprat.training.loop import train
from sprat.training.schedule import Schedule


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_what_is_trained_is_what_is_stored(family):
    """Hooks and stored factors are one function, with the scales of inputs and outputs moved too."""
    made = model(family)
    entries = bent_entries(made, 0)
    student = rebuilt(made, entries)
    learner = Scales(Teacher(made), student, entries, list(entries), rank=3)
    random = torch.Generator().manual_seed(2)
    for name, fs in learner.factors.items():
        learner.adapters[name].left.data = 0.1 * torch.randn(
            learner.adapters[name].left.shape, generator=random
        )
        for f in fs:
            for t in (f.inputs, f.outputs):
                t.data = torch.randint(-8, 9, t.shape, generator=random) / 32 * np.log(2)
    with torch.no_grad():
        plain = student(input_ids=CONTEXTS).logits
        with attached(f for fs in learner.factors.values() for f in fs):
            hooked = student(input_ids=CONTEXTS).logits
        stored = rebuilt(made, learner.healed(fineness=0.005))(input_ids=CONTEXTS).logits
    assert torch.allclose(hooked, stored, atol=2e-2 * float(stored.abs().max()))
    assert not torch.allclose(hooked, plain, atol=0.2)


def test_a_lost_part_of_low_rank_comes_back():
    """What a product beside the lattice can say, and scales cannot."""
    made = model("qwen2")
    lost = rebuilt(made, {})
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in lost.named_parameters():
            if "proj.weight" in name:
                u, v = (torch.randn(n, 1, generator=random) for n in p.shape)
                p -= 0.02 * u @ v.T
    entries = bent_entries(lost, 0)
    before = mean_divergence(made, entries)
    found = {}
    for rank in (0, 2):
        learner = healer(made, rebuilt(made, entries), entries, Recipe(heal_rank=rank))
        train(learner, CONTEXTS, Schedule(0.01, 90))
        found[rank] = mean_divergence(made, learner.healed())
    assert found[2] < 0.6 * found[0] and found[0] < before


@pytest.mark.parametrize("fineness", adapter.FINENESS)
def test_rounding_a_product_costs_the_share_that_is_stated(fineness):
    random = torch.Generator().manual_seed(1)
    entry = next(iter(bent_entries(model("qwen2"), 0).values()))
    m, n = entry.tensor.shape
    made = adapter.Adapter(torch.randn(m, 4, generator=random), torch.randn(4, n, generator=random))
    stored = made.stored(entry.tensor, np.ones(m), np.ones(n), fineness)
    exact = (made.left @ made.right).numpy()
    error = stored.left.dense() @ stored.right.dense() - exact
    assert np.square(error).mean() < 2.5 * fineness**2 / 12 * np.square(exact).mean()
    # The bits that `room` counts on, by tables that know nothing of these numbers.
    bits = sum(entropy.cost_bits(part, entropy.prior_tables()) for part in (stored.left, stored.right))
    assert bits <= adapter.BITS * 4 * (m + n)


def test_a_product_begins_with_nothing_and_embeddings_have_none():
    made = model("qwen2")
    entries = bent_entries(made, 0)
    learner = healer(made, rebuilt(made, entries), entries, Recipe(heal_rank=2))
    before = rebuilt(made, entries)(input_ids=CONTEXTS).logits
    healed = learner.healed()
    assert torch.allclose(rebuilt(made, healed)(input_ids=CONTEXTS).logits, before, atol=1e-4)
    assert all(isinstance(e.tensor, LowRank) and len(lattices(e.tensor)) == 3 for e in healed.values())
    assert all(np.array_equal(healed[n].tensor.rest.q, entries[n].tensor.q) for n in entries)


def test_ranks_that_cannot_be():
    with pytest.raises(RecipeError, match="heal_rank"):
        Recipe(heal_rank=65)
    with pytest.raises(RecipeError, match="heal_rank"):
        replace(Recipe(trellis=0, heal_deep=True), heal_rank=1)


def test_a_second_healing_trains_what_the_first_did_and_begins_where_it_ended():
    made = model("qwen2")
    entries = bent_entries(made, 0.1)
    first = healer(made, rebuilt(made, entries), entries, Recipe(heal_rank=2))
    train(first, CONTEXTS, Schedule(0.01, 12))
    healed = first.healed()
    again = rebuilt(made, healed)
    second = healer(made, again, healed, Recipe())
    assert second.factors.keys() == first.factors.keys()
    assert second.adapters.keys() == first.adapters.keys()
    with torch.no_grad(), attached(f for fs in second.factors.values() for f in fs):
        hooked = again(input_ids=CONTEXTS).logits
    assert torch.allclose(hooked, rebuilt(made, healed)(input_ids=CONTEXTS).logits, atol=1e-3)
    for name, entry in second.healed().items():
        for a, b in zip(entry.tensor.lattices, healed[name].tensor.lattices, strict=True):
            assert np.array_equal(a.q, b.q) and np.array_equal(a.dense(), b.dense())
    train(second, CONTEXTS, Schedule(0.01, 40))
    better = second.healed()
    assert mean_divergence(made, better) < 0.9 * mean_divergence(made, healed)
    thin = [(better[n].tensor.left, healed[n].tensor.left) for n in healed]
    assert any(not np.array_equal(a.q, b.q) for a, b in thin)


def test_a_product_on_a_trellis_learns_by_the_scales_at_its_ends():
    entry = next(iter(bent_entries(model("qwen2"), 0).values()))
    m, n = entry.tensor.shape
    random = torch.Generator().manual_seed(1)
    new = adapter.Adapter(torch.randn(m, 2, generator=random), torch.randn(2, n, generator=random))
    plain = new.stored(entry.tensor, np.ones(m), np.ones(n), 0.3)
    left, right = (replace(t, trellis=4) for t in (plain.left, plain.right))
    going_on = adapter.going_on(LowRank(left, right, entry.tensor), torch.device("cpu"))
    assert not (going_on.left.requires_grad or going_on.right.requires_grad)
    fine = replace(left, row=LogScale(32 * left.row.index, 32))
    stands = replace(going_on, stands=LowRank(fine, right, entry.tensor))
    stored = stands.stored(entry.tensor, np.full(m, 2.0), np.ones(n), adapter.FINENESS[-1])
    assert (stored.left.trellis, stored.right.trellis) == (4, 4)
    assert np.array_equal(stored.left.dense(), 2 * left.dense())
    assert np.array_equal(stored.right.dense(), right.dense())
