"""What a fit's KL owes to the luck of its calibration text: one budget, texts that the model wrote with other seeds.

A row is a fit, without healing unless it asks for it, whose settings are `seed` (of the text) and fields of the
recipe, such as `context` (tokens a sequence) and `tokens`; its KL is measured on two texts of other kinds, and on one
that the model wrote with a seed that no row has. A row is written down at once; the same command goes on where it was
cut off.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sprat
from bench import texts
from bench.judge import Judge, contexts, ratio
from bench.markdown import interval, table
from bench.record import Record, command_line
from sprat.cli.arguments import settings
from sprat.cli.terminal import bars
from sprat.errors import SpratError
from sprat.folders import write_whole
from sprat.progress import Progress
from sprat.prove.chart import COLOURS, Chart, Series
from sprat.prove.environment import machine, versions
from sprat.prove.text import Contexts
from sprat.recipe import Recipe
from sprat.run.model import to_torch
from sprat.source.load import Source, load
from sprat.source.selftext import write

SCHEMA = "sprat.luck/1"
#: What rows are measured on: texts of bench.texts, which no row is calibrated on, and what the model writes.
FOREIGN, OWN = ("evaluation", "other"), "own"
#: The seed of that.
OWN_SEED = 1_000_003
#: Tokens of a context that is scored.
LENGTH = 512
EXAMPLES = """\
examples:
  python -m bench.luck --rows seed=0 seed=1 seed=2
  python -m bench.luck --rows seed=0 seed=0,context=512,held_out=4 seed=1 seed=1,context=512,held_out=4
  python -m bench.luck --budget 40MB --rows seed=0,heal=64 seed=1,heal=64
  python -m bench.luck --only-report
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        about = {"model": options.model, "budget": options.budget, "contexts": options.contexts}
        record = Record(options.record, about, SCHEMA)
        if not options.only_report:
            _measure(record, options)
        write_whole(options.record / "README.md", page(record))
        if found := course(record):
            write_whole(options.record / "heal.svg", found.svg())
    except SpratError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line("luck", "luck", __doc__, EXAMPLES)
    add = parser.add_argument
    add("model", nargs="?", default="smollm2-135m", help="what sprat.load takes (default %(default)s)")
    add("--budget", default="34MB", help="default %(default)s")
    add("--contexts", type=int, default=10, help="of 512 tokens of each text (default %(default)s)")
    add("--rows", nargs="+", default=["seed=0"], metavar="KEY=VALUE,...", help="default %(default)s")
    add("--only-report", action="store_true", help="README.md anew, nothing measured")
    return parser.parse_args(arguments)


def _measure(record: Record, options: argparse.Namespace) -> None:
    todo = [row for row in options.rows if row not in record.rows]
    if not todo:
        return
    wanted = {row: _settings(row) for row in todo}
    words = ["python", "-m", "bench.luck", options.model, "--budget", options.budget]
    words += ["--contexts", str(options.contexts), "--rows", *options.rows]
    record.begin(shlex.join(words), versions(), machine())
    with tempfile.TemporaryDirectory() as folder, bars() as progress:
        source = load(options.model, dtype=torch.float32)
        judges = _judges(source, Path(folder), options.contexts, progress)
        for row, (seed, recipe) in wanted.items():
            print(f"bench: {row}", file=sys.stderr, flush=True)
            out = Path(folder) / "fitted.sprat"
            fitted = sprat.fit(
                options.model, options.budget, out, seed=seed, recipe=recipe, progress=progress
            )
            with sprat.open(out) as artifact:
                model = to_torch(artifact, "float32")
                scores = {name: judge.score(model, progress) for name, judge in judges.items()}
            about = {"bytes": fitted.nbytes, "predicted_kl": fitted.predicted_kl}
            about["seconds"] = {stage: round(spent, 1) for stage, spent in fitted.seconds.items()}
            record.add(row, about | {"held_out_kl": fitted.measured_kl, **scores})


def _settings(row: str) -> tuple[int, Recipe]:
    """(seed of the text, recipe) of "seed=1,context=256"."""
    given = settings(row.split(","))
    seed = given.pop("seed", 0)
    return seed, Recipe.from_dict({"heal": 0} | given)


