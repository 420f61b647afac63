"""Deep healing: a step against a slow reference, the rate term against the coder, and what it gives."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_heal import CONTEXTS, mean_divergence, model

from sprat.coding import entropy
from sprat.coding.tensors import Entry, Lattice, LogScale
from sprat.level.check import rebuilt
from sprat.methods import deep
from sprat.methods.deep import LOOK, Deep
from sprat.methods.distil import Teacher, divergence, student_logits
from sprat.methods.rate import MAX_SYMBOL, Rate
from sprat.source.maps import groups
from sprat.training.loop import train
from sprat.training.schedule import Schedule


def coarse_entries(made, levels=3):
    """Every group rounded to the nearest of about 2 · levels + 1 values a row, in contexts that fit."""
    out = {}
    for group in groups(made):
        w = torch.cat([m.weight() for m in group.maps]).detach().float().numpy()
        row, col = LogScale.nearest(np.abs(w).max(1) / levels, 32), LogScale.nearest(np.ones(w.shape[1]), 32)
        q = np.rint(w / row.values()[:, None]).astype(np.int16)
        classes = entropy.classes(w.std(1) / row.values(), np.ones(w.shape[1]))
        maps, rows = zip(*((m.name, m.shape[0]) for m in group.maps), strict=True)
        out[group.name] = Entry(maps, rows, Lattice(q, row, col, *classes), group.maps[0].transposed)
    return out


def lattice(seed=0, shape=(40, 30), spread=2.0):
    random = np.random.default_rng(seed)
    std = spread * np.exp(random.normal(0, 0.7, shape[0]))
    q = np.rint(random.normal(0, 1, shape) * std[:, None]).astype(np.int16)
    ones = LogScale(np.zeros(shape[0], np.int32), 8), LogScale(np.zeros(shape[1], np.int32), 8)
    return Lattice(q, *ones, *entropy.classes(std, np.ones(shape[1])))


@pytest.mark.parametrize("spread", [0.3, 2.0, 30.0])
def test_slopes_are_finite_differences_of_what_the_coder_spends(spread):
    made = lattice(spread=spread)
    tables = entropy.Tables.from_counts(entropy.count([made]))
    slopes = Rate(tables).slopes(made, torch.from_numpy(made.q).float())
    random = np.random.default_rng(1)
    for _ in range(40):
        i, j = random.integers(made.shape[0]), random.integers(made.shape[1])
        cost = []
        for move in (1, -1):
            q = made.q.copy()
            q[i, j] += move
            cost.append(entropy.cost_bits(replace(made, q=q), tables))
        assert float(slopes[i, j]) == pytest.approx((cost[0] - cost[1]) / 2, abs=1e-2)


def test_bits_are_what_the_coder_spends():
    made = lattice()
    tables = entropy.Tables.from_counts(entropy.count([made]))
    bits = Rate(tables).bits(made, torch.from_numpy(made.q).float())
    assert float(bits.sum()) == pytest.approx(entropy.cost_bits(made, tables), rel=1e-5)
    far = torch.full(made.shape, 10.0 * MAX_SYMBOL)
    assert bool(torch.isfinite(Rate(tables).slopes(made, far)).all())


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_a_step_is_the_formula_element_by_element(family):
    """The first step against a loop over elements, its gradients from a model whose weights are plain leaves."""
    made = model(family)
    entries = coarse_entries(made)
    learner = Deep(Teacher(made), rebuilt(made, entries), entries, list(entries))
    plain = rebuilt(made, entries)
    for parameter in plain.parameters():
        parameter.requires_grad_(True)
    with torch.no_grad():
        wanted = student_logits(made, CONTEXTS[0])
    loss = divergence(wanted, student_logits(plain, CONTEXTS[0]))
    loss.backward()
    price = 2 * np.log(2) * float(loss.detach()) / sum(e.tensor.q.size for e in entries.values())

    assert learner.learn(CONTEXTS[0], 1.0) == pytest.approx(float(loss.detach()), rel=1e-5)
    learner.step(0.01)
    gradients = dict(plain.named_parameters())
    name = list(entries)[-1]
    entry = entries[name]
    grads = [gradients[m].grad.T if entry.transposed else gradients[m].grad for m in entry.maps]
    grad, stored = torch.cat(grads).double().numpy(), entry.tensor
    r, k = stored.row.values().astype(float), stored.col.values().astype(float)
    tables = entropy.Tables.from_counts(entropy.count([e.tensor for e in entries.values()]))
    slopes = Rate(tables).slopes(stored, torch.from_numpy(stored.q).float()).numpy()
    m, n = stored.shape
    g = np.array([[r[i] * k[j] * grad[i, j] + price * slopes[i, j] for j in range(n)] for i in range(m)])
    mean_rows, mean_columns = (g**2).mean(1), (g**2).mean(0)
    mean = (g**2).mean()
    for i, j in [(0, 0), (m // 2, n // 3), (m - 1, n - 1)]:
        size = np.sqrt(mean_rows[i] * mean_columns[j] / mean)
        moved = 0.01 * deep.LATTICE_RATE * (1 - deep.DIRECTION) * g[i, j] / size
        assert float(learner.latents[name].value[i, j]) == pytest.approx(
            stored.q[i, j] - moved, abs=1e-3 * abs(moved) + 1e-4
        )


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_the_model_computes_with_what_would_be_stored(family):
    made = model(family)
    entries = coarse_entries(made)
    rounded = rebuilt(made, entries)
    learner = Deep(Teacher(made), rounded, entries, list(entries))
    train(learner, CONTEXTS, Schedule(0.02, 12))
    stored = rebuilt(made, learner.healed(256))  # scales on a grid so fine that they are what was trained
    with torch.no_grad():
        a, b = (student_logits(m, CONTEXTS[0]) for m in (rounded, stored))
    assert torch.allclose(a, b, atol=0.02 * float(b.abs().max()))
    moved = sum(int((learner.healed()[n].tensor.q != e.tensor.q).sum()) for n, e in entries.items())
    assert moved > 0


def test_integers_heal_what_scales_cannot():
    """Integers that are off by one here and there; the rest of the model is exact."""
    made = model("qwen2")
    entries = coarse_entries(made, 12)
    random = np.random.default_rng(3)
    for name, entry in entries.items():
        wrong = entry.tensor.q + random.choice([0, 0, 0, 3, -3], entry.tensor.shape).astype(np.int16)
        entries[name] = replace(entry, tensor=replace(entry.tensor, q=wrong))
    before = mean_divergence(made, entries)
    learner = Deep(Teacher(made), rebuilt(made, entries), entries, list(entries))
    train(learner, CONTEXTS, Schedule(0.01, 200))
    assert mean_divergence(made, learner.healed()) < 0.6 * before


def test_bits_stay_near_what_they_were_and_a_price_takes_them_below():
    made = model("qwen2")
    entries = coarse_entries(made, 4)
    learner = Deep(Teacher(made), rebuilt(made, entries), entries, list(entries))
    train(learner, CONTEXTS, Schedule(0.02, 60))
    tables = entropy.Tables.from_counts(entropy.count([e.tensor for e in entries.values()]))

    def bits(found):
        return sum(entropy.cost_bits(found[name].tensor, tables) for name in entries)

    assert bits(learner.healed()) < 1.03 * bits(entries)
    spent = [bits(learner.healed(price=price)) for price in (0.0, 0.1, 0.3, 1.0)]
    assert spent == sorted(spent, reverse=True)
    assert spent[-1] < 0.95 * spent[0]


@pytest.mark.parametrize(("had", "follows"), [(0.8, 1), (1.0, 0), (1.25, -1)])
def test_the_price_follows_the_bits(had, follows):
    """had: bits when it began, as a share of those now."""
    made = model("qwen2")
    entries = coarse_entries(made, 4)
    learner = Deep(Teacher(made), rebuilt(made, entries), entries, list(entries))
    learner.bits *= had
    prices = []
    for _ in range(LOOK):
        learner.learn(CONTEXTS[0], 1.0)
        learner.step(0.0)
        prices.append(learner.price)
    assert prices[:-1] == prices[:1] * (LOOK - 1)
    assert np.sign(round(prices[-1] / prices[0] - 1, 9)) == follows


def test_the_scales_alone_may_be_kept_and_each_candidate_gets_smaller():
    made = model("qwen2")
    entries = coarse_entries(made)
    learner = Deep(Teacher(made), rebuilt(made, entries), entries, list(entries))
    train(learner, CONTEXTS, Schedule(0.02, 40))
    whole, scales = learner.candidates()
    first, *_, last = whole
    zeros = [sum(int((v[n].tensor.q == 0).sum()) for n in entries) for v in (first, last)]
    assert zeros[1] > zeros[0]
    for name, entry in next(scales).items():
        tensor, trained = entries[name].tensor, first[name].tensor
        assert np.array_equal(entry.tensor.q, tensor.q)
        assert np.array_equal(entry.tensor.row.index, trained.row.index)
    assert any(not np.array_equal(first[n].tensor.q, e.tensor.q) for n, e in entries.items())


def test_stopped_and_restored_goes_on_to_the_bit():
    made = model("qwen2")
    entries = coarse_entries(made)

    def fresh():
        return Deep(Teacher(made), rebuilt(made, entries), entries, list(entries))

    whole, first, rest = fresh(), fresh(), fresh()
    for step in range(8):
        for learner in (whole, first) if step < 5 else (whole,):
            learner.learn(CONTEXTS[step % len(CONTEXTS)], 1.0)
            learner.step(0.01)
    rest.restore(copy.deepcopy(first.state()))
    for step in range(5, 8):
        rest.learn(CONTEXTS[step % len(CONTEXTS)], 1.0)
        rest.step(0.01)
    assert whole.price == rest.price
    for name in entries:
        assert torch.equal(whole.latents[name].value, rest.latents[name].value)
        a, b = (x.healed()[name].tensor for x in (whole, rest))
        assert np.array_equal(a.q, b.q)
        assert np.array_equal(a.row.index, b.row.index)
