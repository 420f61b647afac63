"""A recorded proof measured again: each figure the same, within the interval that was claimed, or different."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprat.errors import ProofError, SourceError
from sprat.progress import Progress, silent
from sprat.prove.environment import sha256
from sprat.prove.proof import RESULT, SCHEMA, Proof, original, prove
from sprat.prove.settings import Settings
from sprat.recipe import Recipe

if TYPE_CHECKING:
    from sprat.source.load import Source

#: Relative difference up to which a figure is the same: what another order of float32 sums makes of it.
SAME = 1e-4
#: For figures without an interval (a maximum, a layer on a few contexts), which lean on few positions.
SAME_ALONE = 1e-2


@dataclass(frozen=True)
class Row:
    """One figure then and now; low and high are None where the record claims no interval."""

    name: str
    then: float
    low: float | None
    high: float | None
    now: float | None

    @property
    def verdict(self) -> str:
        """same | within | different | missing (not measured this time)"""
        if self.now is None:
            return "missing"
        alone = self.low is None or self.high is None
        if math.isclose(self.then, self.now, rel_tol=SAME_ALONE if alone else SAME, abs_tol=1e-7):
            return "same"
        return "within" if not alone and self.low <= self.now <= self.high else "different"  # type: ignore[operator]


@dataclass(frozen=True)
class Replay:
    """What came of it. same_file: the file is the record's, byte for byte; another one (fitted again, say) has only
    its figures with intervals compared."""

    proof: Proof
    rows: list[Row]
    same_file: bool

    @property
    def holds(self) -> bool:
        return all(row.verdict in ("same", "within") for row in self.rows)

    def summary(self) -> str:
        """How many figures are what."""
        count = {verdict: sum(row.verdict == verdict for row in self.rows) for verdict in ("same", "within")}
        rest = len(self.rows) - sum(count.values())
        return (
            f"{len(self.rows)} figures: {count['same']} same, {count['within']} within their intervals, "
            f"{rest} different"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, schema `sprat.replay/1`."""
        figures = [vars(row) | {"verdict": row.verdict} for row in self.rows]
        said = {"holds": self.holds, "same_file": self.same_file, "figures": figures}
        return {"schema": "sprat.replay/1"} | said


def replay(
    record: str | Path,
    file: str | Path | None = None,
    against: str | Path | Source | None = None,
    text: Sequence[str | Path] = (),
    tasks: Sequence[str] = (),
    progress: Progress = silent,
) -> Replay:
    """Measure the proof in the folder `record` again, with its settings.

    file, against, text, tasks: where these lie now, if not where the record says; `against` may be the model itself, as
    `sprat.prove.proof.original` gives it. Raises `ProofError` where one is missing, or where the text, the model or a
    task's file is not the record's.
    """
    said = load(record)
    folder = Path(record) if Path(record).is_dir() else Path(record).parent
    where = _file(said, folder, record, file)
    sources = [str(place) for place in _same(_texts(said), folder, record, text, "text", "--text TEXT")]
    settings = replace(_settings(said), tasks=_tasks(said, folder, record, tasks), speed=False)
    source = _original(said, against, settings.dtype, record)
    options = {f.name: getattr(settings, f.name) for f in fields(Settings)}
    proof = prove(where, source, sources, progress=progress, loaded=True, **options)
    same = proof.file["sha256"] == said["file"]["sha256"]
    now = flatten(proof.to_json())
    rows = [
        Row(name, then["value"], then["low"], then["high"], now[name]["value"] if name in now else None)
        for name, then in flatten(said).items()
        if same or then["low"] is not None
    ]
    return Replay(proof, rows, same)


def load(record: str | Path) -> dict[str, Any]:
    """The result.json of a proof's folder. `ProofError` for what is none, saying what else it is."""
    path = Path(record)
    path = path / RESULT if path.is_dir() else path
    if not path.is_file():
        raise ProofError(f"{record} is no proof's folder: it has no {RESULT}{_others(Path(record))}")
    try:
        said = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ProofError(f"{path} is no JSON: {error}") from error
    schema = said.get("schema") if isinstance(said, dict) else None
    if schema == "sprat.quality/1":
        commands = "\n".join(f"  {run['command']} --record NEW" for run in said.get("commands", []))
        raise ProofError(
            f"{path} holds rows of the quality benchmark ({schema}), each of which fits a file anew; it is measured "
            f"again, and compared row by row, by\n{commands}"
        )
    if schema != SCHEMA:
        raise ProofError(
            f"{path} is no record that can be replayed: its schema is {schema!r}, not {SCHEMA!r}{_made_by(said)}"
        )
    lacks = [part for part in ("file", "against", "text", "settings", "metrics") if part not in said]
    lacks += [name for name in ("tokens", "context", "skip") if not lacks and name not in said["settings"]]
    if lacks:
        raise ProofError(f"{path} is not whole: it lacks {lacks[0]!r}")
    return said


