"""Operations of Fourier transforms, those of the numbers themselves included: by watching what a product calls."""

from __future__ import annotations

import math

import pytest
import torch

from sprat.anatomy.shape import from_numbers
from sprat.equations.grammar import parse
from sprat.equations.maps import Maps
from sprat.equations.network import parse as parse_network
from sprat.equations.term import Space
from sprat.equations.terms import TERMS


@pytest.mark.parametrize(
    "formula",
    ["circulant(1)", "circulant(4)", "circulant(5)", "toeplitz(1)", "toeplitz(4)", "scaled(shared(toeplitz(3)))",
     "polynomial(1, circulant(4)) + toeplitz(2)", "circulant(3) @ toeplitz(2)", "mixture(3, circulant(2))"],
)  # fmt: skip
@pytest.mark.parametrize("inputs", [1, 5])
def test_the_transforms_of_a_product_are_counted(formula, inputs, monkeypatch):
    """Those of the numbers too, which are made for every product: by watching what it calls."""
    term, space, made = parse(formula), Space(13, 7, 4), []

    def watched(transform):
        def run(x, length):
            made.append(x[..., 0].numel() * math.ceil(2.5 * length * math.log2(length)))
            return transform(x, length)

        return run

    monkeypatch.setattr(torch.fft, "rfft", watched(torch.fft.rfft))
    monkeypatch.setattr(torch.fft, "irfft", watched(torch.fft.irfft))
    maps = Maps(term, space)
    maps.begin(torch.Generator().manual_seed(0))
    term.product(maps.values(), space, 0, torch.randn(inputs, space.columns))
    transforms = sum(made)
    # What is left are multiplications and sums, as many for each x: with transforms that cost nothing.
    for kind in ("circulant", "toeplitz"):
        monkeypatch.setattr(TERMS[kind], "_transform", 0)
    assert term.once(space) == 0
    rest = inputs * term.flops(space)
    monkeypatch.undo()
    assert inputs * term.flops(space) + term.once(space) == rest + transforms


def test_one_token_pays_for_the_transforms_of_the_numbers():
    shape = from_numbers(64, 3, 64, 300, tied=True)
    blocks = 7 * (64 // 4) ** 2  # of the seven square maps of a layer
    transforms, products = 20 * (blocks + 7 * 2 * 16), 8 * 3 * blocks
    assert parse_network("circulant(4)").flops(shape) == 3 * (transforms + products) + 2 * 300 * 64
