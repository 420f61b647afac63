"""Every technique on the same model and text: what its whole file weighs and what it costs, beside the water level.

A row is measured once and written down at once; the same command goes on where it was cut off. Files stay in
`--files`, so that speeds can be measured apart (`--speeds`), on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import sprat
from bench import healing, texts
from bench.judge import Judge, contexts
from bench.measure import Bench
from bench.record import Record, command_line
from bench.technique_page import page
from bench.technique_rows import HEAL_TOKENS, ROWS, Row, file_of
from bench.work import Row as PeerRow
from sprat.cli.terminal import bars
from sprat.errors import SpratError
from sprat.folders import write_whole
from sprat.heal import heal
from sprat.progress import Progress
from sprat.prove.proof import machine, sha256, versions
from sprat.prove.tasks.requests import words_of_transformers
from sprat.prove.tasks.run import Questions, ask, original_scorer, read_tasks, run_tasks
from sprat.prove.tasks.torch_scorer import TorchScorer
from sprat.recipe import Recipe
from sprat.run.measure import measure
from sprat.run.model import to_torch
from sprat.source.load import Source, load

SCHEMA = "sprat.techniques/1"
EXAMPLES = """\
examples:
  python -m bench.techniques --files ~/techniques --tasks arc-easy.jsonl piqa.jsonl lambada.jsonl --items 300
  python -m bench.techniques --files ~/techniques --rows 'ternary,binary'
  python -m bench.techniques --files ~/techniques --speeds        decode speeds of all files, nothing else
  python -m bench.techniques --only-report
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        settings = {"model": options.model, "contexts": options.contexts, "items": options.items, "seed": 0}
        record = Record(options.record, settings, SCHEMA)
        if options.redo:
            record.forget(options.redo)
        if options.speeds:
            _speeds(record, options.files)
        elif not options.only_report:
            _measure(record, options)
        write_whole(options.record / "README.md", page(record))
        if found := healing.courses(record.rows):
            healing.draw(found, options.record / "heal.svg")
    except SpratError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line("techniques", "techniques", __doc__, EXAMPLES)
    add = parser.add_argument
    add("model", nargs="?", default="smollm2-135m", help="what sprat.load takes (default %(default)s)")
    add("--files", type=Path, default=Path(), help="where the files lie")
    add("--tasks", type=Path, nargs="*", default=[], help="questions as JSON lines (docs/tasks.md)")
    add("--items", type=int, help="of each task (default: as the record has it, a new one 300)")
    add(
        "--contexts", type=int, default=20, help="of 512 tokens, the second half scored (default %(default)s)"
    )
    add("--rows", default="*", metavar="PATTERN", help="only rows of these names, patterns by commas")
    add("--redo", default="", metavar="PATTERN", help="measure rows of these names again")
    add("--speeds", action="store_true", help="only the decode speed of each file, on one thread")
    add("--only-report", action="store_true", help="README.md anew, nothing measured")
    options = parser.parse_args(arguments)
    if options.items is None:
        options.items = _items(options.record)
    return options


def _items(record: Path) -> int:
    """Questions of each task that the record was begun with."""
    path = record / "result.json"
    return json.loads(path.read_text("utf-8"))["settings"]["items"] if path.exists() else 300


