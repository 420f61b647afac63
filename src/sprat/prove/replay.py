"""A recorded proof measured again: each figure the same, within the interval that was claimed, or different."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprat.progress import Progress, silent
from sprat.prove.proof import Proof, prove
from sprat.prove.record import Record, flatten, load
from sprat.prove.settings import Settings

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
        """Nothing compared is nothing held: of another file, a record without intervals has no figure to compare."""
        return bool(self.rows) and all(row.verdict in ("same", "within") for row in self.rows)

    def summary(self) -> str:
        """How many figures are what."""
        if not self.rows:
            return "nothing to compare: the record claims no interval, and the file is another"
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
    recorded = Record(record, load(record))
    where, texts = recorded.file(file), recorded.texts(text)
    settings = replace(recorded.settings, tasks=recorded.tasks(tasks), speed=False)
    source = recorded.original(against, settings.dtype)
    options = {f.name: getattr(settings, f.name) for f in fields(Settings)}
    proof = prove(where, source, texts, progress=progress, loaded=True, **options)
    same = proof.file["sha256"] == recorded.said["file"]["sha256"]
    now = flatten(proof.to_json())
    rows = [
        Row(name, then["value"], then["low"], then["high"], now[name]["value"] if name in now else None)
        for name, then in flatten(recorded.said).items()
        if same or then["low"] is not None
    ]
    return Replay(proof, rows, same)
