"""Budgets for memory: what a fit and a plan must stay within beside the file's bytes, or instead of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

import sprat
from sprat import trial
from sprat.errors import BudgetError, RecipeError, UnsupportedError
from sprat.recipe import Recipe
from sprat.run.native import NativeEngine
from sprat.run.price import cache_bytes

RECIPE = Recipe(context=64, tokens=2112)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPRAT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_memory_is_a_budget_too(tiny, tmp_path):
    """Alone, and the nearer of two: what the engine really holds stays within it and uses it."""
    out = tmp_path / "f.sprat"
    result = sprat.fit(tiny.folder, None, out, recipe=replace(RECIPE, trellis=0), ram="40kB", context=40)
    assert result.ram_nbytes is not None and 39_600 <= result.ram_nbytes <= 40_000
    engine = NativeEngine(sprat.open(out), threads=1, context=40)
    held = engine.resident["layout"] + engine.resident["vocabulary"] + 40 * engine.cache_bytes_per_token
    assert held + 4 * 5 * 32 == result.ram_nbytes  # and five norms in float32
    both = sprat.fit(tiny.folder, "22kB", out, recipe=replace(RECIPE, trellis=0), ram="40kB", context=40)
    assert both.ram_nbytes is not None and both.ram_nbytes <= 40_000 and both.nbytes <= 22_000
    assert both.nbytes >= 0.99 * 22_000 or both.ram_nbytes >= 0.99 * 40_000


def test_healing_stays_within_the_memory(tiny, tmp_path):
    """Products that the engine would hold in 16 bits a weight are refused where those do not fit, before any training;
    where they do, nothing is held back for them of a file that memory limits."""
    out, recipe = tmp_path / "f.sprat", replace(RECIPE, trellis=0, heal=32, heal_rank=4)
    with pytest.raises(
        RecipeError, match=r"heal_rank = 4 is not allowed in 36 kB of memory: .*leave it at 0"
    ):
        sprat.fit(tiny.folder, None, out, recipe=recipe, ram="36kB", context=40)
    assert not out.exists()
    recipe = replace(recipe, heal_rank=2, heal_rate=0.005)
    result = sprat.fit(tiny.folder, "19kB", out, recipe=recipe, ram="100kB", context=40)
    # Measured: 63,832 bytes with products, 40,000 without.
    assert result.ram_nbytes is not None and 60_000 < result.ram_nbytes <= 100_000
    assert result.measured_kl < result.unhealed_kl


def test_what_learnt_and_does_not_fit_is_told(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(trial.assembly, "healed", lambda *_: [])
    result = sprat.fit(tiny.folder, "22kB", tmp_path / "f.sprat", recipe=replace(RECIPE, heal=4))
    assert "healing is not kept: with what it learnt no file stays within the budget" in result.warnings


def test_memory_that_does_not_suffice_names_what_would(tiny, tmp_path):
    """The smallest budget and the longest context that are named do work, and less than they does not."""
    out, recipe = tmp_path / "f.sprat", replace(RECIPE, trellis=0)

    def refusal(ram: str, context: int) -> tuple[str, int, int]:
        with pytest.raises(BudgetError, match="tokens would fit") as caught:
            sprat.fit(tiny.folder, None, out, recipe=recipe, ram=ram, context=context)
        numbers = re.search(
            r"works is (?:above )?([0-9,]+) bytes.* ([0-9,]+) tokens would fit", str(caught.value)
        )
        assert numbers is not None and not out.exists()
        floor, tokens = (int(number.replace(",", "")) for number in numbers.groups())
        return str(caught.value), floor, tokens

    said, floor, tokens = refusal("40kB", 4000)
    assert "4,000 tokens (1.15 MB of key-value cache) does not fit into 40,000 bytes of memory" in said
    assert (
        f"works is above {floor:,} bytes" in said and f"less than {tokens} tokens" in said
    )  # before any statistics
    said, floor, _ = refusal("25kB", 40)
    assert f"works is {floor:,} bytes" in said
    result = sprat.fit(tiny.folder, None, out, recipe=recipe, ram=str(floor), context=40)
    assert result.ram_nbytes is not None and result.ram_nbytes <= floor
    out.unlink()
    _, _, tokens = refusal("25kB", 40)
    sprat.fit(tiny.folder, None, out, recipe=recipe, ram="25kB", context=tokens)
    with pytest.raises(BudgetError, match="a budget for the file, for memory"):
        sprat.fit(tiny.folder, None, tmp_path / "f.sprat", recipe=RECIPE)


def test_plans_tell_the_memory_too(tiny, tmp_path):
    recipe, options = replace(RECIPE, trellis=0), {"ram": "40kB", "context": 40}
    (row,) = sprat.plan(tiny.folder, recipe=recipe, **options)
    assert row.budget_bytes is None
    result = sprat.fit(tiny.folder, None, tmp_path / "f.sprat", recipe=recipe, **options)
    assert result.ram_nbytes == pytest.approx(row.predicted_ram_bytes, rel=0.05)
    assert result.nbytes == pytest.approx(row.predicted_bytes, rel=0.1)
    tight, wide = sprat.plan(tiny.folder, ["18kB", "40kB"], recipe=recipe, **options)
    assert (
        tight.predicted_bytes <= 18_000 and tight.predicted_ram_bytes < 0.99 * 40_000
    )  # the file is the limit
    assert (wide.level, wide.predicted_bytes) == (row.level, row.predicted_bytes)  # memory is
    options["context"] = 20
    int8, bf16 = (
        sprat.plan(tiny.folder, recipe=recipe, **options, cache=kind)[0] for kind in ("int8", "bf16")
    )
    assert row.level > bf16.level > int8.level and bf16.predicted_ram_bytes <= 40_000
    with pytest.raises(BudgetError, match="smallest budget that works is"):
        sprat.plan(tiny.folder, recipe=recipe, ram="25kB", context=40)
    with pytest.raises(BudgetError, match="a plan needs budgets"):
        sprat.plan(tiny.folder, recipe=recipe)


def test_memory_of_a_family_that_the_engine_does_not_serve_is_refused(tmp_path):
    GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=32, n_layer=1, n_head=2)).save_pretrained(
        tmp_path / "m"
    )
    with pytest.raises(UnsupportedError, match=r"a budget for memory is one for the native engine.*gpt2"):
        cache_bytes(json.loads((tmp_path / "m" / "config.json").read_text()), 1)


def test_a_budget_below_the_tokenizer_is_refused_before_any_text_is_written(tiny, tmp_path):
    stages: list[str] = []
    with pytest.raises(
        BudgetError, match=r"does not fit into 300 bytes: its tokenizer alone takes [\d,]+ \("
    ):
        sprat.fit(
            tiny.folder, "300", tmp_path / "f", recipe=RECIPE, progress=lambda stage, *_: stages.append(stage)
        )
    assert set(stages) == {"loading the model"}
