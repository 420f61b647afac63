"""The proofs of a model at several budgets: one record, a folder for each file and a table over all.

Fits what is not fitted, proves what is not proven, and writes the record's README.md from the proofs; the same command
goes on where it was cut off. Files, texts and tasks lie in `--files`, and never in the repository. Tasks are whatever
lies in `--files`/tasks as JSON lines (docs/tasks.md): BLiMP is its 67 files joined, in the order of their names.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from bench import texts
from bench.markdown import interval, table
from sprat.cli.main import main as sprat
from sprat.errors import SpratError
from sprat.folders import write_whole
from sprat.prove import peers, report
from sprat.prove.pairs import holm
from sprat.prove.proof import RESULT, SCHEMA

BUDGETS = "30MB,40MB,50MB,60MB,80MB"
TEXT = "evaluation.txt"
EXAMPLES = """\
examples:
  python -m bench.prove --files ~/proof-files --items 300 --peers records/2026-11-21-quality
  python -m bench.prove --only-report --peers records/2026-11-21-quality     README.md and pages anew

What you write into remarks.md beside the record's README.md is put into it.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    record: Path = options.record.resolve()
    try:
        if not options.only_report:
            status = measure(record, options)
            if status:
                return status
        write(record, options.peers)
    except SpratError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    today = datetime.date.today().isoformat()
    parser = argparse.ArgumentParser(
        prog="python -m bench.prove",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", nargs="?", default="smollm2-135m", help="what sprat.load takes (default %(default)s)")
    add("--record", type=Path, default=Path("records") / f"{today}-proofs", help="default %(default)s")
    add("--files", type=Path, default=Path(), help="where files, texts and tasks lie")
    add("--budgets", default=BUDGETS, help="default %(default)s")
    add("--items", type=int, default=400, help="questions of each task (default %(default)s)")
    add("--generations", type=int, default=4, help="texts that both continue (default %(default)s)")
    add("--peers", type=Path, nargs="+", default=[], help="records of other files on the same text")
    add("--only-report", action="store_true", help="measure nothing")
    return parser.parse_args(arguments)


def measure(record: Path, options: argparse.Namespace) -> int:
    """Fit and prove what is missing; the first exit status that is not 0."""
    with contextlib.chdir(options.files):  # so that the record names no folder of this machine
        if not Path(TEXT).exists():
            texts.write(Path("texts"))["evaluation"].replace(TEXT)
        tasks = sorted(path.as_posix() for path in Path("tasks").glob("*.jsonl"))
        for budget in options.budgets.split(","):
            file, folder = f"{options.model}-{budget}.sprat", record / budget
            if (folder / RESULT).exists():
                continue
            if not Path(file).exists() and (
                status := sprat(["fit", options.model, "--budget", budget, "-o", file])
            ):
                return status
            words = ["prove", file, "--against", options.model, "--text", TEXT, "--report", str(folder)]
            words += ["--items", str(options.items), "--generations", str(options.generations), "--no-speed"]
            if status := sprat(words + ["--tasks", *tasks] * bool(tasks)):
                return status
    return 0


def write(record: Path, others: Sequence[Path]) -> None:
    """Every proof's pages with its peers, the other budgets among them, and README.md over all."""
    paths = sorted(record.glob(f"*/{RESULT}"))
    found = {path.parent: json.loads(path.read_text("utf-8")) for path in paths}
    proofs = {folder: said for folder, said in found.items() if said.get("schema") == SCHEMA}
    if not proofs:
        raise SpratError(f"{record} holds no proofs")
    for folder, said in proofs.items():
        known = peers.read([*others, *(path for path in proofs if path != folder)])
        points = known.points(said["against"]["hash"], said["text"]["sha256"], said["settings"]["context"])
        said["peers"] = [_named(point, proofs) for point in points]
        write_whole(folder / RESULT, json.dumps(said, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        report.write(said, folder)
    ordered = sorted(proofs.items(), key=lambda item: item[1]["file"]["bytes"])
    write_whole(record / "README.md", page(record, ordered))


def _named(point: dict[str, Any], proofs: Collection[Path]) -> dict[str, Any]:
    """A peer by its record's name; another budget of this record by its folder's."""
    place = Path(point["record"])
    own = {"name": f"sprat {place.name}"} if place in proofs else {}
    return point | own | {"record": place.name}


def page(record: Path, proofs: Sequence[tuple[Path, dict[str, Any]]]) -> str:
    """README.md of the record."""
    _, first = proofs[0]
    s, against, text = first["settings"], first["against"], first["text"]
    parts = [
        f"# {against['name']} at {len(proofs)} budgets, proven",
        f"Whole files against the original ({against['bytes'] / 1e6:.1f} MB in bf16), both in {s['dtype']}, on "
        f"{s['scored_tokens']:,} tokens of {text['path']} (State of the Union speeches; contexts of {s['context']}, "
        f"the second half of each scored) and on {len(first['tasks'] or [])} tasks. Intervals are 95 %: of text "
        "figures a paired bootstrap, of accuracies Wilson's, of their differences Tango's. A folder for each file has "
        "every figure, the samples and the pictures (index.html), and what a replay of it gave (replay.json).",
        _fidelity(proofs),
        _tasks([said for _, said in proofs]),
    ]
    remarks = record / "remarks.md"
    if remarks.exists():
        parts.append(remarks.read_text(encoding="utf-8").strip())
    commands = "\n".join(f"    {said['command']}" for _, said in proofs)
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    machine = first["machine"]
    hashes = [("original", against["hash"]), (text["path"], text["sha256"])]
    hashes += [(task["source"]["path"], task["source"]["sha256"]) for task in first["tasks"] or []]
    hashes += [(said["file"]["path"], said["file"]["sha256"]) for _, said in proofs]
    parts += [
        "## How this was made",
        commands,
        f"{versions}; {machine['processor']}, {machine['cores']} cores, {machine['system']}. SHA-256:",
        "\n".join(f"- {name}: `{digest}`" for name, digest in hashes),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _fidelity(proofs: Sequence[tuple[Path, dict[str, Any]]]) -> str:
    lines = []
    for folder, said in proofs:
        m, size = said["metrics"], said["file"]["bytes"]
        lines.append(
            [
                f"[{folder.name}]({folder.name}/README.md)",
                f"{size:,}",
                f"{said['against']['bytes'] / size:.2f}",
                f"{said['file']['bits_per_weight']:.2f}",
                interval(m["kl"], 4),
                interval(m["same_top"], 1, 100),
                interval(m["perplexity_ratio"], 3),
                interval(m["bits_per_byte_difference"], 4),
                _replayed(folder),
            ]
        )
    columns = [
        "budget", "bytes", "× smaller", "bits a weight", "KL, nats a token", "same top, %", "perplexity ×",
        "bits a byte, more", "replayed",
    ]  # fmt: skip
    return table(columns, lines, right=True)


def _replayed(folder: Path) -> str:
    """What a replay said, in a cell."""
    path = folder / "replay.json"
    if not path.exists():
        return "no"
    said = json.loads(path.read_text("utf-8"))
    verdicts = [row["verdict"] for row in said["figures"]]
    rest = len(verdicts) - verdicts.count("same") - verdicts.count("within")
    return f"{verdicts.count('same')} same, {verdicts.count('within')} within, {rest} different"


def _tasks(proofs: Sequence[dict[str, Any]]) -> str:
    """A row a file and task: the difference of accuracies, flips, McNemar's p, corrected over the whole table."""
    entries = [(said, task) for said in proofs for task in said["tasks"] or []]
    if not entries:
        return ""
    corrected = holm([task["mcnemar_p"] for _, task in entries])
    lines = []
    for (said, task), p in zip(entries, corrected, strict=True):
        lines.append(
            [
                task["name"],
                Path(said["file"]["path"]).name,
                str(task["items"]),
                interval(task["accuracy_original"], 1, 100),
                interval(task["accuracy_compressed"], 1, 100),
                interval(task["difference"], 1, 100, "+"),
                f"{task['flips']['lost']} / {task['flips']['won']}",
                f"{task['mcnemar_p']:.2g}",
                "yes" if p <= 0.05 else "",
            ]
        )
    names = [task["name"] for task in proofs[0]["tasks"]]
    lines.sort(key=lambda line: names.index(line[0]))
    columns = [
        "task", "file", "questions", "original, %", "file, %", "difference, points", "lost / won", "McNemar's p",
        "changed",
    ]  # fmt: skip
    said = (
        "*changed*: p stays below 0.05 after Holm's correction over all rows of this table. Lost and won are questions "
        "that only the original, only the file answered right."
    )
    return "## Tasks\n\n" + table(columns, lines, right=True) + "\n\n" + said


if __name__ == "__main__":
    sys.exit(main())
