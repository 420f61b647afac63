"""Recipes beside each other: seeds in turns, one row at once, the table that comes of it."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from bench import golf
from golf.small import RECIPE, documents, write

TOML = "\n".join(f"{k} = {json.dumps(v)}" for k, v in RECIPE.items() if k != "fit") + "\n"


@pytest.fixture
def arguments(tmp_path):
    write(tmp_path, documents(30, 30))
    (tmp_path / "tiny.toml").write_text(TOML + "[fit]\ntokens = 1024\nheal = 0\n")
    (tmp_path / "tiny-naive.toml").write_text(TOML + 'activation = "relu2"\nfinish = "int8-zlib"\n')
    (tmp_path / "tiny-wild.toml").write_text(TOML + "matrix_rate = 1.0\nembedding_rate = 1.0\nclip = 0\n")
    names = ("tiny-naive", "tiny-wild", "tiny")
    return [
        *("--record", str(tmp_path / "record"), "--files", str(tmp_path / "files")),
        *("--recipes", *(str(tmp_path / f"{name}.toml") for name in names)),
        *("--cap", "40kB", "--tokens", "10000", "--text", *(str(p) for p in tmp_path.glob("story-*.txt"))),
    ]


def test_seeds_take_turns_and_a_run_that_is_cut_off_goes_on(arguments, tmp_path, monkeypatch):
    played: list[tuple[str, int]] = []
    real = golf.play

    def play(game, out, seed, *rest):
        if len(played) == 4:
            raise KeyboardInterrupt
        played.append((out.stem, seed))
        return real(game, out, seed, *rest)

    monkeypatch.setattr(golf, "play", play)
    with pytest.raises(KeyboardInterrupt):
        golf.main([*arguments, "--seeds", "2"])
    assert [seed for _, seed in played] == [0, 0, 0, 1]
    before = json.loads((tmp_path / "record" / "tiny-naive.json").read_text())["runs"]
    monkeypatch.setattr(golf, "play", real)
    assert golf.main([*arguments, "--seeds", "2"]) == 0
    after = json.loads((tmp_path / "record" / "tiny-naive.json").read_text())
    assert after["runs"] == before and [run["seed"] for run in before] == [0, 1]
    page = (tmp_path / "record" / "README.md").read_text()
    dense = next(line for line in page.splitlines() if line.startswith("| [dense](tiny.toml) | 2 |"))
    naive = next(line for line in page.splitlines() if line.startswith("| [naive](tiny-naive.toml) | 2 |"))
    assert "native" in dense and "torch" in naive and naive.count(" ± ") == 2 and " to " in naive
    assert "- wild, seed 0: the training diverged at step" in page and str(tmp_path) not in page
    # Another cap is another table.
    assert golf.main([*arguments, "--cap", "50kB"]) == 1
    (tmp_path / "record" / "README.md").unlink()
    assert golf.main([*arguments, "--only-report"]) == 0 and (tmp_path / "record" / "README.md").exists()


def test_paced_trainings_read_what_their_steps_cost_beside_the_others(arguments, tmp_path):
    """A recipe of eight times the layers reads fewer tokens in the same time; a second call keeps the paces."""
    layers = RECIPE["layers"]
    deep = (tmp_path / "tiny.toml").read_text().replace(f"layers = {layers}", f"layers = {8 * layers}")
    (tmp_path / "tiny-deep.toml").write_text(deep)
    text = [str(path) for path in tmp_path.glob("story-*.txt")]
    call = [
        "--record",
        str(tmp_path / "paced"),
        "--files",
        str(tmp_path / "files"),
        "--cap",
        "60kB",
        "--text",
        *text,
    ]
    call += ["--recipes", str(tmp_path / "tiny.toml"), str(tmp_path / "tiny-deep.toml"), "--seeds", "1"]
    deep = (
        (tmp_path / "tiny-deep.toml")
        .read_text()
        .replace(f"layers = {RECIPE['layers']}", f"layers = {8 * RECIPE['layers']}")
    )
    (tmp_path / "tiny-deep.toml").write_text(deep)
    assert golf.main([*call, "--processor-minutes", "0.02", "--paced"]) == 0
    paces = json.loads((tmp_path / "paced" / "paces.json").read_text())
    found = {name: json.loads((tmp_path / "paced" / f"{name}.json").read_text()) for name in paces}
    assert paces["tiny-deep"] > 2 * paces["tiny"] > 0
    for name, entry in found.items():
        (row,) = entry["runs"]
        step = row["tokens"] / row["steps"]
        assert abs(row["tokens"] * paces[name] - 1.2) <= step * paces[name]
        assert row["seconds"] == pytest.approx(row["tokens"] * paces[name], rel=0.01)
    assert golf.main([*call, "--processor-minutes", "0.02", "--paced"]) == 0
    assert json.loads((tmp_path / "paced" / "paces.json").read_text()) == paces
    assert "steps taken in turns" in (tmp_path / "paced" / "README.md").read_text()
    # By the clock it would be another table.
    assert golf.main([*call, "--processor-minutes", "0.02"]) == 1


def test_recipes_are_timed_on_the_text_that_they_read(arguments, tmp_path, monkeypatch):
    timed = []
    streamed = SimpleNamespace(
        load_dataset=lambda name, split, streaming: ({"text": text} for text in documents(30, 30))
    )
    monkeypatch.setitem(sys.modules, "datasets", streamed)
    monkeypatch.setattr(golf, "paces", lambda recipes, texts, *rest, **more: timed.extend(texts) or {})
    monkeypatch.setattr(golf, "_train", lambda *rest: None)
    call = arguments[: arguments.index("--text")]
    size = len(documents(30, 30)[0])
    (tmp_path / "own.toml").write_text(TOML + f"stream = {6 * size}\ntext = 'hub:some/set'\n")
    call[call.index("--recipes") + 1 : call.index("--cap")] = [str(tmp_path / "own.toml")]
    golf.main([*call, "--paced"])
    assert 3 <= len(timed) <= 8
