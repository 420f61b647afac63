"""Forced zeros, ternary and binary layers from the command line to the engine, on the tiny model."""

from __future__ import annotations

import numpy as np
import pytest

import sprat
from sprat.cli.main import main
from sprat.coding.tensors import Lattice
from sprat.errors import BudgetError, RecipeError
from sprat.recipe import Recipe
from sprat.run.native import NativeEngine
from sprat.run.torch_engine import TorchEngine

BASE = {"context": 64, "tokens": 2048, "heal": 0}
LIMIT = 30_000
CONSTRAINTS = {
    "2:4": {"sparsity": "2:4"},
    "share": {"sparsity": "0.5"},
    "wide": {"sparsity": "8:16"},
    "no trellis": {"sparsity": "4:8", "trellis": 0},
    "ternary": {"method": "ternary"},
    "ternary 2:4": {"method": "ternary", "sparsity": "2:4"},
    "binary": {"method": "binary"},
}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPRAT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def layers_of(artifact) -> list[Lattice]:
    found = (entry.tensor for name, entry in artifact.entries().items() if "embed" not in name)
    return [tensor for tensor in found if isinstance(tensor, Lattice)]


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_the_file_keeps_its_budget_and_its_constraint(tiny, tmp_path, name):
    recipe = Recipe.from_dict(BASE | CONSTRAINTS[name])
    result = sprat.fit(tiny.folder, str(LIMIT), tmp_path / "f.sprat", recipe=recipe)
    assert 0.99 * LIMIT <= result.nbytes <= LIMIT
    artifact = sprat.open(result.path)
    artifact.verify()
    assert artifact.recipe == {**recipe.to_dict(), "level": result.level}
    layers = layers_of(artifact)
    assert len(layers) == 8
    for lattice in layers:
        values = set(np.unique(lattice.q).tolist())
        if recipe.method == "binary":
            assert values <= {-1, 1}
        if recipe.method == "ternary":
            assert values <= {-1, 0, 1}
        if ":" in recipe.sparsity:
            kept, group = map(int, recipe.sparsity.split(":"))
            groups = lattice.q.reshape(len(lattice.q), -1, group)
            assert ((groups != 0).sum(2) <= kept).all()
        if recipe.sparsity == "0.5":
            assert (lattice.q == 0).mean() >= 0.5
        assert (lattice.pattern is not None) == (":" in recipe.sparsity and recipe.sparsity != "8:16")
    (embedding,) = [entry.tensor for name, entry in artifact.entries().items() if "embed" in name]
    assert len(np.unique(embedding.q)) > 8 and embedding.pattern is None
    ids = [5, 60, 130, 290, 7, 9, 300, 41]
    logits = [engine(artifact).all_logits(ids) for engine in (NativeEngine, TorchEngine)]
    # The engine's activations have eight bits.
    assert np.square(logits[0] - logits[1]).mean() < 0.05**2 * np.square(logits[1]).mean()


def test_zeros_cost_quality_at_equal_bytes(tiny, tmp_path):
    """The feasible set shrinks: nothing that is forced is better than nothing forced."""
    found = {}
    for name, change in {"plain": {}, "2:4": {"sparsity": "2:4"}, "ternary": {"method": "ternary"}}.items():
        recipe = Recipe.from_dict(BASE | change)
        found[name] = sprat.fit(tiny.folder, str(LIMIT), tmp_path / "f.sprat", recipe=recipe).measured_kl
    assert found["plain"] < found["2:4"] < found["ternary"]


