"""What goes and what makes up for it: against least squares, exhaustive search, and planted units."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import correlated

from families import CONFIGS, contexts, tiny_model
from random_llama import tiny
from sprat.methods.structure.anatomy import attention, feed_forward
from sprat.methods.structure.compensate import compensate
from sprat.methods.structure.layers import least_needed
from sprat.methods.structure.model import Kept, smaller
from sprat.methods.structure.units import kept_units, refit
from sprat.sense.walk import Walk


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 24), m=st.integers(1, 9), seed=st.integers(0, 10**6), data=st.data())
def test_the_refit_is_least_squares(n, m, seed, data):
    keep = torch.tensor(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=n))))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * n, n, generator=generator) @ torch.randn(n, n, generator=generator)
    x += 0.3 * torch.randn(4 * n, n, generator=generator)
    w = torch.randn(m, n, generator=generator)
    expected = torch.linalg.lstsq(x[:, keep].double(), (x @ w.T).double()).solution.T
    assert torch.allclose(refit(w, x.T @ x / len(x), keep).double(), expected, rtol=1e-3, atol=1e-3)


def _lost(w, h, g, size: int, units) -> float:
    keep = torch.tensor([u * size + i for u in units for i in range(size)])
    full = torch.zeros_like(w)
    full[:, keep] = refit(w, h, keep)
    return float((g * (((full - w) @ h) * (full - w)).sum(1)).sum())


@pytest.mark.parametrize("size", [1, 3])
def test_one_unit_less_is_the_best_of_all(size):
    for seed in range(6):
        w, h, g = correlated(8, 8 * size, seed)
        found = kept_units(w, h, g, size, 7).tolist()
        best = min(itertools.combinations(range(8), 7), key=lambda units: _lost(w, h, g, size, units))
        assert tuple(found) == best


@pytest.mark.parametrize("size", [1, 2])
def test_greedy_is_near_the_best_of_all(size):
    """And far from what the rows of W alone would say."""
    for seed in range(6):
        w, h, g = correlated(6, 8 * size, seed)
        found = _lost(w, h, g, size, kept_units(w, h, g, size, 4).tolist())
        all_of_them = [_lost(w, h, g, size, units) for units in itertools.combinations(range(8), 4)]
        assert min(all_of_them) * 0.999 <= found <= 1.5 * min(all_of_them)
        assert found < sorted(all_of_them)[len(all_of_them) // 4]


@pytest.mark.parametrize("size", [1, 4])
def test_planted_dead_units_go_first(size):
    """One that nothing reads, one that is never active, one whose readers matter to nobody."""
    w, h, g = correlated(10, 9 * size, seed=2, rho=0.2)
    unread, silent, moot = (slice(u * size, (u + 1) * size) for u in (1, 4, 6))
    w[:, unread] = 0
    h[silent] *= 1e-5
    h[:, silent] *= 1e-5
    w[1:, moot] = 0
    g[0] = 1e-9
    assert kept_units(w, h, g, size, 6).tolist() == [0, 2, 3, 5, 7, 8]


def test_a_copy_of_other_inputs_goes_first_and_for_nothing():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(500, 12, generator=generator)
    x[:, 5] = 20 * (x[:, 1] - 2 * x[:, 7])  # loud, and foreseen
    w, h, g = torch.randn(6, 12, generator=generator), x.T @ x / 500, torch.ones(6)
    h.diagonal().mul_(1 + 1e-6)
    kept = kept_units(w, h, g, 1, 11)
    gone = (set(range(12)) - set(kept.tolist())).pop()
    assert gone in (1, 5, 7)  # each is foreseen by the other two
    assert torch.allclose(x[:, kept] @ refit(w, h, kept).T, x @ w.T, atol=2e-2)


def _logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def _silenced(model, parts, units):
    """`model` with the outer maps' columns of `units`: {layer: (columns,)} at zero."""
    with torch.no_grad():
        for layer, columns in units.items():
            w = parts[layer].outer.weight().clone()
            w[:, columns] = 0
            parts[layer].outer.set(w)
    return model


