"""Unfused experts compute what transformers' fused ones compute, under the names that checkpoints have."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file

from families import contexts, tiny_model
from mixtures import MIXTURES, tiny_mixture
from sprat.errors import SourceError
from sprat.source.experts import Experts, all_called, hub_names, mixtures, router, unfuse
from sprat.source.load import load
from sprat.source.maps import groups, linear_maps


def logits(model: tf.PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("family", MIXTURES)
def test_outputs_are_those_of_the_fused_module(family):
    fused, ids = tiny_mixture(family), contexts(3, 17)
    plain = unfuse(copy.deepcopy(fused))
    assert mixtures(plain) and not mixtures(fused)
    expected = logits(fused, ids)
    assert torch.allclose(logits(plain, ids), expected, atol=2e-5)
    with all_called(plain):
        assert torch.allclose(logits(plain, ids), expected, atol=2e-5)
    assert not any(mixture.all for mixture in mixtures(plain).values())
    assert expected.std() > 0.5


@pytest.mark.parametrize("every", [False, True])
def test_gradients_are_those_of_the_fused_module(every):
    fused = tiny_mixture("qwen3").model.layers[0].mlp
    plain = copy.deepcopy(fused)
    plain.experts = unfuse(tiny_mixture("qwen3")).model.layers[0].mlp.experts
    plain.experts.all = every
    x, weight = torch.randn(2, 9, 32), torch.randn(2, 9, 32)
    found = []
    for block in (fused, plain):
        leaf = x.clone().requires_grad_()
        (block(leaf) * weight).sum().backward()
        found.append((leaf.grad, block.gate.weight.grad))
    for got, expected in zip(found[1], found[0], strict=True):
        assert torch.allclose(got, expected, atol=1e-5) and expected.abs().max() > 1e-3


def test_an_expert_computes_its_own_tokens_only():
    model, seen = unfuse(tiny_mixture("mixtral")), []
    for mixture in mixtures(model).values():
        for expert in mixture:
            expert.get_submodule("w2").register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    logits(model, contexts(2, 11))
    assert sum(seen) == 2 * 2 * 22  # layers, chosen, tokens
    seen.clear()
    with all_called(model):
        logits(model, contexts(2, 11))
    assert seen == [22] * 8


@pytest.mark.parametrize("family", MIXTURES)
def test_every_matrix_of_a_checkpoint_is_a_parameter(family, tiny, tmp_path):
    """Transformers' own writing of the fused model is the reference, names and values."""
    tiny_mixture(family).save_pretrained(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((tiny.folder / file).read_bytes())
    saved = load_file(tmp_path / "model.safetensors")
    source = load(tmp_path, torch.float32)
    renamed = hub_names(source.config["model_type"])
    found = {renamed(name): tensor for name, tensor in source.model.state_dict().items()}
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in saved.items())
    assert source.original_bytes == 2 * sum(p.numel() for p in tiny_mixture(family).parameters())


@pytest.mark.parametrize("family", MIXTURES)
def test_groups_of_experts(family):
    model = unfuse(tiny_mixture(family))
    found = [g for g in groups(model) if g.mixture]
    for name, mixture in mixtures(model).items():
        assert isinstance(mixture, Experts) and mixture.chosen == 2
        own = [g for g in found if g.mixture == name]
        assert [(len(g.maps), g.share) for g in own] == [(2, 2 / len(mixture)), (1, 2 / len(mixture))] * len(
            mixture
        )
        for index in range(len(mixture)):
            names = [m.name for g in own[2 * index : 2 * index + 2] for m in g.maps]
            assert all(n.startswith(f"{name}.{index}.") for n in names)
            assert [m.shape for g in own[2 * index : 2 * index + 2] for m in g.maps] == [(24, 32)] * 2 + [
                (32, 24)
            ]
        chooses = router(model, name)
        assert [n.split(".")[-2] in ("gate", "router") for n, t in chooses.items() if t.ndim == 2] == [True]
        assert all(len(t) == len(mixture) for t in chooses.values())
        assert not chooses.keys() & {m.name for m in linear_maps(model)}
    assert all(g.share == 1 for g in groups(model) if not g.mixture)


def test_a_model_without_experts_stays_as_it_is():
    model = tiny_model("llama")
    names = [name for name, _ in model.named_modules()]
    assert unfuse(model) is model and [name for name, _ in model.named_modules()] == names


@pytest.mark.parametrize("kind", ["gpt_oss", "granitemoe", "llama4_text"])
def test_experts_of_another_kind_are_refused(kind):
    config = tf.AutoConfig.for_model(
        kind, vocab_size=64, hidden_size=32, intermediate_size=24, num_hidden_layers=1, num_local_experts=4
    )
    model = tf.AutoModelForCausalLM.from_config(config)
    with pytest.raises(SourceError, match=r"experts of model.layers.0.*supported are .*Mixtral"):
        unfuse(model)
    with pytest.raises(SourceError, match=r"several maps in one tensor.*supported are .*Mixtral"):
        groups(model)
