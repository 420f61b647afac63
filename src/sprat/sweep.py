"""`sweep`: one model fitted into several budgets from one calibration, and what each is worth."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sprat import assembly, swept
from sprat import budgets as bounds
from sprat import job as jobs
from sprat.errors import BudgetError, RecipeError, SpratError, StatisticsError
from sprat.fit import finish
from sprat.folders import refuse_folder, write_whole
from sprat.job import Job
from sprat.level import bound, predict
from sprat.level.curve import curve
from sprat.level.limits import Limits
from sprat.level.planner import AUTO
from sprat.progress import Progress, silent
from sprat.prove import quality
from sprat.prove import text as texts
from sprat.prove.environment import machine, sha256, versions
from sprat.prove.proof import prove
from sprat.prove.settings import Settings
from sprat.recipe import Recipe
from sprat.run.model import torch_dtype
from sprat.run.tokenizer import from_files
from sprat.sizes import Budget, parse_budget
from sprat.source.load import Source

SCHEMA = "sprat.sweep/1"
#: Sizes at which the prediction and the bound are told, over this range beyond the budgets.
_PLACES, _BEYOND = 25, 1.15


def sweep(
    model: str | Path,
    budgets: Sequence[str | Budget],
    folder: str | Path,
    text: str | Path | None = None,
    calibrate: str | Sequence[str] = "self",
    seed: int = 0,
    recipe: Recipe | None = None,
    progress: Progress = silent,
    *,
    tokens: int | None = None,
    context: int = 512,
    dtype: str = "float32",
    keep: bool = False,
    proofs: Sequence[str | Path] = (),
    device: str = "cpu",
) -> dict[str, Any]:
    """Fit `model` into each of `budgets`, measure each on `text`, and write result.json, README.md and curve.svg.

    model, calibrate, seed, recipe, device: as `sprat.fit` takes them; text, tokens, context, dtype: as `sprat.prove`
    does; without a text, the KL on held-out calibration text stands. keep: leave the .sprat files in `folder` too;
    those that an earlier sweep was asked to keep stay in any case. proofs: records of `sprat.prove` on that text with
    those settings: a file that one is of is not measured again. Returns what result.json holds. Each budget is written
    as soon as it is known, and one that is there already is not fitted again; a budget that cannot be met is a row that
    says so.

    Raises SpratError where `folder` holds a sweep of something else.
    """
    folder, wanted = Path(folder), [parse_budget(b) if isinstance(b, str) else b for b in budgets]
    recipe = recipe or Recipe()
    _refuse(recipe, text)
    torch_dtype(dtype)  # refuses another
    how = Settings(40 * context if tokens is None else tokens, context, context // 2, dtype, seed)
    settings: dict[str, Any] = {
        "calibrate": [calibrate] if isinstance(calibrate, str) else list(calibrate),
        "seed": seed,
        "recipe": recipe.to_dict(),
        "tokens": tokens,
        "context": context,
        "dtype": dtype,
    }
    fixed: dict[str, Any] = {"schema": SCHEMA, "ref": str(model), "settings": settings}
    sample = None if text is None else texts.read(text)
    if sample is not None:
        fixed["text"] = {"path": sample.name, "bytes": sample.nbytes, "sha256": sample.sha256}
    refuse_folder(folder, ("README.md", "curve.svg"))
    proven = swept.proven(proofs, fixed)
    result = swept.resume(folder, fixed)
    rows = {row["budget"]: row for row in result["rows"]}
    every = swept.distinct([*map(parse_budget, rows), *wanted])  # those that an earlier sweep left here too
    result["command"] = swept.command(str(model), every, folder, text, settings, keep, proofs, device)
    missing = [b for b in swept.distinct(wanted) if swept.lost(folder, rows.get(str(b)), text)]

    def refuse(source: Source) -> None:
        """A text that no file can be measured on, before the first of them is fitted."""
        if sample is not None:
            how.contexts(from_files(source.tokenizer_files, source.config), [sample])

    if missing or not result["curve"]:
        job = jobs.start(model, settings["calibrate"], seed, recipe, progress, refuse, device)
        _fit(result, job, missing, folder)
        del job  # the measurements need its memory
    if text is not None:
        _measure(result, folder, model, text, proven, progress)
    swept.leave(folder, result["rows"], keep)
    _tell(result, folder)
    return result


def _tell(result: dict[str, Any], folder: Path) -> None:
    """result.json with its knee, and where a budget was met the picture and the page."""
    result["knee"] = quality.knee(
        [(row["bytes"], quality.kl_of(row)[0]) for row in result["rows"] if "bytes" in row]
    )
    result |= {"versions": versions(), "machine": machine()}
    swept.save(folder, result)
    if any("bytes" in row for row in result["rows"]):
        write_whole(folder / "curve.svg", quality.chart(result).svg())
        write_whole(folder / "README.md", quality.readme(result))


def _refuse(recipe: Recipe, text: str | Path | None) -> None:
    """RecipeError for what no sweep can do."""
    if recipe.vocabulary and text is not None:
        raise RecipeError(
            "a sweep measures the KL on its text, which a file with fewer tokens (the recipe's `vocabulary`) does not "
            "have to its original: leave the text out, and let `sprat prove` compare bits per byte"
        )
    if recipe.method == AUTO:
        raise RecipeError(
            'a sweep fits every budget by one method from one calibration; method = "auto" tries several for each: '
            "name one, or let `sprat fit` choose for each budget"
        )
    recipe.refuse_idle()


def _fit(result: dict[str, Any], job: Job, missing: Sequence[Budget], folder: Path) -> None:
    """The rows of the budgets that are missing, each written as soon as it is known, and the curve of all."""
    result["model"], result["calibration"] = _model(job, result), _calibration(job, result)
    jobs.sense(job, result["settings"]["seed"])
    spreads = assembly.spreads(job)
    for budget in missing:
        row = _fitted(job, spreads, budget, folder)
        result["rows"] = [r for r in result["rows"] if r["budget"] != row["budget"]] + [row]
        swept.save(folder, result)
    result["curve"] = _predicted(job, spreads, [r["bytes"] for r in result["rows"] if "bytes" in r])
    swept.save(folder, result)


def _measure(
    result: dict[str, Any],
    folder: Path,
    model: str | Path,
    text: str | Path,
    proven: dict[str, dict[str, Any]],
    progress: Progress,
) -> None:
    """Prove on the text what is not proven yet, by the result's own settings. proven: as `swept.proven` gives it."""
    how = {name: result["settings"][name] for name in ("tokens", "context", "seed", "dtype")}
    for row in result["rows"]:
        if "bytes" in row and "metrics" not in row:
            proof = proven.get(row["sha256"])
            if proof is None or proof["against"]["hash"] != result["model"]["hash"]:
                proof = prove(folder / row["file"], model, text, progress=progress, **how).to_json()
            row |= {"metrics": proof["metrics"], "scored_tokens": proof["settings"]["scored_tokens"]}
            row["warnings"] += proof["warnings"]
            swept.save(folder, result)


