"""Every building block against a slow, plain reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small import recipe
from torch import Tensor, nn

from sprat.errors import RecipeError
from sprat.golf.blocks import bitlinear
from sprat.golf.blocks.delta import CHUNK, DeltaMemory, gated_delta
from sprat.golf.blocks.experts import Experts
from sprat.golf.blocks.ngrams import NgramEmbedding
from sprat.golf.blocks.sharing import owners
from sprat.golf.model import Decoder

IDS = torch.randint(0, 320, (2, 50), generator=torch.Generator().manual_seed(0))


def randomized(module: nn.Module, seed: int = 2) -> nn.Module:
    """With no map at zero, so that every part shows."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.requires_grad:
            mean = 0.5 if parameter.ndim == 1 else 0.0
            nn.init.normal_(parameter, mean, 0.2, generator=generator)
    return module.eval()


def test_the_order_of_shared_layers():
    assert owners("none", 3, 1) == (0, 1, 2)
    assert owners("all", 2, 3) == (0, 1, 0, 1, 0, 1)
    assert owners("middle", 4, 2) == (0, 1, 2, 1, 2, 5)
    assert owners("middle", 3, 3) == (0, 1, 1, 1, 4)


@pytest.mark.parametrize(("shared", "layers", "loops"), [("all", 2, 2), ("middle", 3, 2)])
def test_shared_layers_are_copies_of_their_maps_behind_norms_of_their_own(shared, layers, loops):
    model = randomized(Decoder(recipe(layers=layers, shared=shared, loops=loops), 320))
    order = owners(shared, layers, loops)
    plain = Decoder(recipe(layers=len(order)), 320).eval()
    given_, state = model.state_dict(), plain.state_dict()
    for name in state:
        found = name
        if name not in given_:
            _, _, use, *rest = name.split(".")
            found = ".".join(["model", "layers", str(order[int(use)]), *rest])
        state[name] = given_[found]
    plain.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(model(IDS), plain(IDS))
    vectors = 2 * 32 * (len(order) - layers)
    single = Decoder(recipe(layers=layers), 320)
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in single.parameters()) == vectors


@pytest.mark.parametrize("order", [2, 3])
def test_ngrams_look_up_the_hash_of_the_last_tokens(order):
    table = NgramEmbedding(1000, 8, order)

    def row(tokens: list[int]) -> int:
        mixed = tokens[0] * 2654435761
        for token, multiplier in zip(tokens[1:], (2246822519, 3266489917), strict=False):
            mixed ^= (token + 1) * multiplier
        return (mixed >> 15) % 1000

    h, h_ = torch.randn(2, 50, 12), []
    for text, start in zip(IDS.tolist(), h, strict=True):
        before = [0] * order + text
        for t in range(50):
            last = before[: order + t + 1][::-1]
            said = sum(table.weight[row(last[: n + 1])] for n in range(1, order))
            h_.append(start[t] + torch.cat([said, torch.zeros(4)]))
    assert torch.allclose(table.added_to(h, IDS), torch.stack(h_).view(2, 50, 12), atol=1e-6)
    # A hash that mixes: tokens that follow each other fall on rows of their own.
    pairs = torch.cartesian_prod(torch.arange(30), torch.arange(30))
    hit = len(set(NgramEmbedding(4096, 1, 2).rows(pairs)[0, :, 1].tolist()))
    assert abs(hit - 4096 * (1 - math.exp(-900 / 4096))) < 60