@pytest.mark.parametrize("family", CONFIGS)
def test_fewer_neurons_are_neurons_at_zero(family):
    ids, model = contexts(2, 20), tiny_model(family)
    width = feed_forward(model)[0].outer.shape[1]
    kept = {0: torch.arange(0, width, 2), 1: torch.arange(width // 2)}
    small = smaller(model, Kept([0, 1], neurons=kept))
    gone = {layer: torch.tensor(sorted(set(range(width)) - set(k.tolist()))) for layer, k in kept.items()}
    expected = _logits(_silenced(model, feed_forward(model), gone), ids)
    assert feed_forward(small)[1].outer.shape[1] == width // 2
    assert torch.allclose(_logits(small, ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", [f for f in CONFIGS if "gpt2" not in f])
def test_fewer_groups_are_groups_at_zero(family):
    ids, model = contexts(2, 20), tiny_model(family)
    small = smaller(model, Kept([0, 1], groups={0: torch.tensor([1]), 1: torch.tensor([0])}))
    half = attention(model)[0].outer.shape[1] // 2
    gone = {0: torch.arange(half), 1: torch.arange(half, 2 * half)}
    expected = _logits(_silenced(model, attention(model), gone), ids)
    assert (small.config.num_key_value_heads, small.config.num_attention_heads) == (1, 2)
    assert small.config.head_dim == half // 2
    assert torch.allclose(_logits(small, ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("left", [0, 1])
def test_fewer_layers_are_layers_passed_by(family, left):
    ids, model = contexts(2, 20), tiny_model(family)
    small = smaller(model, Kept([left]))
    walk = Walk(model, ids)
    with torch.no_grad():
        hidden = walk.call(left, walk.embed(ids))
    expected = walk.tail(hidden, ids)[2].detach()
    assert small.config.num_hidden_layers == 1
    assert torch.allclose(_logits(small, ids), expected, rtol=1e-4, atol=1e-4)


def test_planted_dead_layers_go_first():
    model = tiny(0)
    config = type(model.config)(**model.config.to_dict() | {"num_hidden_layers": 5})
    torch.manual_seed(0)
    model = type(model)(config).eval()
    with torch.no_grad():
        for layer in (1, 3):
            model.model.layers[layer].self_attn.o_proj.weight.zero_()
            model.model.layers[layer].mlp.down_proj.weight.mul_(1e-3 * layer)
    ids = torch.randint(0, 97, (2, 16), generator=torch.Generator().manual_seed(0))
    walk = Walk(model, ids)
    order = least_needed(walk, 3)
    assert order.layers[:2].tolist() == [1, 3]
    # The KL without the first three, by a model that has but the others.
    gone = set(order.layers.tolist())
    small = smaller(model, Kept([i for i in range(5) if i not in gone]))
    log_p, log_q = (_logits(m, ids)[:, 8:].double().log_softmax(-1) for m in (model, small))
    expected = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    assert float(order.kl[2]) == pytest.approx(expected, rel=1e-3)
    assert least_needed(walk, 1).layers.tolist() == [1] and order.kl[0] < order.kl[1] < order.kl[2]


def test_compensation_undoes_what_others_can_do():
    """Neurons that copy others, in two layers of a model: their removal leaves the logits as they were."""
    ids, model = contexts(8, 40), tiny_model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            for name in ("gate_proj", "up_proj"):
                weight = getattr(layer.mlp, name).weight
                weight[32:] = weight[:32]
    before = _logits(model, ids)
    small = smaller(model, Kept([0, 1], neurons=dict.fromkeys((0, 1), torch.arange(32))))
    damaged = float((_logits(small, ids) - before).abs().mean())
    compensate(model, small, [0, 1], ids, 1e-6)
    assert float((_logits(small, ids) - before).abs().mean()) < 1e-2 * damaged


@pytest.mark.parametrize("family", CONFIGS)
def test_compensation_helps_or_stays_away(family):
    """On contexts that it never saw; Gemma's layers, whose last map does not add to the stream, stay as they are."""
    model = tiny_model(family)
    small = smaller(model, Kept([0]))
    before = {name: p.clone() for name, p in small.named_parameters()}
    unseen = contexts(4, 40, seed=9)

    def away():
        return float((_logits(small, unseen) - _logits(model, unseen)).square().mean())

    plain = away()
    compensate(model, small, [0], contexts(24, 40), 1.0)
    changed = [name for name, p in small.named_parameters() if not torch.equal(p, before[name])]
    if family == "gemma3":
        assert not changed
    else:
        assert len(changed) == 1 and away() < plain
