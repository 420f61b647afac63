"""Products of thin lattices: what they hold, alone and beside a lattice, in a file and in the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import correlated, distortion

import sprat
from sprat.coding import container, entropy
from sprat.coding.tensors import Entry, Lattice, LogScale, LowRank, lattices
from sprat.errors import FormatError, RecipeError
from sprat.methods import METHODS
from sprat.methods.lowrank import beside_lattice, product
from sprat.methods.metric import Metric
from sprat.methods.waterlevel import round_to_level
from sprat.recipe import Recipe
from sprat.run.engine import open_engine
from sprat.run.price import weights_bytes

PRIOR = entropy.prior_tables()


def rank_three(m: int = 60, n: int = 48) -> tuple[Any, Any, Any]:
    _, h, g = correlated(m, n)
    random = torch.Generator().manual_seed(1)
    return torch.randn(m, 3, generator=random) @ torch.randn(3, n, generator=random), h, g


def test_a_matrix_of_rank_three_is_a_product_of_rank_three() -> None:
    w, h, g = rank_three()
    level, recipe = 0.02, Recipe(method="lowrank", rank=3)
    stored = beside_lattice(w, Metric(h, g), level, Recipe(method="waterlevel+lowrank", rank=3), PRIOR)
    whole = round_to_level(w, Metric(h, g), level, Recipe(), PRIOR)
    assert stored.rest is not None
    # Three numbers a row and a column have a part of the full lattice's noise, at a fraction of its bits.
    assert distortion(w, stored.dense(), h, g) < 1.1 * distortion(w, whole.dense(), h, g)
    assert sum(entropy.cost_bits(x, PRIOR) for x in lattices(stored)) < 0.5 * entropy.cost_bits(whole, PRIOR)
    exact = product(w, Metric(h, g), level, recipe, PRIOR)
    assert distortion(w, exact.dense(), h, g) < 1e-4 * distortion(w, np.zeros(w.shape, np.float32), h, g)


def test_alone_it_is_the_nearest_product_in_the_metric() -> None:
    """Eckart and Young: what a truncated SVD leaves out is the sum of the squares of the other singular values."""
    w, h, g = correlated(30, 20)
    s = torch.linalg.svdvals(g.sqrt()[:, None].double() * w.double() @ torch.linalg.cholesky(h.double()))
    for rank in (1, 5, 19):
        stored = product(w, Metric(h, g), 0.0, Recipe(method="lowrank", rank=rank), PRIOR)
        least = float(s[rank:].square().sum())
        assert least < distortion(w, stored.dense(), h, g) < 1.15 * least


def test_left_is_the_least_squares_fit_behind_a_rounded_right() -> None:
    w, h, g = correlated(30, 20)
    stored = beside_lattice(w, Metric(h, g), 1e-5, Recipe(method="waterlevel+lowrank", rank=5), PRIOR)
    right = torch.from_numpy(stored.right.dense()).double()
    root = torch.linalg.cholesky(h.double())
    best = torch.linalg.lstsq((right @ root).T, (w.double() @ root).T).solution.T
    assert torch.allclose(
        torch.from_numpy(stored.left.dense()).double(), best, atol=1e-3 * float(best.abs().max())
    )


def test_the_rest_holds_what_the_product_leaves() -> None:
    w, h, g = correlated(40, 32)
    for rank in (1, 4):
        recipe = Recipe(method="waterlevel+lowrank", rank=rank)
        stored = beside_lattice(w, Metric(h, g), 0.05, recipe, PRIOR)
        plain = round_to_level(w, Metric(h, g), 0.05, Recipe(), PRIOR)
        assert distortion(w, stored.dense(), h, g) == pytest.approx(
            distortion(w, plain.dense(), h, g), rel=0.1
        )


@pytest.mark.parametrize("rank", [1, 33])
def test_an_impossible_rank_is_refused(rank: int) -> None:
    w, h, g = correlated(40, 32)
    if rank == 1:
        with pytest.raises(RecipeError, match="rank = 0"):
            Recipe(method="lowrank")
        with pytest.raises(RecipeError, match="rank = 1 is not allowed"):
            Recipe(rank=1)
        return
    with pytest.raises(RecipeError, match=r"rank = 33 does not suit layers.0.q of \(40, 32\): 1 to 32"):
        product(w, Metric(h, g, name="layers.0.q"), 0.1, Recipe(method="lowrank", rank=rank), PRIOR)


def replaced(path: Path, out: Path, method: str) -> dict[str, Entry]:
    """The file at `path` with every map of a layer as `method` stores it."""
    with sprat.open(path) as artifact:
        entries, files = artifact.entries(), {n: artifact.file(n) for n in artifact.files}
        config, recipe = artifact.config, Recipe(method=method, rank=4)
    for name, entry in entries.items():
        if "layers" in name and isinstance(entry.tensor, Lattice):
            w = torch.from_numpy(entry.tensor.dense())
            eye, even = torch.eye(w.shape[1]), torch.ones(len(w))
            stored = METHODS[method](w, Metric(eye, even, name=name), 0.01, recipe, PRIOR, 1)
            entries[name] = Entry(entry.maps, entry.rows, stored, entry.transposed)
    container.write(out, config=config, entries=entries, recipe={}, provenance={}, file_extra=files)
    return entries


@pytest.mark.parametrize("method", ["lowrank", "waterlevel+lowrank"])
def test_a_file_of_products_opens_and_computes(tiny: Any, tmp_path: Path, method: str) -> None:
    entries = replaced(tiny.file, tmp_path / "low.sprat", method)
    with sprat.open(tmp_path / "low.sprat") as artifact:
        artifact.verify()
        forms = {"lowrank": {"left", "right"}, "waterlevel+lowrank": {"left", "right", "lattice"}}[method]
        kinds = artifact.ledger().by_kind()
        assert forms <= set(kinds) and artifact.ledger().total == artifact.nbytes
        for name, entry in artifact.entries().items():
            assert np.array_equal(entry.tensor.dense(), entries[name].tensor.dense())
        ids = [3, 1, 4, 1, 5, 9, 2, 6]
        native, torch_ = (open_engine(artifact, 1, kind=kind) for kind in ("native", "torch"))
        got, want = native.all_logits(ids), torch_.all_logits(ids)
        assert np.abs(got - want).max() < 0.05 * np.abs(want).max()
        resident: Any = native
        assert weights_bytes(entries) == pytest.approx(sum(resident.resident.values()), rel=0.2)


def thin(m: int, n: int) -> Lattice:
    w = torch.randn(m, n, generator=torch.Generator().manual_seed(0))
    return round_to_level(w, Metric(torch.eye(n), torch.ones(m)), 0.1, Recipe(), PRIOR)


def test_parts_that_do_not_meet_are_refused() -> None:
    with pytest.raises(ValueError, match="does not meet"):
        LowRank(thin(20, 4), thin(5, 20))
    with pytest.raises(ValueError, match="rest has shape"):
        LowRank(thin(20, 4), thin(4, 20), thin(20, 19))


def test_a_file_may_not_claim_a_matrix_out_of_nothing(tmp_path: Path) -> None:
    """Two vectors of 10,000 would stand for 10^8 weights."""
    zeros = LogScale(np.zeros(10_000, np.int32), 1), np.zeros(10_000, np.uint8)
    one = LogScale(np.zeros(1, np.int32), 1), np.zeros(1, np.uint8)
    left = Lattice(np.zeros((10_000, 1), np.int16), zeros[0], one[0], zeros[1], one[1])
    right = Lattice(np.zeros((1, 10_000), np.int16), one[0], zeros[0], one[1], zeros[1])
    with pytest.raises(ValueError, match="too large a matrix"):
        LowRank(left, right)
    forged = LowRank.__new__(LowRank)
    for name, value in (("left", left), ("right", right), ("rest", None)):
        object.__setattr__(forged, name, value)
    path = tmp_path / "bomb.sprat"
    container.write(
        path, config={}, entries={"x": Entry(("x",), (10_000,), forged)}, recipe={}, provenance={}
    )
    with sprat.open(path) as artifact, pytest.raises(FormatError, match=r"'x'.*too large a matrix"):
        artifact.entry("x")
