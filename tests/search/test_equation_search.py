"""The search on a small text: within the cap, resumed as it would have gone on, and what it writes trains."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from golf.small import documents, recipe, write
from sprat.cli.main import main
from sprat.equations.grammar import parse
from sprat.equations.network import parse as parse_network
from sprat.errors import BudgetError, RecipeError, SourceError, SpratError
from sprat.golf.model import Decoder
from sprat.golf.recipe import Recipe
from sprat.search import proposals, study
from sprat.search.candidate import HEAD, Candidate, network, refuse
from sprat.search.predictor import Ridge, rank_correlation
from sprat.search.search import search
from sprat.search.study import front, guessed
from sprat.search.trial import Outcome
from sprat.sizes import parse_budget

BASE = recipe(vocabulary=320, context=32, batch=4)
RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write(tmp_path_factory.mktemp("text"), documents())


def told(net, text, room, seconds, seed) -> Outcome:
    """A trial that trains nothing: wide and shallow networks are better, hyper networks diverge."""
    recipe = net.recipe
    bad = "hypernetwork" in recipe.equation
    score = 8.0 if bad else 3.0 + recipe.layers / 10 - recipe.width / 1000 - seconds / 100
    return Outcome(score, int(1000 * seconds), seconds, bad)


@pytest.fixture
def toy(monkeypatch):
    """Trials cost no time, but count as if they had."""
    clock = itertools.count(0.0, 0.5)
    monkeypatch.setattr(study, "trial", told)
    monkeypatch.setattr(study, "time", SimpleNamespace(process_time=lambda: float(next(clock))))


def run(text, folder, minutes=1.0, **more):
    return search(text, "40kB", minutes, folder, **{"recipe": BASE, "seconds": 3.0, "seed": 3, **more})


def name(row: dict) -> str:
    return json.dumps(row["candidate"])


def test_a_search_keeps_every_trial_and_its_candidates_fit(toy, text, tmp_path):
    found = run(text, tmp_path / "s")
    head, *lines = (tmp_path / "s" / "trials.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert json.loads(head)["seed"] == 3 and len(rows) == found["trials"] > 40
    room = json.loads(head)["room"]
    for row in rows:
        candidate = Candidate.from_dict(row["candidate"])
        net = network(candidate, BASE, 320, room)
        assert net is not None and net.numbers * candidate.bits <= 8 * room
        assert (net.numbers, net.flops, net.recipe.width) == (row["numbers"], row["flops"], row["width"])
    # Of a generation nine are trained, three go on, one is trained whole.
    for generation in range(max(r["generation"] for r in rows)):
        rungs = [r["rung"] for r in rows if r["generation"] == generation]
        assert [rungs.count(rung) for rung in range(3)] == [9, 3, 1]
        best = sorted(r["bits_per_byte"] for r in rows if (r["generation"], r["rung"]) == (generation, 0))[:3]
        after = {name(r) for r in rows if (r["generation"], r["rung"]) == (generation, 1)}
        kept = [r for r in rows if (r["generation"], r["rung"]) == (generation, 0) and name(r) in after]
        assert sorted(r["bits_per_byte"] for r in kept) == best
    assert found["best"][0]["bits_per_byte"] == min(r["bits_per_byte"] for r in rows if r["rung"] == 2)
    # Later generations start from better ones and are better, and the guess is of use here.
    tried = [r for r in rows if r["rung"] == 0 and not r["diverged"]]
    first, last = (np.mean([r["bits_per_byte"] for r in part]) for part in (tried[:9], tried[-9:]))
    assert last < first and found["rank_correlation_of_guess"] > 0.2
    best = Recipe.read(tmp_path / "s" / "best.toml")
    assert (
        best.equation == found["best"][0]["candidate"]["equation"] and best.width == found["best"][0]["width"]
    )
    svg = (tmp_path / "s" / "pareto.svg").read_text()
    assert svg.startswith("<svg") and "bits a byte" in svg
    assert (tmp_path / "s" / "table.md").read_text().count("\n") == 2 + len(found["best"])


def test_a_search_that_was_stopped_goes_on_as_it_would_have(toy, text, tmp_path):
    run(text, tmp_path / "whole", 1.0)
    run(text, tmp_path / "parts", 0.3)
    path = tmp_path / "parts" / "trials.jsonl"
    path.write_text(path.read_text() + '{"generation": 1, "ru')  # killed while it wrote
    run(text, tmp_path / "parts", 1.0)

    def trials(folder):
        rows = [
            json.loads(x) for x in (folder / "trials.jsonl").read_text().splitlines()[1:] if x.endswith("}")
        ]
        return [(r["generation"], r["rung"], r["candidate"], r["bits_per_byte"]) for r in rows]

    whole, parts = trials(tmp_path / "whole"), trials(tmp_path / "parts")
    assert len(parts) >= len(whole) - 1 and parts[: len(whole)] == whole[: len(parts)]
    with pytest.raises(SpratError, match="its seed differ"):
        run(text, tmp_path / "parts", seed=4)


def test_a_real_search_writes_a_recipe_that_trains(text, tmp_path, capsys):
    arguments = ["--cap", "40kB", "--text", *map(str, text)]
    shape = ["--set", "vocabulary=320", "--set", "context=32", "--set", "batch=4", "--set", "validation=0.2"]
    assert (
        main(["search", *arguments, *shape, "--minutes", "0.05", "--seconds", "1", "-o", str(tmp_path / "s")])
        == 0
    )
    assert "bits a byte" in capsys.readouterr().out
    best = str(tmp_path / "s" / "best.toml")
    out = tmp_path / "best.sprat"
    assert main(["golf", "train", best, *arguments, "--tokens", "3000", "-o", str(out)]) == 0
    assert out.stat().st_size <= 40_000


def test_proposals_are_formulas_of_the_grammar():
    random = np.random.default_rng(0)
    candidates = [proposals.drawn(random) for _ in range(100)]
    for _ in range(300):
        a, b = (candidates[int(random.integers(len(candidates)))] for _ in range(2))
        candidates.append(
            proposals.changed(random, a) if random.random() < 0.6 else proposals.crossed(random, a, b)
        )
    for candidate in candidates:
        assert parse_network(str(candidate.equation)) == candidate.equation
        assert Candidate.from_dict(json.loads(json.dumps(candidate.to_dict()))) == candidate
    assert len({str(c.equation) for c in candidates}) > 200
    words = " ".join(str(c.equation) for c in candidates).replace("(", " ").split()
    assert {"monarch", "kron", "shared", "polynomial", "@", "+"} <= set(words)


def test_a_part_is_replaced_where_it_stands():
    term = parse("shared(lowrank(2)) + kron(1, 2)")
    inner = proposals._parts(term)[2]
    assert str(inner) == "lowrank(2)"
    assert (
        str(proposals._replaced(term, inner, parse("dense + seeded")))
        == "shared(dense + seeded) + kron(1, 2)"
    )


def test_the_widest_that_fits_is_taken():
    candidate = Candidate(parse_network("dense"), 2, 4)
    widths = {}
    for room in (20_000, 40_000, 80_000):
        net = network(candidate, BASE, 320, room)
        assert net is not None and net.numbers * 4 <= 8 * room
        widths[room] = net.recipe.width
    assert widths[20_000] < widths[40_000] < widths[80_000]
    assert network(candidate, BASE, 320, 100) is None
    assert network(Candidate(parse_network("lowrank(600)"), 2, 4), BASE, 320, 10**9) is None


@pytest.mark.parametrize(
    "formula", ["dense", "attention: lowrank(4); ffn: kron(1, 8); embedding: lowrank(8)"]
)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ngrams": 100},
        {"ngrams": 100, "ngram_width": 32},
        {"activation": "relu2", "finish": "int8-zlib"},
    ],
)
def test_the_numbers_are_those_of_the_model(formula, settings):
    base = recipe(**{"width": 64, "vocabulary": 320, **settings})
    net = network(Candidate(parse_network(formula), 3, 4), base, 320, 40_000)
    assert net is not None and net.recipe.width >= max(base.ngram_width, HEAD)
    with torch.device("meta"):
        model = Decoder(net.recipe, 320)
    assert net.numbers == sum(p.numel() for p in model.parameters())


def test_every_recipe_is_searched_within_the_cap_or_refused():
    """Of those that are shipped."""
    refused = set()
    for path in sorted(RECIPES.glob("*.toml")):
        base = Recipe.read(path)
        try:
            refuse(base)
        except RecipeError as error:
            refused.add(path.stem)
            assert "a search cannot have" in str(error)
            continue
        cap = max(10**6, int(parse_budget(path.stem.split("-")[2]).value))  # golf-cpu-4MB-naive
        net = network(Candidate(parse_network("lowrank(4)"), 3, 4), base, base.vocabulary, cap)
        assert net is not None and net.recipe.ngrams == base.ngrams
        with torch.device("meta"):
            model = Decoder(net.recipe, base.vocabulary)
        assert net.numbers == sum(p.numel() for p in model.parameters()) <= 2 * cap
    assert "golf-cpu-250kB-naive" in refused and "golf-cpu-250kB-ngrams" not in refused


def test_a_search_holds_a_table_of_ngrams(toy, text, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "TRIES", 60)
    base = recipe(vocabulary=320, context=32, batch=4, ngrams=256, ngram_width=32)
    found = run(text, tmp_path / "s", 0.1, recipe=base)
    assert all(row["width"] >= 32 and row["numbers"] > 256 * 32 for row in found["best"])
    assert Recipe.read(tmp_path / "s" / "best.toml").ngrams == 256
    with pytest.raises(BudgetError, match=r"none fits .* ngrams"):
        run(text, tmp_path / "t", recipe=recipe(vocabulary=320, context=32, batch=4, ngrams=1 << 20))


def test_ridge_finds_a_line_and_ranks():
    random = np.random.default_rng(0)
    x = random.normal(size=(40, 6))
    y = x @ np.array([3.0, 0, 0, -1, 0, 0]) + 2
    guess = Ridge(list(x), list(y + 0.01 * random.normal(size=40)))
    new = random.normal(size=(20, 6))
    found = [guess(row) for row in new]
    assert rank_correlation(found, list(new @ np.array([3.0, 0, 0, -1, 0, 0]))) > 0.98
    assert abs(guess(np.zeros(6)) - 2) < 0.2
    assert guessed([]) is None


def test_the_front_holds_what_nothing_cheaper_beats():
    rows = [{"flops": f, "bits_per_byte": b} for f, b in [(1, 3.0), (2, 2.5), (2, 2.6), (3, 2.7), (4, 2.0)]]
    assert [(r["flops"], r["bits_per_byte"]) for r in front(rows)] == [(1, 3.0), (2, 2.5), (4, 2.0)]


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"cap": "50%"}, BudgetError, "number of bytes"),
        ({"cap": "5kB"}, BudgetError, "too small: tokenizer"),
        ({"minutes": 0.0}, RecipeError, "more than 0 minutes"),
        ({"minutes": 0.5}, RecipeError, "too short to tell equations apart"),
        ({"minutes": 1.0, "seconds": 900.0}, RecipeError, "less than one first training"),
        (
            {"recipe": recipe(finish="int8-zlib", activation="relu2")},
            RecipeError,
            "finish = 'int8-zlib'.*must be",
        ),
        ({"recipe": recipe(weights="ternary")}, RecipeError, "weights = 'ternary': an equation does not go"),
        ({"recipe": recipe(teacher="a.sprat")}, RecipeError, "teacher = .*from the text alone"),
    ],
)
def test_what_cannot_be_searched_is_refused(arguments, error, says, text, tmp_path):
    given = {"cap": "40kB", "minutes": 1.0, "recipe": BASE, **arguments}
    with pytest.raises(error, match=says):
        search(text, given.pop("cap"), given.pop("minutes"), tmp_path / "s", **given)


def test_the_command_line_says_what_is_missing(capsys):
    assert main(["search", "--cap", "40kB"]) == 2
    assert "a search needs --minutes, --out" in capsys.readouterr().err


def test_a_search_reads_as_much_of_a_data_set_as_its_recipe_says(monkeypatch, tmp_path):
    rows = [{"text": f"row {i}"} for i in range(90)]
    streamed = SimpleNamespace(load_dataset=lambda name, split, streaming: iter(rows))
    monkeypatch.setitem(sys.modules, "datasets", streamed)
    with pytest.raises(SourceError, match="the text has 1 documents"):
        search(["hub:some/set"], "40kB", 1.0, tmp_path / "s", recipe=replace(BASE, stream=3))
