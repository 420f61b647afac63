"""What a healing keeps of a file: forced zeros, few values, products, what was learnt from, and where it stopped."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import sprat.heal as healing
from sprat.coding import container, entropy
from sprat.coding.tensors import Dense, Entry, Lattice, LowRank
from sprat.errors import RecipeError
from sprat.heal import checkpoint_path, heal
from sprat.level.planner import candidates
from sprat.methods import METHODS
from sprat.methods.metric import Metric
from sprat.prove.honesty import calibration_overlap
from sprat.prove.text import read
from sprat.recipe import Recipe
from sprat.source.load import load
from sprat.source.maps import groups
from sprat.training.checkpoint import Checkpoint

PLAIN = {"context": 64, "held_out": 2, "trellis": 0}
PRODUCTS = PLAIN | {"method": "waterlevel+lowrank", "rank": 2}
OPTIONS = {"contexts": 16, "tokens": 512, "budget": "100%"}


def rounded(folder, path, values, level=0.02):
    """A file by the recipe of `values`, every map in a metric that knows nothing."""
    recipe, source = Recipe.from_dict(values), load(folder)

    def lattice(w, recipe):
        metric = Metric(torch.eye(w.shape[1]), torch.ones(len(w)), name="map")
        return METHODS[recipe.method](w, metric, level, recipe, entropy.prior_tables())

    entries = {}
    for group in groups(source.model):
        w = torch.cat([m.weight() for m in group.maps]).detach().float()
        maps, rows = zip(*((m.name, m.shape[0]) for m in group.maps), strict=True)
        entries[maps[0]] = Entry(maps, rows, lattice(w, recipe))
    layers = {name for entry in entries.values() for name in entry.maps}
    for name, parameter in source.model.named_parameters():
        w = parameter.detach().float()
        if name not in layers:
            stored = Dense(w.numpy().copy(), "f32") if w.ndim == 1 else lattice(w, recipe.unconstrained())
            entries[name] = Entry((name,), (len(w),), stored)
    container.write(
        path,
        config=json.loads((folder / "config.json").read_text()),
        entries=entries,
        recipe=recipe.to_dict(),
        provenance={"model": "tiny", "model_sha256": source.hash, "calibration": {"source": "self"}},
    )
    return path


def stored(path):
    with container.open(path) as artifact:
        return artifact.entries()


@pytest.fixture
def always_better(monkeypatch):
    """What was trained is kept whatever it is worth, and of a deep healing the integers."""
    values = (1 / n if n < 3 else 1.0 for n in range(1, 10))
    monkeypatch.setattr(healing, "kl_between", lambda *_: next(values))


@pytest.mark.parametrize(
    "change",
    [
        {"sparsity": "2:4"},
        {"sparsity": "8:16"},
        {"sparsity": "0.5"},
        {"method": "ternary", "sparsity": "2:4"},
        {"method": "binary"},
    ],
    ids=str,
)
def test_a_deep_heal_keeps_what_the_recipe_claims(tiny, tmp_path, always_better, change):
    file = rounded(tiny.folder, tmp_path / "f.sprat", PLAIN | change)
    out = tmp_path / "out.sprat"
    options = OPTIONS | {"contexts": 80, "calibrate": str(tiny.text)}
    result = heal(file, tiny.folder, out, deep=True, rate=0.1, **options)
    assert result.kept
    before, after = stored(file), stored(out)
    moved = 0
    for name, entry in after.items():
        if isinstance(entry.tensor, Dense):
            continue
        assert isinstance(entry.tensor, Lattice)
        q, was = entry.tensor.q, before[name].tensor.q
        moved += int((q != was).sum())
        if "embed" in name:
            assert np.abs(q).max() > 1
            continue
        values = set(np.unique(q).tolist())
        if "method" in change:
            assert values <= ({-1, 1} if change["method"] == "binary" else {-1, 0, 1})
        if ":" in change.get("sparsity", ""):
            kept, group = map(int, change["sparsity"].split(":"))
            assert ((q.reshape(len(q), -1, group) != 0).sum(2) <= kept).all()
        if change.get("sparsity") == "0.5":
            assert (q == 0).mean() >= 0.5
        assert (entry.tensor.pattern is None) == (before[name].tensor.pattern is None)
    assert moved > 100


@pytest.mark.parametrize("trellis", [0, 4])
def test_products_heal(tiny, tmp_path, trellis):
    file = rounded(tiny.folder, tmp_path / "f.sprat", PRODUCTS | {"trellis": trellis}, 0.1)
    out = tmp_path / "out.sprat"
    options = OPTIONS | {"contexts": 32, "calibrate": str(tiny.text)}
    result = heal(file, tiny.folder, out, rate=0.01, **options)
    assert result.kept and result.kl < 0.9 * result.before_kl
    before, after = stored(file), stored(out)
    products = [name for name, entry in before.items() if isinstance(entry.tensor, LowRank)]
    assert len(products) == 8
    for name in products:
        for old, new in zip(before[name].tensor.lattices, after[name].tensor.lattices, strict=True):
            assert not np.array_equal(old.dense(), new.dense())
        assert np.array_equal(before[name].tensor.rest.q, after[name].tensor.rest.q)


def test_products_and_what_does_not_go_with_them(tiny, tmp_path):
    file = rounded(tiny.folder, tmp_path / "f.sprat", PRODUCTS)
    for options in ({"deep": True}, {"rank": 2}):
        with pytest.raises(RecipeError, match=r"recipe: heal_.* low-rank method"):
            heal(file, tiny.folder, tmp_path / "no.sprat", **OPTIONS, **options)
    with container.open(file) as artifact:
        recipe = Recipe(**PLAIN).to_dict()  # as of a file that was healed with --rank
        container.write(
            file,
            config=artifact.config,
            entries=artifact.entries(),
            recipe=recipe,
            provenance=artifact.provenance,
        )
    for options in ({"deep": True}, {"rank": 2}):
        with pytest.raises(
            RecipeError, match=r"f.sprat has products of low rank .* leave out --rank and --deep"
        ):
            heal(file, tiny.folder, tmp_path / "no.sprat", **OPTIONS, **options)
    assert any("low rank" in c.name for c in candidates(Recipe(method="auto", trellis=0), 4))
    assert not any("low rank" in c.name for c in candidates(Recipe(method="auto", heal_rank=1), 4))


@pytest.mark.parametrize("kind", ["deep", "products"])
def test_stopped_and_resumed_gives_the_same_file(tiny, tmp_path, monkeypatch, kind):
    """What only some files or healings have is in the checkpoint too."""
    file = rounded(tiny.folder, tmp_path / "f.sprat", PLAIN if kind == "deep" else PRODUCTS)
    options = OPTIONS | {"deep": kind == "deep", "calibrate": str(tiny.text), "rate": 0.1}
    monkeypatch.setattr(healing, "CHECKPOINT_SECONDS", 0.0)
    # Kept whatever it is worth: a file that is the given one would say nothing.
    made: list[bytes] = []
    save, out = Checkpoint.save, tmp_path / "out.sprat"

    def stopping(self, state):
        save(self, state)
        if state["step"] == 2:
            raise KeyboardInterrupt

    for stop in (False, True):
        values = (1 / n if n < 3 else 1.0 for n in range(1, 10))
        if stop:
            monkeypatch.setattr(Checkpoint, "save", stopping)
            with pytest.raises(KeyboardInterrupt):
                heal(file, tiny.folder, out, **options)
            assert checkpoint_path(out).is_file() and not out.exists()
            monkeypatch.setattr(Checkpoint, "save", save)
        monkeypatch.setattr(healing, "kl_between", lambda *_, values=values: next(values))
        assert heal(file, tiny.folder, out, resume=stop, **options).kept
        made.append(out.read_bytes())
        out.unlink()
    assert made[0] == made[1]
    assert made[0] != file.read_bytes()


def test_a_second_heal_keeps_what_the_first_learnt_from(tiny, tmp_path, monkeypatch):
    file = rounded(tiny.folder, tmp_path / "f.sprat", PLAIN)
    other = tmp_path / "other.txt"
    other.write_text(
        "entirely different words that nobody has ever put into this very order before now " * 60
    )
    for n, text in enumerate((tiny.text, other), 1):
        values = iter((1.0, 0.5))
        monkeypatch.setattr(healing, "kl_between", lambda *_, values=values: next(values))
        out = tmp_path / f"{n}.sprat"
        heal(file, tiny.folder, out, calibrate=str(text), **OPTIONS | {"contexts": 2})
        file = out
    with container.open(file) as artifact:
        said = artifact.provenance
    assert [one["source"] for one in said["heal"]] == ["text.txt", "other.txt"]
    for text in (tiny.text, other):
        found = calibration_overlap(said, [read(text)])
        assert found == {"source": "self, text.txt, other.txt", "overlap": 1.0}
    # As files of one healing had it.
    assert calibration_overlap({**said, "heal": said["heal"][0]}, [read(tiny.text)])["overlap"] == 1.0