def test_budgets_of_settled_layers(tiny, tmp_path):
    """Too small: the smallest is named, and works. Larger than useful: said."""
    recipe = Recipe.from_dict(BASE | {"method": "ternary"})
    with pytest.raises(BudgetError, match=r"smallest budget that works is [\d,]+ bytes") as error:
        sprat.fit(tiny.folder, "12000", tmp_path / "f.sprat", recipe=recipe)
    smallest = int(str(error.value).split("works is ")[1].split(" bytes")[0].replace(",", ""))
    assert 12_000 < smallest < LIMIT
    assert sprat.fit(tiny.folder, str(smallest), tmp_path / "f.sprat", recipe=recipe).nbytes <= smallest
    assert not list(tmp_path.glob("*.part"))
    wide = sprat.fit(tiny.folder, "42000", tmp_path / "f.sprat", recipe=recipe)
    assert any("buy nothing" in warning for warning in wide.warnings)
    rows = sprat.plan(tiny.folder, ["30000", "42000"], recipe=recipe)
    assert rows[0].predicted_kl > rows[1].predicted_kl == pytest.approx(wide.predicted_kl, rel=0.5)
    assert rows[1].predicted_bytes == pytest.approx(wide.nbytes, rel=0.03)


def test_memory_is_weighed_too(tiny, tmp_path):
    recipe = Recipe.from_dict(BASE | {"method": "ternary", "trellis": 0})
    result = sprat.fit(tiny.folder, None, tmp_path / "f.sprat", recipe=recipe, ram="80kB", context=64)
    assert result.ram_nbytes is not None and result.ram_nbytes <= 80_000


def test_the_flags_set_the_recipe(tiny, tmp_path, capsys):
    out = tmp_path / "f.sprat"
    argv = ["fit", str(tiny.folder), "--budget", str(LIMIT), "-o", str(out), "--set", "context=64"]
    argv += ["--set", "tokens=2048", "--set", "heal=0"]
    assert main([*argv, "--method", "ternary", "--sparsity", "2:4"]) == 0
    recipe = sprat.open(out).recipe
    assert (recipe["method"], recipe["sparsity"]) == ("ternary", "2:4")
    capsys.readouterr()
    assert main([*argv, "--sparsity", "5:4"]) != 0
    assert "5:4" in capsys.readouterr().err
    assert main([*argv, "--method", "ternery"]) != 0
    assert "'ternary'" in capsys.readouterr().err


def test_a_pattern_that_divides_nothing_is_refused_before_anything_long(tiny, tmp_path):
    with pytest.raises(RecipeError, match=r"2:5 does not divide model\.layers\.0.* 32; .*2:4"):
        sprat.fit(tiny.folder, str(LIMIT), tmp_path / "f.sprat", recipe=Recipe(sparsity="2:5"))
    with pytest.raises(RecipeError, match=r"8:24 does not divide model\.layers\.0.* 32; .*5:16"):
        sprat.fit(tiny.folder, str(LIMIT), tmp_path / "f.sprat", recipe=Recipe(sparsity="8:24", ffn=0.8))
    with pytest.raises(RecipeError, match=r"8:128 does not divide"):
        sprat.fit(tiny.folder, str(LIMIT), tmp_path / "f.sprat", recipe=Recipe(sparsity="8:128", ffn=0.5))


@pytest.mark.parametrize(("pattern", "ffn", "left"), [("2:4", 0.8, 52), ("8:16", 0.8, 48), ("2:4", 0.99, 64)])
def test_of_the_neurons_whole_groups_of_the_pattern_stay(tiny, tmp_path, pattern, ffn, left):
    """Of 64 neurons."""
    recipe = Recipe(context=64, tokens=2112, heal=0, sparsity=pattern, ffn=ffn)
    sprat.fit(tiny.folder, str(LIMIT), tmp_path / "f.sprat", recipe=recipe)
    with sprat.open(tmp_path / "f.sprat") as artifact:
        assert artifact.provenance["structure"]["ffn"] == {"of": 64, "kept": left}
        kept, group = map(int, pattern.split(":"))
        for lattice in layers_of(artifact):
            groups = lattice.q.reshape(len(lattice.q), -1, group)
            assert ((groups != 0).sum(axis=2) <= kept).all()
