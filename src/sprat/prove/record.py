"""A recorded proof: its result.json, and where the file, the model, the texts and the tasks that it names lie now."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprat.errors import ProofError, SourceError
from sprat.prove.environment import sha256
from sprat.prove.proof import RESULT, SCHEMA, original
from sprat.prove.settings import Settings
from sprat.recipe import Recipe

if TYPE_CHECKING:
    from sprat.source.load import Source


@dataclass(frozen=True)
class Record:
    """The record in a folder. said: what `load` reads there.

    What a method is given is where a thing lies now; without it, it is looked for where the record says and beside the
    record. ProofError where it is missing, or not the record's.
    """

    place: str | Path
    said: dict[str, Any]

    @property
    def settings(self) -> Settings:
        """As they were measured with; tasks by the names that they had."""
        found = self.said["settings"]
        known: dict[str, Any] = {f.name: found[f.name] for f in fields(Settings) if f.name in found}
        known["tasks"] = tuple(known.get("tasks", ()))
        return Settings(**known)

    def file(self, given: str | Path | None) -> Path:
        """The .sprat, which may be another one when it is given."""
        if given is not None:
            return Path(given)
        wanted, against = self.said["file"], self.said["against"]
        found = self._find(wanted["path"])
        if found is None:
            raise ProofError(
                f"the record's file {_called(wanted)}. Say where it is: {self._hint} FILE; or fit it again from "
                f"{against['ref']} {_recipe(self.said.get('recipe') or {})}"
            )
        return found

    def original(self, given: str | Path | Source | None, dtype: str) -> Source:
        """The model."""
        wanted = self.said["against"]
        try:
            source = (
                original(given or wanted["ref"], dtype) if isinstance(given, str | Path | None) else given
            )
        except SourceError as error:
            raise ProofError(
                f"the record's model {wanted['name']} (hash {wanted['hash'][:12]}…) is missing: {error}. "
                f"Say where it is: {self._hint} --against MODEL"
            ) from error
        if source.hash != wanted["hash"]:
            raise ProofError(
                f"{source.ref} is not the record's model {wanted['name']}: its hash is {source.hash[:12]}…, the "
                f"record's {wanted['hash'][:12]}…; give the one that was measured: {self._hint} --against MODEL"
            )
        return source

    def texts(self, given: Sequence[str | Path]) -> list[str]:
        """The texts, in the record's order."""
        said = self.said["text"]
        return self._same(said.get("files") or [said], given, "text", "--text TEXT")

    def tasks(self, given: Sequence[str]) -> tuple[str, ...]:
        """The tasks by name, those that are files by where they lie now."""
        found = {
            task["source"]["path"]: task["source"]
            for task in self.said.get("tasks") or []
            if task.get("source")
        }
        local = [name for name in self.settings.tasks if name in found]
        places = self._same([found[name] for name in local], given, "task", "--tasks FILE")
        now = dict(zip(local, places, strict=True))
        return tuple(now.get(name, name) for name in self.settings.tasks)

    def _same(
        self, recorded: list[dict[str, Any]], given: Sequence[str | Path], what: str, option: str
    ) -> list[str]:
        """Where files {path, bytes, sha256} lie, each checked by its hash."""
        if given and len(given) != len(recorded):
            raise ProofError(
                f"the record has {len(recorded)} {what}s in files, and {len(given)} are given: give all, in its order"
            )
        places = []
        for i, one in enumerate(recorded):
            place = Path(given[i]) if given else self._find(one["path"])
            if place is None or not place.is_file():
                raise ProofError(
                    f"the record's {what} {_called(one)}. Say where it is: {self._hint} {option}"
                )
            if sha256(place) != one["sha256"]:
                raise ProofError(
                    f"{place} is not the record's {what}: its sha256 is {sha256(place)[:12]}…, the record's "
                    f"{one['sha256'][:12]}…; give the one that was measured: {self._hint} {option}"
                )
            places.append(str(place))
        return places

    def _find(self, path: str) -> Path | None:
        folder = Path(self.place) if Path(self.place).is_dir() else Path(self.place).parent
        places = (Path(path), folder / path, folder / Path(path).name)
        return next((place for place in places if place.is_file()), None)

    @property
    def _hint(self) -> str:
        return f"sprat prove --replay {shlex.quote(str(self.place))}"


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
    try:
        figures = _read_through(Record(record, said))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProofError(f"{path} is not whole: {type(error).__name__}: {error}") from None
    if not figures:
        raise ProofError(f"{path} has no figure that could be measured again")
    return said


def _read_through(record: Record) -> int:
    """Touch all that a replay reads, as a record may have been edited by hand; the number of its figures."""
    said, _ = record.said, record.settings
    _ = [said["against"][key] for key in ("ref", "name", "hash")]
    tasks = [task["source"] for task in said.get("tasks") or [] if (task.get("source") or {}).get("path")]
    for part in (said["file"], *(said["text"].get("files") or [said["text"]]), *tasks):
        _called(part)
    figures = flatten(said)
    for figure in figures.values():
        ends = [end for end in (figure["low"], figure["high"]) if end is not None]
        _ = [math.isfinite(number) for number in (figure["value"], *ends)]
    return len(figures)


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


def _called(missing: dict[str, Any]) -> str:
    return f"{missing['path']} is missing ({missing['bytes']:,} bytes, sha256 {missing['sha256'][:12]}…)"


def _recipe(recorded: dict[str, Any]) -> str:
    """How a recipe is asked for on the command line: what is not as it is by default."""
    plain = Recipe().to_dict()
    other = {name: value for name, value in recorded.items() if name in plain and value != plain[name]}
    said = " ".join(f"--set {shlex.quote(f'{name}={json.dumps(value)}')}" for name, value in other.items())
    return f"with {said}" if other else "with the default recipe"


def _made_by(said: Any) -> str:
    """The commands that a record of another kind says it was made with."""
    runs = said.get("commands", [said]) if isinstance(said, dict) else []
    commands = [run["command"] for run in runs if isinstance(run, dict) and "command" in run]
    return ". It was made by\n" + "\n".join(f"  {command}" for command in commands) if commands else ""


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
