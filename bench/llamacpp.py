"""sprat's engine beside llama.cpp: same machine, same threads, one run.

llama.cpp writes its own files from the same original, with an importance matrix from the text that sprat calibrates
on. The KL of every file is measured on one text, as it stands on disk (both engines round activations to 8 bits
besides). Then all files decode and prefill in turn, in an order drawn anew each round, so that what else the machine
does hits all of them. The peer of a `.sprat` is the fastest llama.cpp file of equal or higher KL, for each figure.

Needs `pip install -c constraints.txt '.[fit,llamacpp,demo]'`; see bench/peers/llamacpp.py.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import numpy as np

from bench import texts
from bench.record import Record
from sprat.cli.terminal import bars
from sprat.errors import SpratError
from sprat.prove.proof import machine, sha256, versions
from sprat.recipe import Recipe

SCHEMA = "sprat.engine-peers/1"
#: The types of llama.cpp that stand somewhere between 60 and 110 MB at a KL below 1 on a model whose width is no
#: multiple of 256, and the one for files far below that.
KINDS = "Q4_K_M,Q3_K_M,IQ4_NL,IQ4_NL+embedding,Q4_0,Q4_0+embedding,IQ2_XXS,IQ1_S"
FIGURES = ("decode", "prefill")
EXAMPLES = """\
examples:
  python -m bench.llamacpp demo/smol.sprat --contexts 4 --runs 1 --record /tmp/peers     to see that it works
  python -m bench.llamacpp 60MB.sprat 50MB.sprat 30MB.sprat
  python -m bench.llamacpp 60MB.sprat 50MB.sprat 30MB.sprat --threads 2     adds to the same record

What is in the record is not measured again, speeds excepted: those of one run belong together.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    today = datetime.date.today().isoformat()
    parser = argparse.ArgumentParser(
        prog="python -m bench.llamacpp",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help=".sprat files, made from --model")
    add("--model", default="smollm2-135m", help="the original, a GGUF (default %(default)s)")
    add("--kinds", default=KINDS, help="types of llama.cpp (default %(default)s)")
    add("--threads", default="1,2", help="numbers of threads, by commas; '': no speeds (default %(default)s)")
    add("--runs", type=int, default=5, help="rounds whose median is told (default %(default)s)")
    add("--contexts", type=int, default=40, help="of 512 tokens, for the KL (default %(default)s)")
    add("--work", type=Path, default=Path("build/llamacpp"), help="keeps the GGUFs (default %(default)s)")
    add("--record", type=Path, default=Path("records") / f"{today}-llamacpp", help="default %(default)s")
    options = parser.parse_args(arguments)
    try:
        _run(options)
    except SpratError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    from bench.peers.llamacpp import system

    evaluation = texts.write(options.work / "texts")["evaluation"]
    settings = {"model": options.model, "contexts": options.contexts, "context": 512, "seed": 0}
    settings["text_sha256"] = texts.sha256(evaluation)
    record = Record(options.record, settings, SCHEMA)
    kinds = options.kinds.split(",")
    command = ["python -m bench.llamacpp", *(f.name for f in options.files), f"--kinds {options.kinds}"]
    command += [f"--threads {options.threads} --runs {options.runs} --contexts {options.contexts}"]
    record.begin(" ".join(command), versions(), machine() | {"llama.cpp": system()})
    files = {f.name: f for f in options.files} | {k: options.work / f"{k}.gguf" for k in kinds}
    _make(options, [k for k in kinds if not files[k].exists()])
    _judge(options, record, evaluation, files)
    for threads in map(int, filter(None, options.threads.split(","))):
        # A process of its own: nothing that was needed to judge the files lies in memory or keeps threads.
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            found = fresh.submit(speeds, files, threads, options.runs).result()
        record.data.setdefault("speeds", {})[str(threads)] = found
        found["ratios"] = ratios(record.rows, found["files"])
        record.save()
    report(record)


def _make(options: argparse.Namespace, kinds: Sequence[str]) -> None:
    """Write the GGUFs that are not there yet."""
    if not kinds:
        return
    from safetensors.numpy import load_file, save_file

    from bench.peers.llamacpp import quantize
    from sprat.source import places

    original, cached = places.find(options.model).path, options.work / "importance.safetensors"
    if not cached.exists():
        save_file(_importance(options.model), cached)
    importance = load_file(cached)
    for kind in kinds:
        quantize(original, kind, options.work / f"{kind}.gguf", importance)


def _importance(model: str) -> dict[str, np.ndarray]:
    """E[x²] of each map's inputs by its name in a GGUF, on the text that a fit by default measures."""
    import torch

    from bench.calibrated import Moments
    from bench.peers.llamacpp import importance
    from sprat import job as jobs
    from sprat.source import places

    recipe = Recipe()
    with bars() as progress:
        job = jobs.start(model, "self", 0, recipe, progress)
        moments = Moments(job.source, torch.as_tensor(job.calibration.ids)[: -recipe.held_out], progress)
    return importance(job.source, places.find(model).path, moments)