def _fitted(job: Job, spreads: list[predict.Spread], budget: Budget, folder: Path) -> dict[str, Any]:
    """A row: what the fit gave, its file in `folder`; or why there is none."""
    size = budget.bytes(job.source.original_bytes, job.weights)
    file = folder / (re.sub(r"[^A-Za-z0-9.]+", "-", str(budget).replace("%", "pct")) + ".sprat")
    # Its own seconds and warnings; and a fit that distrusts its statistics changes its own job alone.
    own = replace(job, seconds={}, warnings=list(job.warnings))
    row: dict[str, Any] = {"budget": str(budget), "budget_bytes": size}
    try:
        found = finish(own, bounds.nearer(own, Limits(size), spreads), spreads, file)
    except (BudgetError, StatisticsError) as error:
        return row | {"failed": str(error)}
    return row | {
        "bytes": found.nbytes,
        "bits_per_weight": found.bits_per_weight,
        "level": found.level,
        "predicted_kl": found.predicted_kl,
        "held_out_kl": found.measured_kl,
        "seconds": round(sum(found.seconds.values()), 1),
        "sha256": sha256(file),
        "file": file.name,
        "warnings": found.warnings,
    }


def _predicted(job: Job, spreads: list[predict.Spread], sizes: list[int]) -> list[dict[str, Any]]:
    """[{bytes, predicted_kl, bound_kl}] over the sizes and a little beyond; None where a size holds no weights."""
    if not sizes:
        return []
    overhead, fixed, rates = assembly.overhead(job), assembly.fixed(job), curve(job.recipe)
    components = bound.components(job.targets, job.recipe, job.progress)
    out = []
    for size in (
        np.geomspace(min(sizes) / _BEYOND, max(sizes) * _BEYOND, _PLACES).round().astype(int).tolist()
    ):
        level = None
        if size > overhead:
            level = predict.solve_level(
                lambda level: predict.predicted_bits(spreads, level, rates) / 8, size - overhead
            )
        out.append(
            {
                "bytes": size,
                "predicted_kl": level and predict.predicted_kl(spreads, level, rates),
                "bound_kl": components.kl_at(8 * (size - fixed)) if size > fixed else None,
            }
        )
    return out


def _model(job: Job, result: dict[str, Any]) -> dict[str, Any]:
    """The original, which must be the one that is there already."""
    source = job.source
    if "model" in result and result["model"]["hash"] != job.original.hash:
        raise SpratError(
            f"{source.ref} has changed since the first budgets were fitted: choose another folder"
        )
    return {
        "ref": source.ref,
        "name": source.name,
        "hash": job.original.hash,
        "bytes": source.original_bytes,
        "weights": job.weights,
    }


def _calibration(job: Job, result: dict[str, Any]) -> list[str]:
    """SHA-256 of the calibration texts, which must be those that are there already; none of what the model wrote."""
    found = list(job.calibration.text_hashes)
    if result.get("calibration", found) != found:
        raise SpratError(
            f"the calibration text {job.calibration.description} has changed since the first budgets were fitted: "
            "choose another folder"
        )
    return found
