"""The model is a Qwen3, its optimizer is Muon: both against plain references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small import recipe
from transformers import AutoConfig, Qwen3ForCausalLM

from sprat.golf.model import Decoder
from sprat.golf.muon import Muon, orthogonal
from sprat.golf.noise import rounding_noise
from sprat.golf.pretrained import config


def random_model(**settings) -> Decoder:
    """With no map at zero, so that every part shows in the logits."""
    model = Decoder(recipe(**settings), 320, 1)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.5 if parameter.ndim == 1 else 0.0, 0.2, generator=generator)
    return model.eval()


@pytest.mark.parametrize("heads", [(2, 1), (4, 4), (4, 2)])
def test_it_is_a_qwen3(heads):
    settings = {"heads": heads[0], "kv_heads": heads[1]}
    model = random_model(**settings)
    values = config(recipe(**settings), 320, 0)
    theirs = Qwen3ForCausalLM(AutoConfig.for_model(**values)).eval()
    missing, unexpected = theirs.load_state_dict(model.state_dict(), strict=False)
    assert missing == ["lm_head.weight"] and not unexpected
    theirs.tie_weights()
    ids = torch.randint(0, 320, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(model(ids), theirs(input_ids=ids).logits, atol=1e-4)


@pytest.mark.parametrize("activation", ["swiglu", "relu2"])
def test_no_token_sees_what_follows(activation):
    model = random_model(activation=activation, finish="int8-zlib")
    ids = torch.randint(0, 320, (1, 40), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, 20:] = 5
    with torch.no_grad():
        assert torch.allclose(model(ids)[0, :20], model(other)[0, :20], atol=1e-5)
        assert not torch.allclose(model(ids)[0, 20:], model(other)[0, 20:], atol=1e-2)


def test_orthogonal_moves_singular_values_to_one_and_keeps_directions():
    x = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0))
    out = orthogonal(x)
    for before, after in zip(x, out, strict=True):
        u, _, v = torch.linalg.svd(before, full_matrices=False)
        inside = u.T @ after @ v.T
        assert ((inside.diagonal() > 0.6) & (inside.diagonal() < 1.3)).all()
        assert (inside - inside.diagonal().diag()).abs().max() < 1e-3
    assert torch.allclose(orthogonal(x.mT), out.mT, atol=1e-5)
    rough = orthogonal(x, torch.bfloat16)
    assert rough.dtype == x.dtype
    assert (rough - out).norm() < 0.05 * out.norm()


def test_muon_steps_as_its_formula_says():
    generator = torch.Generator().manual_seed(0)
    w = torch.nn.Parameter(torch.randn(12, 6, generator=generator))
    other = torch.nn.Parameter(torch.randn(12, 6, generator=generator))  # of the same shape, stepped together
    optimizer = Muon([w, other], lr=0.1, momentum=0.9, weight_decay=0.5)
    expected, momentum = w.detach().clone(), torch.zeros(12, 6)
    for _ in range(3):
        g = torch.randn(12, 6, generator=generator)
        w.grad, other.grad = g.clone(), torch.randn(12, 6, generator=generator)
        optimizer.step()
        momentum = 0.9 * momentum + g
        (step,) = orthogonal((g + 0.9 * momentum)[None])
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * np.sqrt(12 / 6) * step
    assert torch.allclose(w, expected, atol=1e-5)


def test_noise_has_the_size_of_the_rounding_and_leaves_no_trace():
    w = (
        torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
        * torch.linspace(0.1, 2, 200)[:, None]
    )
    before = w.clone()
    with rounding_noise([w], 3.0, torch.Generator().manual_seed(1)):
        error = (w - before) / before.square().mean(1, keepdim=True).sqrt()
    step = np.sqrt(2 * np.pi * np.e) / 8
    assert (
        abs(float(error.std()) - step / np.sqrt(12)) < 0.005 and float(error.abs().max()) <= step / 2 + 1e-5
    )
    assert torch.equal(w, before)
