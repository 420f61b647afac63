"""Experts removed from a mixture: which, and that the rest is the original with a router that cannot choose them."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import softmax

from families import contexts, tiny_model
from mixtures import tiny_mixture
from sprat.errors import RecipeError, SourceError
from sprat.methods.structure.experts import importance, kept_experts, layers_with_experts, refuse
from sprat.methods.structure.model import Kept, smaller
from sprat.sense.statistics import GroupStatistics
from sprat.source.experts import mixtures, unfuse
from sprat.source.maps import groups


def statistics(tokens: int, h: torch.Tensor) -> GroupStatistics:
    return GroupStatistics(h, torch.ones(1), torch.zeros(0, 0), torch.zeros(0, len(h)), tokens)


def test_importance_is_the_size_of_what_all_its_tokens_get():
    w, a = torch.randn(4, 3), torch.randn(20, 3)
    squares = sum(float((w @ x).square().sum()) for x in a)
    expected = 20 * (squares / 20) ** 0.5  # tokens times the root of the mean square of what each gets
    assert importance(w, statistics(20, a.T @ a / 20)) == pytest.approx(expected, rel=1e-5)


def test_the_least_important_experts_go():
    model = unfuse(tiny_mixture("olmoe"))
    found = [g for g in groups(model) if g.layer == 1]
    with torch.no_grad():
        for index, size in enumerate((1.0, 0.01, 2.0, 1.0, 0.02, 3.0)):
            model.get_parameter(f"model.layers.1.mlp.experts.{index}.down_proj.weight").fill_(size)
    own = {g.name: statistics(100, torch.eye(24)) for g in found if g.mixture}
    own["model.layers.1.mlp.experts.5.down_proj.weight"] = statistics(
        1, torch.eye(24)
    )  # large, hardly ever chosen
    assert kept_experts(found, own, 3).tolist() == [0, 2, 3]


@pytest.mark.parametrize("family", ["mixtral", "qwen3", "olmoe", "qwen2, shared"])
def test_what_is_left_is_the_original_with_a_router_that_cannot_choose_the_others(family):
    fused, ids = tiny_mixture(family), contexts(3, 17)
    model = unfuse(tiny_mixture(family))
    layers = list(range(2))
    kept = {layer: torch.tensor([0, 2, 3]) for layer in layers_with_experts(model)}
    small = smaller(model, Kept(layers, experts=kept))
    assert [len(mixture) for mixture in mixtures(small).values()] == [3] * len(kept)
    for layer in kept:
        gate = fused.model.layers[layer].mlp.gate

        def route(x: torch.Tensor, gate=gate):
            logits = x.reshape(-1, 32) @ gate.weight.T
            logits[:, [e for e in range(len(gate.weight)) if e not in (0, 2, 3)]] = -torch.inf
            weights, index = softmax(logits, -1).topk(2, dim=-1)
            if getattr(gate, "norm_topk_prob", True):  # Mixtral always does
                weights = weights / weights.sum(-1, keepdim=True)
            return logits, weights, index

        gate.forward = route
    with torch.no_grad():
        expected = fused(input_ids=ids, use_cache=False).logits
        assert torch.allclose(small(input_ids=ids, use_cache=False).logits, expected, atol=2e-5)


def test_what_no_expert_can_be_removed_from_is_refused():
    with pytest.raises(
        SourceError, match=r"LlamaForCausalLM: it has no experts: keep the recipe's `experts` at 0"
    ):
        refuse(tiny_model("llama"), 2, "tiny")
    with pytest.raises(SourceError, match="among 2 groups of experts first"):
        refuse(unfuse(tiny_mixture("deepseek, groups")), 2, "tiny")
    for keep in (1, 5):
        with pytest.raises(RecipeError, match=rf"experts = {keep}.*4 experts a layer and chooses 2.*2 to 4"):
            refuse(unfuse(tiny_mixture("mixtral")), keep, "tiny")
