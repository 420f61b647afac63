"""An expert's moments against its formulas on the tokens that it serves; the damage that they predict against KL."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from families import contexts
from mixtures import MIXTURES, tiny_mixture
from sprat.job import rare_experts
from sprat.sense.cache import Cache
from sprat.sense.measure import measure
from sprat.sense.moments import LENT, PROBES
from sprat.sense.statistics import SKIP, GroupStatistics
from sprat.sense.walk import Walk
from sprat.source.experts import unfuse
from sprat.source.maps import groups

HELD_OUT = 2


def measured(model, ids: Tensor, root: Path, held_out: int = HELD_OUT) -> tuple[Cache, Tensor]:
    """The statistics, and the labels (tokens,) that they were measured for."""
    labels: list[Tensor] = []

    def keep(_, __, out: Tensor) -> None:
        if out.requires_grad:
            out.register_hook(lambda gradient: labels.append(gradient.flatten(0, 1).argmin(-1)))

    hook = model.get_output_embeddings().register_forward_hook(keep)
    cache = Cache({}, root)
    measure(Walk(model, ids), groups(model), cache, held_out=held_out, batch=3)
    hook.remove()
    return cache, torch.cat(labels)


def by_hand(
    model, block: str, ids: Tensor, label: Tensor
) -> dict[int, dict[str, tuple[Tensor, Tensor, Tensor]]]:
    """For each expert of `block`: (H summed, G summed, own tokens) of "up" and "down", from the fused block's own
    input and output gradient, one token after the other."""
    module = model.get_submodule(block)
    seen: dict[str, Tensor] = {}

    def keep(_, args, out: Tensor) -> None:
        seen["x"] = args[0].detach()
        out.register_hook(lambda gradient: seen.update(gradient=gradient))

    hook = module.register_forward_hook(keep)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    out = model(input_ids=ids, use_cache=False).logits
    torch.nn.functional.cross_entropy(out.flatten(0, 1), label[: ids.numel()], reduction="sum").backward()
    hook.remove()
    _, weights, chosen = module.gate(seen["x"].flatten(0, 1))
    weights, chosen = (t.detach().view(*ids.shape, -1)[:, SKIP:].flatten(0, 1) for t in (weights, chosen))
    x, gradient = (seen[name][:, SKIP:].flatten(0, 1) for name in ("x", "gradient"))
    found = {}
    for index, expert in enumerate(module.experts):
        up, down = [], []
        for t in range(len(x)):
            for w, e in zip(weights[t], chosen[t], strict=True):
                if e == index:
                    a = torch.cat(
                        [m.weight.detach() @ x[t] for m in list(expert.children())[:2]]
                    ).requires_grad_()
                    gate, value = a.chunk(2)
                    inner = torch.nn.functional.silu(gate) * value
                    last = w * gradient[t]
                    (back,) = torch.autograd.grad(inner, a, last @ list(expert.children())[2].weight.detach())
                    up.append((x[t], back))
                    down.append((inner.detach(), last))
        found[index] = {
            name: (
                sum((torch.outer(a, a) for a, _ in pairs), torch.zeros(1)),
                sum((torch.outer(b, b) for _, b in pairs), torch.zeros(1)),
                torch.stack([a for a, _ in pairs]) if pairs else torch.zeros(0),
            )
            for name, pairs in (("up", up), ("down", down))
        }
    return found


def test_moments_are_those_of_its_own_tokens(tmp_path):
    model, ids = unfuse(tiny_mixture("qwen3")), contexts(7, 19)
    cache, label = measured(model, ids, tmp_path)
    learning = ids[:-HELD_OUT]
    tokens = learning[:, SKIP:].numel()
    hand = by_hand(model, "model.layers.1.mlp", learning, label)
    probed = by_hand(model, "model.layers.1.mlp", ids[-HELD_OUT:], torch.zeros(10**3, dtype=torch.long))
    for number, name in enumerate(("up", "down")):
        own = [g for g in groups(model) if g.mixture and g.layer == 1][number::2]
        h, g, rows = zip(*(hand[index][name] for index in range(len(own))), strict=True)
        counts = [len(r) for r in rows]
        assert sum(counts) == 2 * tokens and min(counts) < 0.5 * max(counts)
        for index, group in enumerate(own):
            s: GroupStatistics = cache.get("layer/1", GroupStatistics)[group.name]
            lent = [(1 - LENT) * (e == index) + LENT / len(own) for e in range(len(own))]
            mean = sum(w * part for w, part in zip(lent, h, strict=True))
            near(s.h, mean / sum(w * n for w, n in zip(lent, counts, strict=True)))
            fisher = sum(w * part for w, part in zip(lent, g, strict=True)) / tokens
            near(s.g, fisher.diagonal())
            if len(s.fisher):
                near(s.fisher, fisher)
            assert s.tokens == counts[index]
            seen = probed[index][name][2]
            assert len(s.probes) == min(PROBES, len(seen))
            assert torch.allclose(s.probes.float(), seen, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("family", MIXTURES)
def test_the_damage_of_an_expert_is_a_mean_over_all_tokens(family, tmp_path):
    """Noise on one rarely and on one often chosen expert, so small that no token is routed anew: KL as predicted."""
    model, ids = unfuse(tiny_mixture(family)).double(), contexts(40, 24)
    cache, _ = measured(model, ids, tmp_path, held_out=1)
    found = [g for g in groups(model) if g.mixture and g.layer == 1]
    served = cache.numbers("layer/1", "tokens")
    by_use = sorted(found, key=lambda g: served[g.name])
    assert served[by_use[0].name] < 0.5 * 39 * 23  # of all tokens
    for group in (*by_use[:2], *by_use[-2:]):
        s: GroupStatistics = cache.get("layer/1", GroupStatistics)[group.name]
        noisy = copy.deepcopy(model)
        noise = [1e-5 * torch.randn(m.shape, dtype=torch.float64) for m in group.maps]
        with torch.no_grad():
            for m, change in zip(group.maps, noise, strict=True):
                noisy.get_parameter(m.name).add_(change)
        change = torch.cat(noise).float()
        predicted = float((s.g @ ((change @ s.h) * change).sum(1)) / 2)
        real = exact_kl(model, noisy, ids)
        # Dividing both moments by all tokens would predict the share of the tokens that it serves of this.
        assert 0.5 < real / predicted < 1.5


def exact_kl(original, other, ids: Tensor) -> float:
    """Mean KL over all but the first token of each context, in float64."""
    with torch.no_grad():
        p, q = (m(input_ids=ids, use_cache=False).logits[:, SKIP:].log_softmax(-1) for m in (original, other))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_an_expert_that_no_token_reaches_is_like_the_others_and_named(tmp_path):
    model, ids = unfuse(tiny_mixture("deepseek, groups")), contexts(6, 20)
    with torch.no_grad():
        model.get_buffer("model.layers.1.mlp.gate.e_score_correction_bias")[2] = -100.0
    cache, _ = measured(model, ids, tmp_path)
    found = cache.get("layer/1", GroupStatistics)
    for name in ("gate_proj", "down_proj"):
        s, *others = [found[f"model.layers.1.mlp.experts.{e}.{name}.weight"] for e in (2, 0, 1)]
        assert s.tokens == 0 and s.probes.numel() == 0 and min(o.tokens for o in others) > 10
        # The mean of all four, of which the router's groups leave these two; the others' own are diluted by LENT.
        mean = sum(o.g.sum() for o in others) / 4
        assert float(s.g.sum()) == pytest.approx(float(LENT * mean), rel=0.02)
        traces = [float(o.h.trace()) for o in others]
        assert 0.999 * min(traces) < s.h.trace() < 1.001 * max(traces)
    (said,) = rare_experts(groups(model), cache)
    assert "of 4 experts" in said and "model.layers.1.mlp.experts.2) saw 0 for a width of 32" in said


def near(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-4 * float(want.abs().max()))
