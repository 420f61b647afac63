"""Recipes: strict, frozen, and the same from TOML, from keywords and back."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from sprat.errors import RecipeError
from sprat.methods import METHODS, find
from sprat.recipe import Recipe


def test_defaults_are_allowed_and_survive_a_round_trip() -> None:
    recipe = Recipe()
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert recipe.method in METHODS
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.trellis = 8  # type: ignore[misc]


def test_every_field_is_explained() -> None:
    source = Path(__import__("sprat.recipe").recipe.__file__).read_text(encoding="utf-8")
    for field in dataclasses.fields(Recipe):
        assert re.search(rf'^    {field.name}: \w+ = .*\n    """', source, re.MULTILINE), field.name


def test_toml_and_settings(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('trellis = 0\norder = "descending"\nshrinkage = 2\nrow_steps = false\n', encoding="utf-8")
    recipe = Recipe.read(path)
    assert (recipe.trellis, recipe.order, recipe.row_steps) == (0, "descending", False)
    assert type(recipe.shrinkage) is float and recipe.shrinkage == 2
    assert Recipe.read(path, {"shrinkage": 0.5}).shrinkage == 0.5
    assert Recipe.read(None) == Recipe()
    assert Recipe.read(None, {"tokens": 9}) == Recipe(tokens=9)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trelis": 4}, r"unknown key 'trelis' \(did you mean 'trellis'\?\); known: method, "),
        ({"qqqq": 4}, r"unknown key 'qqqq'; known: "),
        ({"tokens": 1.5}, r"tokens must be int, not 1\.5"),
        ({"tokens": True}, "tokens must be int, not True"),
        ({"feedback": 1}, "feedback must be bool, not 1"),
        ({"shrinkage": "1"}, "shrinkage must be float, not '1'"),
        ({"order": None}, "order must be str, not None"),
        ({"trellis": 2}, "trellis = 2 is not allowed; it must be 0, 4 or 8"),
        ({"block": 0}, "block = 0 is not allowed; it must be 1 to 128"),
        ({"block": 129}, "block = 129"),
        ({"context": 15}, "context = 15"),
        ({"tokens": -1}, "tokens = -1 .* 0 or more"),
        ({"held_out": 0}, "held_out = 0"),
        ({"shrinkage": 0.0}, r"shrinkage = 0\.0 .* above 0"),
        ({"shrinkage": float("nan")}, "shrinkage = nan"),
        ({"rate_weight": -0.1}, r"rate_weight = -0\.1"),
        ({"row_floor": 2.0}, r"row_floor = 2\.0"),
        ({"vocabulary_floor": 0.0}, r"vocabulary_floor = 0\.0"),
        ({"scale_resolution": 257}, "scale_resolution = 257"),
        ({"order": "random"}, 'order = \'random\' .* "natural" or "descending"'),
        ({"order": "descending", "trellis": 4}, r"order = 'descending' .*\(set trellis = 0\)"),
        ({"dense_type": "f64"}, "dense_type = 'f64'"),
    ],
    ids=str,
)
def test_refusals_name_what_is_allowed(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.from_dict(values)


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(
        RecipeError, match=r"unknown method 'watrelevel' \(did you mean 'waterlevel'\?\); known: "
    ):
        find("watrelevel")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "golf-4MB-naive.toml").touch()
    with pytest.raises(
        RecipeError, match=r"no recipe .*golf-4MB\.toml \(did you mean 'golf-4MB-naive\.toml'\?\)"
    ):
        Recipe.read(tmp_path / "golf-4MB.toml")
    with pytest.raises(RecipeError, match=r"there is no recipe .*zzz\.toml$"):
        Recipe.read(tmp_path / "zzz.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("trellis = \n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"bad\.toml: not TOML: "):
        Recipe.read(bad)
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match=r"bad\.toml: not TOML: "):
        Recipe.read(bad)
