"""Quality at equal bytes on disk: sprat beside round-to-nearest, GPTQ, HQQ, AutoRound, torchao, llm-compressor and
llama.cpp, and sprat's own parts switched off.

Every row is written into the record the moment it is measured; the same command again goes on where it was
cut off.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import report, texts, work
from bench.judge import Judge, contexts
from bench.measure import Bench
from bench.record import Record
from sprat.cli.terminal import bars
from sprat.errors import SpratError
from sprat.prove import overlap
from sprat.prove.proof import machine, versions
from sprat.source.load import load

BUDGETS = "30MB,40MB,50MB,60MB,80MB"
EXAMPLES = """\
examples:
  python -m bench.quality --quick --record /tmp/quality     a row of every kind, to see that all works
  python -m bench.quality --only sprat                      sprat's curves; the rest into the same record:
  python -m bench.quality --only peers,ablations
  python -m bench.quality --list                            what would be measured, what is done already
  python -m bench.quality --only peers --rows '*group=64-head=same*'
  python -m bench.quality --only peers --rows 'llamacpp-*,torchao-*,autoround-*,llmcompressor-*'
  python -m bench.quality --redo 'gptq-*'                   measure these rows again
  python -m bench.quality --only report                     README.md and quality.svg anew, nothing measured
  python -m bench.quality FOLDER --budgets 15%,20% --ablation-budget 20%

