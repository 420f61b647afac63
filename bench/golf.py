"""Golf recipes beside each other: the same cap, text and length, several seeds, each difference with its interval.

Every recipe is trained with the first seed before any with the second, so that a run that is cut off still compares all
of them. A training is written down as soon as it is over, and the same command goes on where it was cut off, inside a
training too. Trained files stay in `--files`, and never in the repository.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import shlex
import shutil
import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from os.path import commonpath
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from bench.markdown import table
from bench.pace import paces, timed
from bench.record import command_line, commit, save_json
from bench.texts import text_name
from sprat.cli.arguments import budget, settings, whole
from sprat.cli.golf.train import add_length, length_of
from sprat.cli.terminal import bars
from sprat.errors import BudgetError, SpratError, TrainingError
from sprat.folders import write_whole
from sprat.golf import corpus
from sprat.golf.compare import compare
from sprat.golf.golf import Golf, play, prepare
from sprat.golf.leaderboard import length_words, spread
from sprat.golf.recipe import Recipe
from sprat.golf.result import SCHEMA, result, unlike
from sprat.golf.schedule import Length
from sprat.sizes import format_bytes

EXAMPLES = """\
examples:
  python -m bench.golf --recipes recipes/golf-cpu-250kB*.toml --cap 250kB --processor-minutes 2 --seeds 3 \\
      --text speeches --files ~/golf
  python -m bench.golf --record records/2026-11-22-golf-blocks --only-report
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        if not options.only_report:
            _run(options)
        entries = _entries(options.record)
        baseline = options.baseline or min(entries, key=len, default="")
        if baseline not in entries:
            raise SpratError(f"there is no {baseline or 'result'} in {options.record}")
        write_whole(options.record / "README.md", page(entries, baseline, options.record))
    except SpratError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line("golf", "golf-blocks", __doc__, EXAMPLES)
    add = parser.add_argument
    add(
        "--files", type=Path, default=Path("golf-files"), help="where trained files lie (default %(default)s)"
    )
    add("--recipes", type=Path, nargs="+", default=[], metavar="TOML")
    add("--cap", type=budget, default="250kB", metavar="B", help="default %(default)s")
    add(
        "--text",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="as `sprat golf train` takes it (default: each recipe's)",
    )
    add("--validation", nargs="+", metavar="TEXT")
    add("--seeds", type=whole, default=3, metavar="N", help="of each recipe (default %(default)s)")
    add("--threads", type=whole, default=1, metavar="N", help="default %(default)s")
    add("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="in every recipe")
    add("--baseline", metavar="NAME", help="what the others are compared with (default: the shortest name)")
    add("--redo", default="", metavar="PATTERN", help="train recipes of these names again")
    add(
        "--paced",
        action="store_true",
        help="count time by what a step costs beside the others' (bench/pace.py)",
    )
    add("--only-report", action="store_true", help="README.md anew, nothing trained")
    add_length(parser)
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> None:
    """Train what the record does not hold yet."""
    torch.set_num_threads(options.threads)
    options.files.mkdir(parents=True, exist_ok=True)
    options.record.mkdir(parents=True, exist_ok=True)
    length, given = length_of(options), settings(options.settings)
    games: dict[str, Golf] = {}
    pace = _paces(options, given, length) if options.paced else {}
    for path in options.recipes:
        record = options.record / f"{path.stem}.json"
        if options.redo and fnmatch.fnmatch(path.stem, options.redo):
            record.unlink(missing_ok=True)
            for file in options.files.glob(f"{path.stem}-seed*"):
                file.unlink()
        recipe = Recipe.read(path, given)
        own = replace(length, pace=pace.get(path.stem, 0.0))
        games[path.stem] = prepare(recipe, options.text, options.cap, own, options.validation)
        _refuse_other(record, result(games[path.stem], []))
        shutil.copyfile(path, options.record / path.name)
    for seed in range(options.seeds):
        for name, game in games.items():
            _train(name, game, seed, options)


def _paces(options: argparse.Namespace, given: dict[str, Any], length: Length) -> dict[str, float]:
    """Of all recipes, by the length's clock; what was found once is kept, for a row that was trained by it stands."""
    path = options.record / "paces.json"
    found: dict[str, float] = json.loads(path.read_bytes()) if path.exists() else {}
    recipes = {recipe.stem: Recipe.read(recipe, given) for recipe in options.recipes}
    if not recipes.keys() <= found.keys():
        if found:
            raise SpratError(
                f"{path} has no pace of {', '.join(recipes.keys() - found.keys())}: all are timed together"
            )
        text = corpus.of(next(iter(recipes.values())), options.text, options.validation)
        with bars() as progress:
            found = paces(recipes, timed(text.train), length.now, progress=progress)
        save_json(path, found)
    return found


def _train(name: str, game: Golf, seed: int, options: argparse.Namespace) -> None:
    """One row, unless the record has it."""
    path = options.record / f"{name}.json"
    before = json.loads(path.read_bytes()) if path.exists() else {"runs": [], "failed": [], "commands": []}
    if any(row["seed"] == seed for row in [*before["runs"], *before["failed"]]):
        return
    print(f"bench: {name}, seed {seed}", file=sys.stderr, flush=True)
    suffix = ".golf" if game.recipe.finish == "int8-zlib" else ".sprat"
    runs, failed = before["runs"], before["failed"]
    try:
        with bars() as progress:
            row = play(game, options.files / f"{name}-seed{seed}{suffix}", seed, True, progress)
        runs = [*runs, row]
        print(f"    {row['bytes']:,} bytes, {row['bits_per_byte']:.4f} bits a byte", file=sys.stderr)
    except (BudgetError, TrainingError) as error:
        failed = [*failed, {"seed": seed, "error": str(error)}]
        print(f"    failed: {error}", file=sys.stderr)
    command = {"command": _command(options), "commit": commit()}
    commands = before["commands"] + [command] * (command not in before["commands"])
    save_json(path, {**result(game, runs), "failed": failed, "commands": commands})


def _command(options: argparse.Namespace) -> str:
    """The call, with no more of the texts' paths than their folder."""
    words = ["python", "-m", "bench.golf", "--cap", f"{options.cap.value:.0f}", "--seeds", str(options.seeds)]
    for flag in ("minutes", "processor_minutes", "tokens", "threads"):
        if (value := getattr(options, flag)) is not None:
            words += [f"--{flag.replace('_', '-')}", f"{value:g}"]
    words += ["--paced"] * options.paced
    for pair in options.settings:
        words += ["--set", pair]
    names = dict.fromkeys(text_name(text) for text in options.text)
    words += ["--recipes", *(f"recipes/{path.name}" for path in options.recipes)]
    return shlex.join([*words, "--text", *names] if names else words)


def _refuse_other(path: Path, now: dict[str, Any]) -> None:
    """SpratError where a record's rows were trained under other settings."""
    if not path.exists():
        return
    before = json.loads(path.read_bytes())
    other = [*unlike(before, now), *(["threads"] if before["threads"] != now["threads"] else [])]
    for key in other[:1]:
        raise SpratError(
            f"{path} was trained with {key} {before.get(key)}, now it is {now[key]}: rows would not compare; give "
            "another --record, or --redo it"
        )


def _entries(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> result of every recipe that the record holds."""
    found = {path.stem: json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))}
    # What `sprat golf train` wrote knows of no failures and no commands.
    plain = {"failed": [], "commands": []}
    return {name: plain | entry for name, entry in found.items() if entry.get("schema") == SCHEMA}


def page(entries: dict[str, dict[str, Any]], baseline: str, folder: Path) -> str:
    """README.md: the table, best first, and how it came about."""
    base = entries[baseline]
    done = {name: entry for name, entry in entries.items() if entry["runs"]}
    order = sorted(done, key=lambda name: _mean(done[name], "bits_per_byte"))
    head = ["recipe", "seeds", "bytes", "weights", "tokens", "unrounded", "rounded", "bits a byte",
            "difference (95 % interval)", "p", "runs in"]  # fmt: skip
    lines = []
    for name in order:
        entry, runs = done[name], done[name]["runs"]
        lines.append([
            f"[{_short(name, entries)}]({name}.toml)",
            str(len(runs)),
            f"{max(run['bytes'] for run in runs):,}",
            f"{runs[0]['parameters']:,}",
            f"{_mean(entry, 'tokens'):,.0f}",
            spread([run["bits_per_byte_before"] for run in runs]),
            f"{fmean(run.get('bits_per_byte_rounded', run['bits_per_byte']) for run in runs):.4f}",
            spread([run["bits_per_byte"] for run in runs]),
            *_against(base, entry, name == baseline),
            runs[0]["engine"],
        ])  # fmt: skip
    failed = [
        f"- {_short(name, entries)}, seed {f['seed']}: {f['error']}"
        for name, entry in entries.items()
        for f in entry["failed"]
    ]
    remarks = folder / "remarks.md"
    said = remarks.read_text("utf-8").strip() if remarks.exists() else ""
    parts = [_intro(base, _short(baseline, entries)), table(head, lines)]
    parts += ["Not trained:\n\n" + "\n".join(failed)] if failed else []
    return "\n\n".join(filter(None, [*parts, said, _how(entries)])) + "\n"


def _intro(base: dict[str, Any], name: str) -> str:
    length, text, held = base["length"], base["text"], base["validation"]
    amount = length_words(length["kind"], length["amount"])
    if base.get("pace"):
        amount += " (a token counted as what it costs the recipe in steps taken in turns with the others')"
    return (
        f"# {format_bytes(base['cap'])} from nothing, recipes beside each other\n\n"
        f"Each was trained for {amount} on {base['threads']} thread{'s'[: base['threads'] > 1]} from "
        f"{text['documents']} documents ({format_bytes(text['bytes'])}) and scored, as the whole file that it ends "
        f"in, on {held['documents']} others ({format_bytes(held['bytes'])}). Bits a byte: mean and standard deviation "
        "over seeds, of the weights before rounding (through torch) and of the file, and the mean of what rounding "
        "gave before healing. The difference to "
        f"{name} is below zero where the "
        "recipe is better: its interval is over documents, paired, of the mean of the seeds; p is Welch's, over seeds."
    )


def _how(entries: dict[str, dict[str, Any]]) -> str:
    calls = dict.fromkeys(call["command"] for entry in entries.values() for call in entry["commands"])
    commits = dict.fromkeys(call["commit"] for entry in entries.values() for call in entry["commands"])
    machines = dict.fromkeys(
        f"{entry['machine']['processor']}, {entry['machine']['cores']} cores, torch {entry['versions'].get('torch')}"
        for entry in entries.values()
    )
    lines = "\n".join(f"    {call}" for call in calls)
    return f"## How\n\n{lines}\n\nCode: {', '.join(commits)}. Machine: {'; '.join(machines)}."


def _against(base: dict[str, Any], entry: dict[str, Any], same: bool) -> tuple[str, str]:
    if same or not base["runs"]:
        return "", ""
    found = compare(entry, base)
    d = found.difference
    return f"{d.value:+.4f} ({d.low:+.4f} to {d.high:+.4f})", "" if found.p is None else f"{found.p:.2g}"


def _mean(entry: dict[str, Any], key: str) -> float:
    return fmean(run[key] for run in entry["runs"])


def _short(name: str, names: Collection[str]) -> str:
    """A recipe's name without what all share: golf-cpu-250kB is "dense", golf-cpu-250kB-naive is "naive"."""
    shared = commonpath([other.replace("-", "/") for other in names])
    return name[len(shared) :].removeprefix("-") or "dense"


if __name__ == "__main__":
    raise SystemExit(main())