def _judges(source: Source, folder: Path, count: int, progress: Progress) -> dict[str, Judge]:
    paths = texts.write(folder / "texts")
    found = {name: contexts(source, paths[name], count, LENGTH) for name in FOREIGN}
    own = write(source, count, LENGTH, seed=OWN_SEED, progress=progress).numpy()
    found[OWN] = Contexts(own, np.ones(count), LENGTH // 2)
    return {name: Judge(source.model, cut, 0, progress) for name, cut in found.items()}


def page(record: Record) -> str:
    """README.md: every row beside the first one."""
    rows, about = record.rows, record.data["settings"]
    first = next(iter(rows), "")
    # Rows of the first record have no text of the model's own.
    names = [name for name in (*FOREIGN, OWN) if all(name in row for row in rows.values())]
    # Rows of the first records have no times.
    timed = any(row.get("seconds", {}).get("healing") for row in rows.values())
    head = ["text", *["healing, s"] * timed, "held out", *(f"KL, {name}" for name in names)]
    head += [f"× {first}, {name}" for name in names]
    lines = [
        [
            name,
            *[f"{row.get('seconds', {}).get('healing', 0):.0f}"] * timed,
            f"{row['held_out_kl']:.4f}",
            *_figures(row, rows[first], names),
        ]
        for name, row in rows.items()
    ]
    remarks = record.path.parent / "remarks.md"
    said = remarks.read_text("utf-8").strip() if remarks.exists() else ""
    calls = "\n".join(f"    {c}" for c in dict.fromkeys(run["command"] for run in record.data["commands"]))
    intro = (
        f"# The luck of the calibration text\n\n{about['model']} at {about['budget']}, not healed where the row does "
        "not say `heal`, calibrated on text that it wrote itself: with which seed, and what else differs from the "
        f"recipe. KL in nats a token on {about['contexts']} contexts of {LENGTH} tokens of State of the Union speeches "
        "(evaluation) and as many of the documentation of Python (other), "
        + "and as many that the model wrote with another seed (own), "
        * (OWN in names)
        + "the second half of each, float32; 95 % intervals over contexts, those of the ratios paired. Held out: on "
        "contexts of the fit's own text."
    )
    curve = "![KL against minutes of healing](heal.svg)" if course(record) else ""
    return "\n\n".join(filter(None, [intro, table(head, lines), curve, said, f"## How\n\n{calls}"])) + "\n"


def course(record: Record) -> Chart | None:
    """KL against the minutes of healing, where rows differ in nothing else and there are three of them."""
    rows = {name: row for name, row in record.rows.items() if "seconds" in row}
    alike = {
        ",".join(part for part in name.split(",") if not part.startswith("heal")) for name in record.rows
    }
    if len(alike) > 1 or len(rows) < 3:
        return None
    ordered = sorted(rows.values(), key=lambda row: row["seconds"].get("healing", 0.0))
    series = []
    for text, colour in zip((*FOREIGN, OWN), COLOURS, strict=False):
        if all(text in row for row in ordered):
            kl = [row[text]["kl"] for row in ordered]
            points = [
                (row["seconds"].get("healing", 0) / 60, k["value"])
                for row, k in zip(ordered, kl, strict=True)
            ]
            series.append(Series(text, points, colour, intervals=[(k["low"], k["high"]) for k in kl]))
    about = record.data["settings"]
    return Chart(
        f"{about['model']} at {about['budget']}: what healing wins in minutes",
        f"{about['contexts']} contexts of {LENGTH} tokens of each text, 95 % intervals over contexts",
        "minutes of healing",
        "KL, nats a token",
        series,
        y_log=False,
    )


def _figures(row: dict[str, Any], base: dict[str, Any], names: Sequence[str]) -> list[str]:
    own = [interval(row[name]["kl"], 4) for name in names]
    beside = [ratio(row[name]["kl_by_context"], base[name]["kl_by_context"]) for name in names]
    return own + [interval(found, 3) if row is not base else "1" for found in beside]


if __name__ == "__main__":
    raise SystemExit(main())