def flatten(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every figure of a proof's JSON by name, {value, low, high}; speeds and times, which no record can promise, are
    left out."""
    found: dict[str, Any] = dict(result["metrics"])
    for part in result.get("positions") or []:
        found[f"kl at {part['from']} to {part['to']}"] = part["kl"]
    for part in result.get("frequencies") or []:
        found[f"kl of the {part['name']}"] = part["kl"]
    for part in result.get("layers") or []:
        found[f"kl of {part['name']} alone"] = part["kl"]
    if result.get("generations"):
        found["tokens until generations differ"] = result["generations"]["divergence"]
    for task in result.get("tasks") or []:
        by_bytes = {f"{name} by bytes": figure for name, figure in task.get("acc_norm", {}).items()}
        for name, figure in (task | by_bytes).items():
            if name.startswith(("accuracy_", "difference", "perplexity_")):
                found[f"{task['name']}: {name}"] = figure
    return {
        name: figure if isinstance(figure, dict) else {"value": figure, "low": None, "high": None}
        for name, figure in found.items()
        if figure is not None
    }


def _made_by(said: Any) -> str:
    """The commands that a record of another kind says it was made with."""
    runs = said.get("commands", [said]) if isinstance(said, dict) else []
    commands = [run["command"] for run in runs if isinstance(run, dict) and "command" in run]
    return ". It was made by\n" + "\n".join(f"  {command}" for command in commands) if commands else ""


def _file(said: dict[str, Any], folder: Path, record: str | Path, given: str | Path | None) -> Path:
    if given is not None:
        return Path(given)
    found = _find(said["file"]["path"], folder)
    if found is None:
        raise ProofError(
            f"the record's file {said['file']['path']} is missing ({said['file']['bytes']:,} bytes, sha256 "
            f"{said['file']['sha256'][:12]}…). Say where it is: {_hint(record)} FILE; or fit it again from "
            f"{said['against']['ref']} {_recipe(said.get('recipe') or {})}"
        )
    return found


def _recipe(recorded: dict[str, Any]) -> str:
    """How a recipe is asked for on the command line: what is not as it is by default."""
    plain = Recipe().to_dict()
    other = {name: value for name, value in recorded.items() if name in plain and value != plain[name]}
    said = " ".join(f"--set {shlex.quote(f'{name}={json.dumps(value)}')}" for name, value in other.items())
    return f"with {said}" if other else "with the default recipe"


def _original(
    said: dict[str, Any], given: str | Path | Source | None, dtype: str, record: str | Path
) -> Source:
    """The record's model; `ProofError` where it is missing or another."""
    wanted = said["against"]
    try:
        source = original(given or wanted["ref"], dtype) if isinstance(given, str | Path | None) else given
    except SourceError as error:
        raise ProofError(
            f"the record's model {wanted['name']} (hash {wanted['hash'][:12]}…) is missing: {error}. "
            f"Say where it is: {_hint(record)} --against MODEL"
        ) from error
    if source.hash != wanted["hash"]:
        raise ProofError(
            f"{source.ref} is not the record's model {wanted['name']}: its hash is {source.hash[:12]}…, the "
            f"record's {wanted['hash'][:12]}…; give the one that was measured: {_hint(record)} --against MODEL"
        )
    return source


def _settings(said: dict[str, Any]) -> Settings:
    known: dict[str, Any] = {
        f.name: said["settings"][f.name] for f in fields(Settings) if f.name in said["settings"]
    }
    known["tasks"] = tuple(known.get("tasks", ()))
    return Settings(**known)


def _texts(said: dict[str, Any]) -> list[dict[str, Any]]:
    return said["text"].get("files") or [said["text"]]


def _tasks(said: dict[str, Any], folder: Path, record: str | Path, given: Sequence[str]) -> tuple[str, ...]:
    """The record's tasks by name, those that are files by where they lie now."""
    names = list(_settings(said).tasks)
    found = {task["source"]["path"]: task["source"] for task in said.get("tasks") or [] if task.get("source")}
    local = [name for name in names if name in found]
    places = _same([found[name] for name in local], folder, record, given, "task", "--tasks FILE")
    return tuple(str(places[local.index(name)]) if name in found else name for name in names)


def _same(
    recorded: list[dict[str, Any]],
    folder: Path,
    record: str | Path,
    given: Sequence[str | Path],
    what: str,
    option: str,
) -> list[Path]:
    """Where the record's files {path, bytes, sha256} lie, each checked by its hash."""
    if given and len(given) != len(recorded):
        raise ProofError(
            f"the record has {len(recorded)} {what}s in files, and {len(given)} are given: give all, in its order"
        )
    places = []
    for i, one in enumerate(recorded):
        place = Path(given[i]) if given else _find(one["path"], folder)
        if place is None or not place.is_file():
            raise ProofError(
                f"the record's {what} {one['path']} is missing ({one['bytes']:,} bytes, sha256 "
                f"{one['sha256'][:12]}…). Say where it is: {_hint(record)} {option}"
            )
        if sha256(place) != one["sha256"]:
            raise ProofError(
                f"{place} is not the record's {what}: its sha256 is {sha256(place)[:12]}…, the record's "
                f"{one['sha256'][:12]}…; give the one that was measured: {_hint(record)} {option}"
            )
        places.append(place)
    return places


def _find(path: str, folder: Path) -> Path | None:
    """Where the record says, or beside the record."""
    return next(
        (place for place in (Path(path), folder / path, folder / Path(path).name) if place.is_file()), None
    )


def _hint(record: str | Path) -> str:
    return f"sprat prove --replay {shlex.quote(str(record))}"


def _others(folder: Path) -> str:
    """What else is measured in a folder of records, and the command that does it again."""
    commands = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            said = json.loads(path.read_text("utf-8"))
        except ValueError:
            continue
        if isinstance(said, dict) and said.get("schema") == "sprat.bench/1":
            commands.append(
                f"  sprat bench {said['file']} --threads {said['threads']} --runs {said['runs']} --json"
            )
    if not commands:
        return ""
    return (
        ". It has speeds (sprat.bench/1), which are this machine's own; measure them again with\n"
        + "\n".join(commands)
    )
