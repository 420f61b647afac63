"""A shape from an equation: counted, written, run by its products as the reference runs it, and refused clearly."""

from __future__ import annotations

import pytest
import torch

from sprat.anatomy.shape import from_numbers
from sprat.cli.main import main
from sprat.coding import container
from sprat.equations.network import parse
from sprat.equations.terms.monarch import Monarch
from sprat.errors import RecipeError
from sprat.run.model import to_torch
from sprat.search import decode, instantiate
from sprat.search.instantiate import count_of, default, numbers_of
from sprat.search.instantiate import write as write_numbers

SHAPE = from_numbers(64, 3, 160, 300, 4, 2, tied=True)


def test_the_claimed_shape_fits_into_417_million_numbers():
    shape = from_numbers(4096, 64, 16384, 50257, tied=True)
    chosen = default(shape, 417_000_000)
    assert 400_000_000 < numbers_of(chosen, shape) <= 417_000_000
    assert 41 < shape.parameters / numbers_of(chosen, shape) < 44
    # One grid more would not fit.
    assert isinstance(chosen.ffn, Monarch)
    more = Monarch(chosen.ffn.blocks + 1)
    assert numbers_of(type(chosen)(more, more, chosen.embedding), shape) > 417_000_000


@pytest.mark.parametrize(
    "formula",
    ["monarch(4); embedding: lowrank(8)", "scaled(shared(dense)) + lowrank(2)", "kron(2, 8) + seeded"],
)
def test_what_runs_is_what_the_file_says(formula, tmp_path):
    path = tmp_path / "f.sprat"
    nbytes = write_numbers(parse(formula), SHAPE, path)
    assert nbytes == path.stat().st_size
    model = decode.load(path, torch.float32)
    assert sum(p.numel() for p in model.parameters()) == numbers_of(parse(formula), SHAPE)
    with container.open(path) as artifact:
        reference = to_torch(artifact)
    ids = torch.randint(0, 300, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = reference(input_ids=ids).logits[0]
    text = decode.Text(model)
    torch.testing.assert_close(text.append(ids[0, :5].tolist()), expected[4], atol=1e-4, rtol=1e-4)
    for at in range(5, 20):
        torch.testing.assert_close(text.append([int(ids[0, at])]), expected[at], atol=1e-4, rtol=1e-4)
    # It keeps the variance of what goes in: random numbers give finite, spread logits.
    assert 1e-3 < expected.std() < 10


def test_no_dense_matrix_is_made(tmp_path, monkeypatch):
    path = tmp_path / "f.sprat"
    write_numbers(parse("monarch(4); embedding: lowrank(8)"), SHAPE, path)
    model = decode.load(path, torch.float32)

    def never(*_: object) -> None:
        raise AssertionError("a dense matrix was made")

    monkeypatch.setattr(Monarch, "dense", never)
    assert decode.Text(model).append([1, 2, 3]).isfinite().all()


def test_instantiate_measures_and_computes(tmp_path, monkeypatch):
    # In this process: starting another takes longer than all the rest.
    monkeypatch.setattr(instantiate, "_measured", decode.figures)
    found = instantiate.instantiate(SHAPE, 40_000, tmp_path / "f.sprat", threads=1, tokens=3)
    assert found["numbers"] <= 40_000 and found["bytes"] == (tmp_path / "f.sprat").stat().st_size
    assert found["dense"]["numbers"] == SHAPE.parameters + 2 * 3 * 16
    assert found["tokens_per_second"] > 0 and len(found["ids"]) == 3
    assert 2 * found["numbers"] <= found["resident"] < 3 * found["numbers"] < found["peak"]


def test_what_does_not_fit_is_refused(tmp_path, capsys):
    with pytest.raises(RecipeError, match="more than the 40,000 allowed"):
        instantiate.instantiate(SHAPE, 40_000, tmp_path / "f.sprat", equation="dense")
    with pytest.raises(RecipeError, match="no default equation has at most 100 numbers"):
        default(SHAPE, 100)
    with pytest.raises(RecipeError, match="417M"):
        count_of("many")
    assert count_of("417M") == 417_000_000 and count_of("1.5B") == 1_500_000_000 and count_of("9,000") == 9000
    shape = [
        "--width",
        "64",
        "--layers",
        "3",
        "--ffn",
        "160",
        "--vocab",
        "300",
        "--heads",
        "4",
        "--kv-heads",
        "2",
    ]
    assert main(["search", "count", *shape, "--equation", "monark(4)"]) == 2
    assert "did you mean 'monarch'" in capsys.readouterr().err
    assert main(["search", "count", *shape, "--equation", "monarch(4)"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"numbers in all {numbers_of(parse('monarch(4)'), SHAPE):,} " in said
    assert "dense: numbers" in said
    assert not list(tmp_path.iterdir())