def _judge(options: argparse.Namespace, record: Record, evaluation: Path, files: Mapping[str, Path]) -> None:
    """A row for each file: bytes, digest, KL to the original and the rest of the judge's figures."""
    digests = {name: sha256(path) for name, path in files.items()}
    todo = [name for name in files if record.rows.get(name, {}).get("sha256") != digests[name]]
    if not todo:
        return
    import torch

    from bench.judge import Judge, contexts
    from sprat.coding.container import open as open_artifact
    from sprat.run.model import to_torch
    from sprat.source.load import load

    with bars() as progress:
        source = load(options.model, dtype=torch.float32)
        judge = Judge(source.model, contexts(source, evaluation, options.contexts, 512), 0, progress)
        record.data["original"] = {"name": source.name, "sha256": source.hash}
        del source
        for name in todo:
            path = files[name]
            sprat = path.suffix == ".sprat"
            model = to_torch(open_artifact(path)) if sprat else load(path, dtype=torch.float32).model
            row = {"engine": "sprat" if sprat else "llama.cpp", "bytes": path.stat().st_size}
            record.add(name, row | {"sha256": digests[name]} | judge.score(model, progress))


def speeds(files: Mapping[str, Path], threads: int, runs: int) -> dict[str, Any]:
    """Tokens a second of every file in every round, and what memory gave before and after."""
    from bench.peers.llamacpp import LlamaCpp
    from sprat.coding.container import open as open_artifact
    from sprat.run import measure
    from sprat.run.native import NativeEngine

    engines: dict[str, Any] = {
        name: NativeEngine(open_artifact(path), threads)
        if path.suffix == ".sprat"
        else LlamaCpp(path, threads)
        for name, path in files.items()
    }
    found: dict[str, Any] = {name: {figure: [] for figure in FIGURES} for name in files}
    bandwidth = [measure.read_bandwidth(threads, measure.ARRAY_BYTES)]
    dice = Random(0)
    for number in range(runs + 1):
        for name in dice.sample(list(engines), len(engines)):
            engine = engines[name]
            prefill = measure.PREFILL / measure.prefill_seconds(engine, measure.PREFILL)
            decode = measure.WRITTEN / measure.decode_seconds(engine, measure.WRITTEN)
            if number:  # the first round is for warming up
                found[name]["prefill"].append(round(prefill, 1))
                found[name]["decode"].append(round(decode, 1))
    bandwidth.append(measure.read_bandwidth(threads, measure.ARRAY_BYTES))
    for name, engine in engines.items():
        if (per_token := getattr(engine, "bytes_per_token", None)) is not None:
            found[name]["bytes_per_token"] = per_token
    return {"bandwidth_bytes_per_second": bandwidth, "files": found}


def ratios(rows: Mapping[str, dict[str, Any]], found: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """For each `.sprat` and figure: the peer, and tokens a second over the peer's (medians)."""
    out = []
    for name in found:
        if rows[name]["engine"] != "sprat":
            continue
        worse = [
            n
            for n in found
            if rows[n]["engine"] != "sprat" and rows[n]["kl"]["value"] >= rows[name]["kl"]["value"]
        ]
        for figure in FIGURES:
            line: dict[str, Any] = {"file": name, "figure": figure, "peer": None, "ratio": None}
            if worse:
                line["peer"] = max(worse, key=lambda n: median(found[n][figure]))
                line["ratio"] = round(median(found[name][figure]) / median(found[line["peer"]][figure]), 3)
            out.append(line)
    return out


def report(record: Record) -> None:
    """README.md beside result.json, with the author's remarks.md in it."""
    data, rows = record.data, record.rows
    parts = [
        "# sprat's engine beside llama.cpp",
        f"{(__doc__ or '').partition('Needs')[0].partition(chr(10))[2].strip()}",
        f"KL to {data['original']['name']} in nats a token on {data['settings']['contexts']} contexts of 512 tokens "
        "of State of the Union speeches, the second half of each; 95 % intervals. Decode: 64 tokens behind 16; "
        "prefill: 512 tokens; tokens a second, median and range of the rounds.",
    ]
    for threads, found in data.get("speeds", {}).items():
        low, high = sorted(found["bandwidth_bytes_per_second"])
        lines = ["| file | MB | KL | decode | prefill | share of bandwidth |", "|---|---|---|---|---|---|"]
        for name, speed in found["files"].items():
            kl, share = rows[name]["kl"], ""
            if "bytes_per_token" in speed:
                share = f"{median(speed['decode']) * speed['bytes_per_token'] / ((low + high) / 2):.0%}"
            cells = [name, f"{rows[name]['bytes'] / 1e6:.1f}"]
            cells += [f"{kl['value']:.4f} ({kl['low']:.4f} to {kl['high']:.4f})"]
            cells += [*(_range(speed[figure]) for figure in FIGURES), share]
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", "| file | figure | peer | ratio |", "|---|---|---|---|"]
        for r in found["ratios"]:
            lines.append(f"| {r['file']} | {r['figure']} | {r['peer'] or 'none'} | {r['ratio'] or ''} |")
        title = "1 thread" if threads == "1" else f"{threads} threads"
        parts.append(
            f"## {title}\n\nMemory read at {low / 1e9:.1f} to {high / 1e9:.1f} GB/s.\n\n" + "\n".join(lines)
        )
    remarks = record.path.parent / "remarks.md"
    if remarks.exists():
        parts.append(remarks.read_text(encoding="utf-8").strip())
    run = data["commands"][-1]
    parts.append(
        f"    {run['command']}\n\n{run['machine']['processor']}; {run['machine']['llama.cpp'].strip()}"
    )
    (record.path.parent / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _range(values: Sequence[float]) -> str:
    return f"{median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


if __name__ == "__main__":
    raise SystemExit(main())