def _measure(record: Record, options: argparse.Namespace) -> None:
    wanted = [r for r in ROWS if any(fnmatch.fnmatch(r.name, p) for p in options.rows.split(","))]
    todo = [row for row in wanted if row.name not in record.rows]
    if not todo:
        return
    words = ["python", "-m", "bench.techniques", "--items", str(options.items), "--rows", options.rows]
    words += ["--tasks", *(path.name for path in options.tasks)] if options.tasks else []
    record.begin(shlex.join(words), versions(), machine())
    files: Path = options.files
    paths = texts.write(files / "texts")
    source = load(options.model, dtype=torch.float32)
    questions = read_tasks([str(path) for path in options.tasks], options.items)
    with bars() as progress:
        judge = Judge(source.model, contexts(source, paths["evaluation"], options.contexts, 512), 0, progress)
    peers = Bench(source, options.model, judge, paths, files, 0, 0, _asking(source, questions))
    record.data["original"] = {"name": source.name, "sha256": source.hash, "bytes": source.original_bytes}
    for number, row in enumerate(todo):
        print(f"[{number + 1}/{len(todo)}] {row.name}", file=sys.stderr, flush=True)
        with bars() as progress:
            try:
                result = _peer(row, peers, progress) if row.bits else _ours(row, options, judge, progress)
            except SpratError as error:
                record.add(row.name, {"failed": str(error)})
                continue
            if not row.bits and questions.local:
                with sprat.open(files / row.file) as artifact:
                    result["tasks"] = run_tasks(
                        source, artifact, questions, threads=1, remember=True, progress=progress
                    )
        for task in result.get("tasks", []):  # a record says which file, not where it lay
            task["source"]["path"] = Path(task["source"]["path"]).name
        record.add(row.name, result)
        print(f"    {result['bytes']:,} bytes, KL {result['kl']['value']:.4f}", file=sys.stderr, flush=True)


def _asking(source: Source, questions: Questions) -> Callable[[nn.Module], dict[str, Any]]:
    """What asks a peer's model the questions, through torch as the original."""

    def asked(model: nn.Module) -> dict[str, Any]:
        if not questions.local:
            return {}
        peer = TorchScorer(model, words_of_transformers(source.tokenizer), "peer's")
        with bars() as progress:
            return {"tasks": ask(lambda: (original_scorer(source, True), peer), questions, progress=progress)}

    return asked


def _ours(row: Row, options: argparse.Namespace, judge: Judge, progress: Progress) -> dict[str, Any]:
    """Fit, or take the file that lies there, and score it."""
    path = options.files / row.file
    said: dict[str, Any] = {}
    started = time.monotonic()
    if not path.exists():
        said = _made(row, options, path, progress)
        said["minutes"] = round((time.monotonic() - started) / 60, 1)
        write_whole(path.with_suffix(".json"), json.dumps(said) + "\n")
    elif path.with_suffix(".json").exists():
        said = json.loads(path.with_suffix(".json").read_text("utf-8"))
    with sprat.open(path) as artifact:
        scores = judge.score(to_torch(artifact, "float32"), progress)
        recipe = artifact.recipe
    return {"bytes": path.stat().st_size, "sha256": sha256(path), "recipe": recipe, **said, **scores}


def _made(row: Row, options: argparse.Namespace, path: Path, progress: Progress) -> dict[str, Any]:
    """A fit, or what another row's fit gave, healed."""
    if not row.of:
        recipe = Recipe.from_dict(row.recipe)
        fitted = sprat.fit(options.model, row.budget, path, recipe=recipe, progress=progress)
        return {
            "held_out_kl": fitted.measured_kl,
            "unhealed_kl": fitted.unhealed_kl,
            "warnings": fitted.warnings,
            "considered": [vars(c) for c in fitted.considered],
        }
    before = options.files / file_of(row.of)
    if not before.exists():
        raise SpratError(
            f"{row.name} heals the file of {row.of}: measure that row first, into the same --files"
        )
    healed = heal(
        before,
        options.model,
        path,
        contexts=row.contexts,
        rank=row.rank,
        tokens=max(HEAL_TOKENS, 512 * row.contexts),
        budget=row.budget,
        progress=progress,
    )
    return {
        "held_out_kl": healed.kl,
        "unhealed_kl": healed.before_kl,
        "warnings": [healed.rejected] * (not healed.kept),
        "heal_minutes": round(healed.points[-1].seconds / 60, 1),
    }


def _peer(row: Row, bench: Bench, progress: Progress) -> dict[str, Any]:
    settings = {"bits": row.bits, "group": row.group, "head": row.head}
    return bench.measure(PeerRow("peers", row.peer, row.name, settings), progress)


def _speeds(record: Record, files: Path) -> None:
    for row in ROWS:
        path = files / row.file
        if row.name in record.rows and path.exists():
            found, _ = measure(path, threads=1)
            record.add(row.name, record.rows[row.name] | {"decode": round(found.decode_tokens_per_second, 1)})
            print(f"{row.name}: {found.decode_tokens_per_second:.0f} tokens/s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