@pytest.mark.parametrize("kind", ["ternary", "binary"])
def test_trained_integers_are_one_magnitude_a_row(kind):
    generator = torch.Generator().manual_seed(0)
    layer = bitlinear.linear(6, 4, kind)
    nn.init.normal_(layer.weight, generator=generator)
    expected = torch.zeros(4, 6)
    for i, row in enumerate(layer.weight.tolist()):
        scale = sum(map(abs, row)) / 6
        for j, value in enumerate(row):
            sign = 1 if value >= 0 else -1
            expected[i, j] = scale * (sign if kind == "binary" or abs(value) > scale / 2 else 0)
    x = torch.randn(3, 6, generator=generator)
    out = layer(x)
    assert torch.allclose(out, x @ expected.T, atol=1e-6)
    assert torch.allclose(bitlinear.stored(nn.Sequential(layer))["0.weight"], expected, atol=1e-6)
    # Straight through: the latent's gradient is that of the rounded weight.
    gradient = torch.randn(3, 4, generator=generator)
    out.backward(gradient)
    assert torch.allclose(layer.weight.grad, gradient.T @ x, atol=1e-5)


def recurrence(q: Tensor, k: Tensor, v: Tensor, rate: Tensor, decay: Tensor) -> Tensor:
    """The gated delta rule token by token, in float64."""
    q, k, v, rate, decay = (t.double() for t in (q, k, v, rate, decay))
    state, out = torch.zeros(*v.shape[:2], v.shape[-1], v.shape[-1], dtype=torch.float64), []
    for t in range(v.shape[2]):
        state = state * decay[:, :, t].exp()[..., None, None]
        read = (state @ k[:, :, t, :, None])[..., 0]
        state = state + (rate[:, :, t, None] * (v[:, :, t] - read))[..., None] * k[:, :, t, None]
        out.append((state @ q[:, :, t, :, None])[..., 0])
    return torch.stack(out, 2)


@given(st.integers(1, 3 * CHUNK + 1), st.integers(0, 2**16))
@settings(max_examples=15, deadline=None)
def test_the_chunked_memory_is_the_recurrence(context, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 3, context, 8, generator=generator) for _ in range(3))
    k = F.normalize(k, dim=-1)
    rate = torch.rand(2, 3, context, generator=generator)
    decay = -torch.rand(2, 3, context, generator=generator) * 3
    expected = recurrence(q, k, v, rate, decay)
    assert torch.allclose(gated_delta(q, k, v, rate, decay)[0].double(), expected, atol=1e-4)
    cut, state, parts = context // 3, None, []
    for part in (slice(0, cut), slice(cut, context)):
        if part.stop > part.start:
            given_ = (t[:, :, part] for t in (q, k, v, rate, decay))
            out, state = gated_delta(*given_, state)
            parts.append(out)
    assert torch.allclose(torch.cat(parts, 2).double(), expected, atol=1e-4)


def test_gradients_pass_the_chunked_memory_as_the_recurrence():
    generator = torch.Generator().manual_seed(0)
    shape = (1, 2, CHUNK + 5, 4)
    given_ = [torch.randn(shape, generator=generator) for _ in range(3)]
    given_[1] = F.normalize(given_[1], dim=-1)
    given_ += [torch.rand(shape[:3], generator=generator), -torch.rand(shape[:3], generator=generator)]
    weight, found = torch.randn(shape, generator=generator), []
    for how in (lambda *g: gated_delta(*g)[0], recurrence):
        leaves = [t.clone().requires_grad_() for t in given_]
        (how(*leaves) * weight).sum().backward()
        found.append([leaf.grad for leaf in leaves])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_the_memorys_convolution_reads_the_last_four_tokens():
    memory = DeltaMemory(8, 2, "real")
    nn.init.normal_(memory.taps)
    x, taps = torch.randn(1, 9, 8), memory.taps.view(4, 8)
    for t in range(9):
        expected = sum(taps[back] * x[0, t - back] for back in range(4) if t >= back)
        assert torch.allclose(memory.mixed(x)[0, t], expected, atol=1e-6)


def experts(chosen: int) -> Experts:
    make = nn.Sequential(nn.Linear(8, 6, bias=False), nn.ReLU(), nn.Linear(6, 8, bias=False))
    out = Experts(8, 4, chosen, 0.01, lambda: nn.Sequential(*(type(m)(*_sizes(m)) for m in make)))
    randomized(out)
    with torch.no_grad():
        out.bias.copy_(torch.tensor([0.3, 0.0, -0.2, 0.1]))
    return out


