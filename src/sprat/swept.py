"""The folder of a sweep: what it holds already, and the command line that makes it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sprat.errors import SpratError
from sprat.folders import write_whole
from sprat.prove.record import load
from sprat.recipe import Recipe
from sprat.sizes import Budget


def resume(folder: Path, fixed: dict[str, Any]) -> dict[str, Any]:
    """What `folder` holds already, if it is of the same sweep."""
    path = folder / "result.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        return fixed | {"rows": [], "curve": []}
    try:
        before = json.loads(path.read_bytes())
        if not isinstance(before["rows"], list):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise SpratError(f"{path} is no result of a sweep: choose another folder") from None
    for name, value in {**fixed, **fixed["settings"]}.items():
        then = before.get("settings", {}).get(name) if name in fixed["settings"] else before.get(name)
        if name == "text":
            then, value = (t and t.get("sha256") for t in (then, value))
        if name != "settings" and then != value:
            raise SpratError(
                f"{folder} holds a sweep with another {name} ({_difference(then, value)}): choose another folder"
            )
    if ("text" in before) != ("text" in fixed):
        raise SpratError(
            f"{folder} holds a sweep {'with' if 'text' in before else 'without'} a text: choose another folder"
        )
    return before | fixed


def distinct(budgets: Sequence[Budget]) -> list[Budget]:
    """Each once, in their order."""
    return list({str(budget): budget for budget in budgets}.values())


def lost(folder: Path, row: dict[str, Any] | None, text: str | Path | None) -> bool:
    """Whether there is no row, or one that was left unmeasured and whose file is gone."""
    if row is None:
        return True
    unmeasured = text is not None and "bytes" in row and "metrics" not in row
    return unmeasured and not ("file" in row and (folder / row["file"]).is_file())


def leave(folder: Path, rows: list[dict[str, Any]], keep: bool) -> None:
    """Of the rows' files those that this sweep, or an earlier one into `folder`, was asked to keep."""
    for row in rows:
        if "file" in row and keep:
            row["kept"] = True
        elif "file" in row and not row.get("kept"):
            (folder / row.pop("file")).unlink(missing_ok=True)


def command(
    model: str,
    budgets: list[Budget],
    folder: Path,
    text: str | Path | None,
    settings: dict[str, Any],
    keep: bool,
    proofs: Sequence[str | Path],
    device: str,
) -> str:
    """The command line that does the same."""
    words = ["sprat", "sweep", model, "--budgets", ",".join(map(str, budgets)), "--report", str(folder)]
    words += [] if text is None else ["--text", str(text)]
    words += [word for name in settings["calibrate"] for word in ("--calibrate", name)]
    for name in ("seed", "tokens", "context", "dtype"):
        words += [] if settings[name] is None else [f"--{name}", str(settings[name])]
    plain = Recipe().to_dict()
    for name, value in settings["recipe"].items():
        if value != plain[name]:
            words += ["--set", f"{name}={json.dumps(value)}"]
    words += ["--device", device] * (device != "cpu")
    words += ["--proofs", *map(str, proofs)] * bool(proofs)
    return shlex.join(words + ["--keep"] * keep)


def save(folder: Path, result: dict[str, Any]) -> None:
    """Write result.json, its rows in order of size."""
    order = sorted(result["rows"], key=lambda row: row["budget_bytes"])
    result["rows"] = order
    write_whole(
        folder / "result.json", json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )


def proven(records: Sequence[str | Path], fixed: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """SHA-256 of a file -> its proof, all on the sweep's text and by its settings."""
    found = {}
    for record in records:
        proof = load(record)
        settings = dict(fixed["settings"])
        settings["tokens"] = settings["tokens"] or 40 * settings["context"]
        names = ("tokens", "context", "seed", "dtype")
        other = [name for name in names if proof["settings"].get(name) != settings[name]]
        if proof["text"]["sha256"] != fixed.get("text", {}).get("sha256"):
            other.append("text")
        if other:
            raise SpratError(
                f"the proof {record} was measured with another {other[0]} than this sweep: leave it out"
            )
        found[proof["file"]["sha256"]] = proof
    return found


def _difference(then: Any, now: Any) -> str:
    """Of two recipes the settings that differ."""
    if isinstance(then, dict) and isinstance(now, dict):
        other = [name for name in {**then, **now} if then.get(name) != now.get(name)]
        return "; ".join(f"{name} {_short(then.get(name))}, not {_short(now.get(name))}" for name in other)
    return f"{_short(then)}, not {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
