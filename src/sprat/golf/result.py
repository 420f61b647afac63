"""The JSON of a golf: what its seeds share, and a row (golf.play) for each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sprat.errors import ProofError
from sprat.golf.recipe import Recipe
from sprat.prove.environment import machine, versions
from sprat.training import devices, processes

if TYPE_CHECKING:
    from sprat.golf.golf import Golf

SCHEMA = "sprat.golf/1"
#: What rows of one result share. Of what results have gained since the first ones: as it was then.
SHARED = ("recipe", "teacher", "cap", "length", "pace", "text", "validation", "processes", "device")
GAINED = {"pace": 0.0, "processes": 1, "device": "cpu"}


def result(game: Golf, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What is written of `game` once `runs` are over."""
    given = game.corpus
    return {
        "schema": SCHEMA,
        "recipe": game.recipe.to_dict(),
        "cap": game.cap,
        "length": {"kind": game.length.kind, "amount": game.length.amount},
        "pace": game.length.pace,
        "teacher": game.teacher,
        "text": {
            "documents": len(given.train),
            "bytes": sum(len(d.encode()) for d in given.train),
            "hash": given.hash,
            "dropped": given.dropped,
        },
        "validation": {
            "documents": len(given.validation),
            "bytes": sum(len(d.encode()) for d in given.validation),
            "hash": given.validation_hash,
        },
        "runs": runs,
        "threads": torch.get_num_threads(),
        "processes": processes.count(),
        "device": devices.said(game.device),
        "versions": versions(),
        "machine": machine(),
    }


def read(path: Path) -> dict[str, Any]:
    """A golf's JSON; ProofError for anything else."""
    try:
        found = json.loads(path.read_bytes())
        if found["schema"] == SCHEMA and found["runs"]:
            return found
    except FileNotFoundError:
        raise ProofError(f"there is no result {path}") from None
    except (ValueError, KeyError, TypeError):
        pass
    raise ProofError(
        f"{path} is no result of a golf: give the JSON that `sprat golf train` wrote beside its file"
    )


def unlike(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Of SHARED what two results do not: their rows do not belong together."""
    a, b = _plain(a), _plain(b)
    return [name for name in SHARED if a[name] != b[name]]


def _plain(result: dict[str, Any]) -> dict[str, Any]:
    """With every key that recipes and results have now; a teacher is its content, wherever it lies."""
    recipe = Recipe.from_dict(result["recipe"]).to_dict()
    path = recipe.pop("teacher")
    return {"teacher": path, **GAINED, **result, "recipe": recipe}


def counted_by(result: dict[str, Any]) -> str:
    """What a training's length is counted by: tokens, the clock, or a pace in its place."""
    if result["length"]["kind"] == "tokens":
        return "tokens"
    return "a pace" if result.get("pace") else "the clock"


def figures(out: Path) -> Path:
    """The JSON beside a golf's file: tiny.json of tiny.sprat, tiny.v2.json of tiny.v2."""
    return (
        out.with_suffix(".json") if out.suffix in (".sprat", ".golf") else out.with_name(f"{out.name}.json")
    )


def finished(game: Golf, out: Path) -> dict[int, dict[str, Any]]:
    """Seed -> the row of a training of this golf that is over and whose file is there."""
    path = figures(out)
    if not path.exists():
        return {}
    before, now = read(path), result(game, [])
    if unlike(before, now):
        return {}
    rows = {row["seed"]: row for row in before["runs"]}
    return {seed: row for seed, row in rows.items() if (out.parent / row["file"]).is_file()}