def _sizes(module: nn.Module) -> tuple:
    return (module.in_features, module.out_features, False) if isinstance(module, nn.Linear) else ()


@pytest.mark.parametrize("chosen", [1, 2])
@pytest.mark.parametrize("training", [False, True])
def test_experts_are_chosen_with_the_bias_and_weighed_without(chosen, training):
    mixture = experts(chosen).train(training)
    x = torch.randn(2, 7, 8, generator=torch.Generator().manual_seed(1))
    before = mixture.bias.clone()
    with torch.no_grad():
        out, loads = mixture(x), [0] * 4
        for b in range(2):
            for t in range(7):
                score = [1 / (1 + math.exp(-float(r @ x[b, t]))) for r in mixture.router.weight]
                order = sorted(range(4), key=lambda e: -(score[e] + float(before[e])))[:chosen]
                total = sum(score[e] for e in order) if chosen > 1 else 1.0
                expected = sum(score[e] / total * mixture.experts[e](x[b, t]) for e in order)
                assert torch.allclose(out[b, t], expected, atol=1e-5)
                for e in order:
                    loads[e] += 1
    moved = [0.01 * np.sign(14 * chosen / 4 - load) for load in loads] if training else [0.0] * 4
    assert torch.allclose(mixture.bias - before, torch.tensor(moved, dtype=torch.float32), atol=1e-6)


def test_balance_brings_a_neglected_expert_back():
    mixture = experts(1).train()
    mixture.balance = 0.02
    with torch.no_grad():
        mixture.bias.copy_(torch.tensor([0.0, 0.0, -2.0, 0.0]))
        x = torch.randn(8, 32, 8, generator=torch.Generator().manual_seed(1))
        assert (mixture.route(x)[..., 2] > 0).float().mean() == 0
        for _ in range(300):
            mixture(x)
        used = (mixture.eval().route(x) > 0).float().mean((0, 1))
    assert ((used > 0.15) & (used < 0.35)).all()


BLOCKS = {
    "all": {"shared": "all", "loops": 2},
    "middle": {"layers": 3, "shared": "middle", "loops": 2},
    "ngrams": {"ngrams": 64, "ngram_order": 3, "ngram_width": 16},
    "ternary": {"weights": "ternary"},
    "binary": {"weights": "binary"},
    "delta": {"memory": "delta"},
    "experts": {"experts": 3, "inner": 24},
}


@pytest.mark.parametrize("block", BLOCKS)
def test_no_token_sees_what_follows(block):
    model = randomized(Decoder(recipe(**BLOCKS[block]), 320))
    other = IDS.clone()
    other[:, 30:] = 5
    with torch.no_grad():
        a, b, c = model(IDS), model(other), model(IDS[:, :30])
    assert torch.allclose(a[:, :30], b[:, :30], atol=1e-4) and torch.allclose(a[:, :30], c, atol=1e-4)
    assert not torch.allclose(a[:, 30:], b[:, 30:], atol=1e-2)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"shared": "half"}, "none, all, middle"),
        ({"shared": "all"}, "above 1 where layers are shared"),
        ({"loops": 2}, "else 1"),
        ({"shared": "middle", "loops": 2}, "at least 3"),
        ({"experts": 1}, "2 to 64"),
        ({"experts": 3, "chosen": 3}, "fewer than experts"),
        ({"weights": "ternary", "noise": 0.2}, "trained as they are rounded"),
        ({"weights": "binary", "rate_term": 0.2}, "no training changes"),
        ({"weights": "binary", "finish": "int8-zlib"}, "only make larger"),
        ({"memory": "lstm"}, "none, delta"),
        ({"ngram_width": 33}, "to width"),
    ],
)
def test_what_does_not_go_together_is_refused(values, said):
    with pytest.raises(RecipeError, match=said):
        recipe(**values)
