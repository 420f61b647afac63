"""A trained equation in a file: within the cap, its factors and not the matrices, and read back as it was."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from golf.small import documents, recipe, write
from sprat.coding import container
from sprat.errors import StatisticsError
from sprat.fit import FitResult
from sprat.golf import factors
from sprat.golf.golf import golf
from sprat.golf.model import Decoder
from sprat.golf.pretrained import config
from sprat.golf.schedule import Length
from sprat.golf.score import score_file
from sprat.run.export import export
from sprat.run.model import to_torch

CAP = 14_000
#: Bits a byte after a few steps; knowing nothing costs 2.7, and these end between 1.2 and 1.5.
LEARNT = 1.7


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write(tmp_path_factory.mktemp("text"), documents())


@pytest.mark.parametrize(
    "formula",
    [
        "attention: lowrank(4); ffn: scaled(shared(monarch(4))); embedding: lowrank(8)",
        "circulant(4)",
        "polynomial(1, kron(2, 8)) + seeded",
    ],
)
def test_a_golf_of_an_equation_ends_in_the_cap(formula, text, tmp_path):
    chosen, out = recipe(equation=formula), tmp_path / "small.sprat"
    result = golf(chosen, text, str(CAP), Length("tokens", 6000), out)
    (row,) = result["runs"]
    assert row["bytes"] == out.stat().st_size <= CAP
    assert row["engine"] == "torch" and row["bits_per_byte"] < LEARNT
    # What is stored are the factors: as many numbers as the decoder has, and no others.
    with container.open(out) as artifact:
        assert sum(line.weights for line in artifact.ledger().lines) == row["parameters"]
        read = to_torch(artifact)
    model = Decoder(chosen, row["vocabulary"], 0).eval()
    model.load_state_dict({name: value for name, value in read.state_dict().items() if "lm_head" not in name})
    ids = torch.arange(50)[None]
    with torch.no_grad():
        torch.testing.assert_close(read(input_ids=ids).logits, model(ids))
    # An export has the parameters in their own shapes, whatever they were folded into.
    folder = export(out, "hf", tmp_path / "hf", "float32")
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, model(ids))
    # The file scores what the model that it was made from scored, but for the rounding.
    assert abs(row["bits_per_byte"] - row["bits_per_byte_before"]) < 0.01
    assert score_file(out, documents()[:2]).bits_per_byte < LEARNT


def speaking(formula: str) -> Decoder:
    """A model that nobody trained, but that says something."""
    model = Decoder(recipe(equation=formula), 320, 0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def written(path, ids: torch.Tensor, cap: int = CAP) -> FitResult:
    model, chosen = speaking("lowrank(8)"), recipe(equation="lowrank(8)")
    return factors.into_cap(model, config(chosen, 320, 0), chosen.fit_recipe(), b"", ids, cap, path, 0)


def test_statistics_that_lie_are_not_written_silently(tmp_path, monkeypatch):
    """Measured on one token, again and again, they call free what other text needs."""
    lying = torch.randint(0, 320, (64, 32), generator=torch.Generator().manual_seed(0))
    lying[factors.HELD_OUT :] = 0
    with pytest.raises(StatisticsError, match=r"times worse .* predict .* nothing was written"):
        written(tmp_path / "a.sprat", lying)
    assert not list(tmp_path.iterdir())
    # Where more shrinkage mends it, a warning says so, and the file keeps what it was rounded with.
    told = iter([9.0, 0.0])
    monkeypatch.setattr(factors, "divergence", lambda *_: next(told))
    result = written(tmp_path / "b.sprat", lying)
    (warning,) = result.warnings
    assert "fitted again with shrinkage 24" in warning and result.nbytes <= CAP
    with container.open(result.path) as artifact:
        assert artifact.recipe["shrinkage"] == 24


def test_what_the_cap_holds_as_it_is_is_not_rounded(tmp_path):
    """Statistics that lie have no say in it; the file is read back as bf16, whatever the factors' shapes."""
    lying = torch.zeros(64, 32, dtype=torch.long)
    formula = "attention: lowrank(4); ffn: scaled(shared(monarch(4)))"
    model, chosen, out = speaking(formula), recipe(equation=formula), tmp_path / "a.sprat"
    numbers = sum(p.numel() for p in model.parameters())
    result = factors.into_cap(model, config(chosen, 320, 0), chosen.fit_recipe(), b"", lying, 60_000, out, 0)
    assert result.level == result.predicted_kl == 0 and not result.warnings
    assert result.nbytes == out.stat().st_size < 2 * numbers + 6000 and result.measured_kl < 1e-3
    with container.open(out) as artifact:
        read = to_torch(artifact).state_dict()
    for name, parameter in model.named_parameters():
        assert torch.equal(read[name], parameter.detach().bfloat16().float()), name


def test_the_fisher_metric_predicts_what_rounding_costs():
    chosen, model = recipe(equation="lowrank(8)"), speaking("lowrank(8)")
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 320, (64, 32), generator=generator)
    found = factors.targets(model)
    metrics = factors.measure(model, found, ids, chosen.fit_recipe(), 0)
    predicted = 0.0
    moved = Decoder(chosen, 320, 0).eval()
    moved.load_state_dict(model.state_dict())
    parameters = dict(moved.named_parameters())
    for target, metric in zip(found, metrics, strict=True):
        step = 0.02 * torch.randn(target.w.shape, generator=generator)
        predicted += 0.5 * float(metric.g @ ((step @ metric.h) * step).sum(1))
        with torch.no_grad():
            for name, part in zip(target.names, step.split(target.rows[0]), strict=True):
                parameters[name].add_(part)
    measured = factors.divergence(model, moved, ids)
    assert 0.5 < measured / predicted < 2.0