A run that goes on another day needs --record, whose default carries the date.
The record's README.md is made from result.json; what you write into remarks.md beside it is put into it.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        return _run(options)
    except SpratError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    today = datetime.date.today().isoformat()
    parser = argparse.ArgumentParser(
        prog="python -m bench.quality",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", nargs="?", default="smollm2-135m", help="what sprat.load takes (default %(default)s)")
    add(
        "--record",
        type=Path,
        default=Path("records") / f"{today}-quality",
        help="folder (default %(default)s)",
    )
    add(
        "--only", default="sprat,peers,ablations", help="sections, by commas: sprat, peers, ablations, report"
    )
    add("--budgets", default=BUDGETS, help="of the curves (default %(default)s)")
    add("--calibrations", default="self,in-domain,other", help="of the curves (default %(default)s)")
    add("--ablation-budget", default="50MB", help="default %(default)s")
    add("--contexts", type=int, default=40, help="evaluation contexts (default %(default)s)")
    add(
        "--context",
        type=int,
        default=512,
        help="tokens a context; the second half is scored (default %(default)s)",
    )
    add("--tokens", type=int, default=0, help="calibration tokens (default: the recipe's choice)")
    add("--seed", type=int, default=0)
    add("--work", type=Path, help="folder for texts and files in the making (default: a temporary one)")
    add("--rows", default="*", metavar="PATTERN", help="only rows of these names, patterns by commas")
    add("--redo", default="", metavar="PATTERN", help="measure rows of these names again, failed ones too")
    add("--quick", action="store_true", help="a row of every kind on 2 contexts and 2,048 calibration tokens")
    add("--list", action="store_true", help="list the rows and end")
    options = parser.parse_args(arguments)
    if options.quick:
        options.contexts, options.tokens = min(options.contexts, 2), options.tokens or 2048
    return options


def _rows(options: argparse.Namespace) -> list[work.Row]:
    sections = [*filter(None, options.only.split(","))]
    known = (*work.SECTIONS, "report")
    if strange := set(sections) - set(known):
        raise SpratError(f"--only {', '.join(sorted(strange))}: known are {', '.join(known)}")
    calibrations = options.calibrations.split(",")
    if strange := set(calibrations) - set(texts.KINDS):
        raise SpratError(f"--calibrations {', '.join(sorted(strange))}: known are {', '.join(texts.KINDS)}")
    rows = work.sprat_rows(options.budgets.split(","), calibrations)
    rows += (
        work.peer_rows()
        + work.other_peer_rows()
        + work.ablation_rows(options.ablation_budget, options.tokens)
    )
    if options.quick:
        rows = work.quick(rows, work.base_name(options.ablation_budget))
    patterns = options.rows.split(",")
    rows = [r for r in rows if any(fnmatch.fnmatch(r.name, p) for p in patterns)]
    return [r for r in rows if r.section in sections]


def _run(options: argparse.Namespace) -> int:
    rows = _rows(options)
    settings: dict[str, Any] = {
        name: getattr(options, name) for name in ("model", "contexts", "context", "tokens", "seed", "quick")
    }
    settings["ablation_budget"] = options.ablation_budget
    with tempfile.TemporaryDirectory(prefix="sprat-bench-") as temporary:
        folder = options.work or Path(temporary)
        paths = texts.write(folder / "texts")
        settings["text_sha256"] = {name: texts.sha256(path) for name, path in paths.items()}
        record = Record(options.record, settings)
        if options.redo:
            record.forget(options.redo)
        todo = [row for row in rows if row.name not in record.rows]
        if options.list:
            for row in rows:
                print("to do" if row in todo else "done ", row.name)
            return 0
        if todo:
            record.begin(_command(), versions(), machine())
            _measure(todo, record, options, paths, folder)
    report.write(record)
    _say(f"{len(record.rows)} rows in {record.path}")
    return 0


def _measure(
    todo: list[work.Row], record: Record, options: argparse.Namespace, paths: dict[str, Path], folder: Path
) -> None:
    source = load(options.model, dtype=torch.float32)
    with bars() as progress:
        evaluated = contexts(source, paths["evaluation"], options.contexts, options.context)
        judge = Judge(source.model, evaluated, options.seed, progress)
    record.data["original"] = {"name": source.name, "sha256": source.hash, "bytes": source.original_bytes}
    record.data["overlap"] = _overlap(paths)
    bench = Bench(source, options.model, judge, paths, folder, options.seed, options.tokens)
    spent: dict[str, list[float]] = {}
    for number, row in enumerate(todo):
        _say(f"[{number + 1}/{len(todo)}] {row.label}{_left(todo[number:], spent)}")
        started = time.monotonic()
        try:
            with bars() as progress:
                result = bench.measure(row, progress)
            said = f"{result['bytes'] / 1e6:.2f} MB, KL {result['kl']['value']:.4f}"
        except (SpratError, ImportError, RuntimeError, ValueError, AssertionError) as error:
            result = {
                "section": row.section,
                "method": row.method,
                "label": row.label,
                "settings": row.settings,
                "failed": f"{type(error).__name__}: {error}",
            }
            said = result["failed"]
        seconds = time.monotonic() - started
        spent.setdefault(row.method, []).append(seconds)
        record.add(row.name, result | {"run": len(record.data["commands"]) - 1})
        _say(f"    {said} ({seconds:.0f} s)")


def _overlap(paths: dict[str, Path]) -> dict[str, float]:
    """The share of each calibration text that is in the evaluation text word for word."""
    evaluation = paths["evaluation"].read_text(encoding="utf-8")
    return {
        name: overlap.shared(overlap.sketch(path.read_text(encoding="utf-8"), 1024), evaluation)
        for name, path in paths.items()
        if name != "evaluation"
    }


def _left(todo: list[work.Row], spent: dict[str, list[float]]) -> str:
    """The time left, from the mean of the rows of each method that were measured in this run."""
    known = [t for times in spent.values() for t in times]
    if not known:
        return ""
    mean = {method: sum(times) / len(times) for method, times in spent.items()}
    left = sum(mean.get(row.method, sum(known) / len(known)) for row in todo)
    return f" (about {left / 60:.0f} min left)" if left > 90 else f" (about {left:.0f} s left)"


def _command() -> str:
    """The command as someone else would type it: where this machine keeps its files does not belong to it."""
    words, skip = ["python", "-m", "bench.quality"], False
    for word in sys.argv[1:]:
        if not skip and not word.startswith(("--work=", "--record=")) and word not in ("--work", "--record"):
            words.append(word)
        skip = not skip and word in ("--work", "--record")
    return shlex.join(words)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
