"""The peers are what they say: GPTQ against its definition, packing bit for bit, sizes to the byte."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bench.packed import Grouped, pack_bits, read, to_number, unpack_bits, write
from bench.peers import gptq, rtn, signs


def moments(n: int, seed: int = 0) -> torch.Tensor:
    """A well-correlated (n, n) second moment."""
    x = torch.randn(4 * n, n, generator=torch.Generator().manual_seed(seed)).double()
    x = x @ torch.randn(n, n, generator=torch.Generator().manual_seed(seed + 1)).double() / n**0.5 + x
    return (x.T @ x / len(x)).float()


def slow_gptq(
    w: torch.Tensor,
    h: torch.Tensor,
    scale: np.ndarray,
    zero: np.ndarray,
    bits: int,
    group: int,
    order: list[int],
) -> np.ndarray:
    """Optimal brain quantization by the book: each time a new inverse over the columns that are left."""
    w, h = (
        w.double().clone(),
        h.double() + 0.01 * float(h.double().diagonal().mean()) * torch.eye(len(h)).double(),
    )
    q = np.zeros(tuple(w.shape), np.uint8)
    for place, j in enumerate(order):
        left = order[place:]
        inverse = torch.linalg.inv(h[left][:, left])
        s, z = scale[:, j // group].astype(np.float64), zero[:, j // group].astype(np.float64)
        q[:, j] = np.clip(np.rint(w[:, j].numpy() / s) + z, 0, 2**bits - 1)
        error = w[:, j] - torch.from_numpy((q[:, j] - z) * s)
        w[:, left] -= error[:, None] * inverse[0] / inverse[0, 0]
    return q


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_in_order_of_activation_is_optimal_brain_quantization(bits):
    w, h = torch.randn(12, 24, generator=torch.Generator().manual_seed(bits)), moments(24)
    found = gptq.quantize(w, h, bits, group=8, act_order=True, block=5)
    order = torch.argsort(h.diagonal(), descending=True, stable=True).tolist()
    want = slow_gptq(w, h, found.scale, found.zero, bits, 8, order)
    np.testing.assert_array_equal(found.q, want)
    assert order != sorted(order)


def test_gptq_in_natural_order_sets_each_grid_from_updated_weights():
    w, h = torch.randn(12, 24, generator=torch.Generator().manual_seed(7)), moments(24, 3)
    blocks = [gptq.quantize(w, h, 3, group=8, act_order=False, block=b) for b in (1, 5, 8, 24)]
    for found in blocks:
        np.testing.assert_array_equal(
            found.q, slow_gptq(w, h, found.scale, found.zero, 3, 8, list(range(24)))
        )
        np.testing.assert_array_equal(found.scale, blocks[0].scale)
    assert not np.array_equal(blocks[0].scale[:, 1:], rtn.quantize(w, 3, 8).scale[:, 1:])
    np.testing.assert_array_equal(blocks[0].scale[:, 0], rtn.quantize(w, 3, 8).scale[:, 0])


def test_gptq_loses_less_than_rounding_where_inputs_are_correlated():
    w, h = torch.randn(32, 64, generator=torch.Generator().manual_seed(1)), moments(64)

    def loss(x: Grouped) -> float:
        e = torch.from_numpy(x.dense()) - w
        return float(((e @ h) * e).sum())

    assert loss(gptq.quantize(w, h, 3, 16)) < 0.7 * loss(rtn.quantize(w, 3, 16))


def test_gptq_zeroes_columns_that_were_never_active():
    w, h = torch.randn(4, 8, generator=torch.Generator().manual_seed(1)), moments(8)
    h[3], h[:, 3] = 0, 0
    assert (gptq.quantize(w, h, 4, 8).dense()[:, 3] == 0).all()


def test_rounding_stays_within_half_a_step_and_keeps_zero():
    w = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    w[0, :8] = 0
    x = rtn.quantize(w, 4, 8)
    assert x.scale.shape == (6, 3)  # the last group has four columns
    step = np.repeat(x.scale, 8, 1)[:, :20]
    # bf16 scales are off by up to 2**-9, which at 15 steps from zero is a little more than half a step.
    assert (np.abs(x.dense() - w.numpy()) <= step * 0.56).all()
    assert (x.dense()[0, :8] == 0).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packing_has_no_gaps_and_comes_back(bits):
    values = np.random.default_rng(bits).integers(0, 2**bits, (1 << 20) + 13).astype(np.uint8)
    packed = pack_bits(values, bits)
    assert packed.nbytes == -(-len(values) * bits // 8)
    np.testing.assert_array_equal(unpack_bits(packed, bits, len(values)), values)


def test_bf16_rounds_to_nearest_even_as_torch_does():
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    want = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(to_number(values, "bf16"), want)


def test_a_file_weighs_what_it_holds_and_reads_back(tmp_path):
    w = torch.randn(16, 40, generator=torch.Generator().manual_seed(0))
    x = rtn.quantize(w, 3, 16)
    fractional = Grouped(x.q.reshape(-1, 64), np.ones((10, 1), np.float32), np.full((10, 1), 2.5, np.float32),
                         3, 64, (16, 40), "f16")  # fmt: skip
    norm = np.arange(8, dtype=np.float32)
    path = tmp_path / "x.safetensors"
    weight = write(path, {"a": x, "b": fractional}, {"norm": norm}, b"tokens!", {"k": 1})
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    integers, groups = 16 * 40 * 3 // 8, 16 * 3
    zeros = groups * 3 // 8
    assert len(data) == weight.disk
    assert weight.disk - header == (integers + 2 * groups + zeros) + (integers + 2 * 10 + 2 * 10) + 2 * 8 + 7
    assert weight.compressed < weight.disk
    found = read(path)
    np.testing.assert_array_equal(found["a"], x.dense())
    np.testing.assert_array_equal(found["b"], fractional.dense())
    np.testing.assert_array_equal(found["norm"], norm)
    assert set(found) == {"a", "b", "norm"}


def test_entropy_of_the_integers():
    q = np.array([[0, 0, 1, 2]], np.uint8)
    one = np.ones((1, 1), np.float32)
    assert Grouped(q, one, one, 2, 4, (1, 4)).entropy_bits() == pytest.approx(6.0)


def test_signs_are_the_least_squares_of_their_patterns(tmp_path):
    w = torch.randn(3, 20, generator=torch.Generator().manual_seed(1))
    for bits, levels in ((1, (-1, 1)), (2, (-1, 0, 1))):
        found = signs.quantize(w, bits, 8)
        write(tmp_path / "f", {"w": found}, {}, b"", {})
        dense = read(tmp_path / "f")["w"]
        for row in range(3):
            for start in (0, 8, 16):
                part, got = w[row, start : start + 8].numpy(), dense[row, start : start + 8]
                pattern = np.sign(got)
                assert set(pattern) <= set(levels) and (pattern * part >= 0).all()
                best = (part @ pattern) / (pattern @ pattern)
                np.testing.assert_allclose(got, best * pattern, rtol=2**-8)
                if bits == 2:
                    assert np.abs(part[pattern == 0]).max(initial=0) <= 0.7 * np.abs(part).mean()
