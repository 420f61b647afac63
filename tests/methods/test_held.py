"""What integers are held to while they are trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sprat.coding import entropy
from sprat.coding.patterns import Pattern
from sprat.coding.tensors import OFFSET, Lattice, LogScale
from sprat.methods.held import held
from sprat.methods.rate import Rate
from sprat.recipe import Recipe

SIGNS = np.array([[1, -1, 1, 1], [-1, -1, 1, -1]], np.int16)


def lattice(q):
    scales = (LogScale(np.zeros(n, np.int32), 8) for n in q.shape)
    return Lattice(q, *scales, *(np.full(n, OFFSET // 2 + 12, np.uint8) for n in q.shape))


@pytest.mark.parametrize("method", ["binary", "kept"])
def test_signs_are_never_zero(method):
    found = held(lattice(SIGNS), Recipe(method=method))
    value = torch.tensor([[0.2, -0.2, 3.0, -3.0]])
    found.hold(value)
    assert torch.equal(value, torch.tensor([[0.2, -0.2, 1.0, -1.0]]))
    q = found.rounded(value)
    assert q.tolist() == [[1, -1, 1, -1]]
    assert torch.equal(found.smaller(q), q)


def test_of_what_is_kept_only_maps_of_few_values_are_held():
    zero = replace(lattice(SIGNS), q=SIGNS * np.array([0, 1, 1, 1], np.int16))
    for method in ("ternary", "kept"):
        found = held(zero, Recipe(method=method))
        assert (found.few, found.signs) == (True, False)
    assert not held(lattice(3 * SIGNS), Recipe(method="kept")).few
    assert not held(lattice(SIGNS), Recipe()).few


def test_zeros_that_are_forced():
    q = SIGNS * np.array([0, 3, 0, 2], np.int16)
    plain = lattice(q)
    patterned = replace(plain, pattern=Pattern(3, 4, np.array([[0, 1, 1, 1], [0, 1, 1, 1]], bool)))
    for stored, recipe, free in (
        (plain, Recipe(sparsity="0.5"), [0, 1, 0, 1]),
        (patterned, Recipe(sparsity="3:4"), [0, 1, 1, 1]),
        (plain, Recipe(), [1, 1, 1, 1]),
    ):
        value = torch.full((2, 4), 5.0)
        held(stored, recipe).hold(value)
        assert value.tolist() == [[5.0 * f for f in free]] * 2


def test_bits_of_a_pattern_are_what_the_coder_spends():
    random = np.random.default_rng(0)
    mask = np.zeros((40, 32), bool)
    for group in mask.reshape(-1, 4):
        group[random.permutation(4)[:2]] = True
    q = np.rint(random.normal(0, 3, mask.shape)).astype(np.int16) * mask
    made = lattice(q)
    col_class = (made.col_class + random.integers(0, 9, 32)).astype(np.uint8)
    made = replace(made, col_class=col_class, pattern=Pattern(2, 4, mask))
    tables = entropy.Tables.from_counts(entropy.count([made]))
    bits = Rate(tables).bits(made, torch.from_numpy(made.q).float())
    assert float(bits.sum()) == pytest.approx(entropy.cost_bits(made, tables), rel=1e-5)
