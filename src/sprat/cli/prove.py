"""`sprat prove`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sprat.cli import terminal
from sprat.cli.arguments import add_evaluation, seed, whole
from sprat.cli.tasks import task_table
from sprat.errors import ProofError
from sprat.folders import refuse_folder
from sprat.sizes import format_bytes

if TYPE_CHECKING:
    from sprat.prove.intervals import Estimate
    from sprat.prove.proof import Proof
    from sprat.prove.replay import Replay

SUMMARY = "Measure what a .sprat file lost against its original, each figure with an interval."
EXAMPLES = """  sprat prove smol.sprat --against smollm2-135m --text held-out.txt
  sprat prove smol.sprat --against smollm2-135m --text held-out.txt --layers --report proof
  sprat prove smol.sprat --against smollm2-135m --text held-out.txt --report proof --peers records/quality
  sprat prove --replay proof
  sprat prove smol.sprat --against ./model --text held-out.txt --tokens 100000 --json > proof.json
  sprat prove big.sprat --against ./big --text held-out.txt --dtype bfloat16"""

#: What a record says itself, and a replay does not take.
_RECORDED = (
    *("tokens", "context", "dtype", "skip", "layers", "generations", "items", "seed", "resamples"),
    *("no_speed", "peers"),
)
#: Pieces of the text that both models continue where a report is written.
_GENERATIONS = 8


def configure(parser: argparse.ArgumentParser) -> None:
    """What to compare, on which text, and how much of it."""
    parser.add_argument("file", metavar="FILE", type=Path, nargs="?", help="a .sprat file")
    parser.add_argument("--against", metavar="MODEL", help="the original, as `sprat fit` takes it")
    parser.add_argument(
        "--text",
        metavar="TEXT",
        action="append",
        help="a UTF-8 text file, not used for calibration; may be given several times",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the whole proof as JSON instead of a table"
    )
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write result.json, README.md and index.html into DIR"
    )
    parser.add_argument(
        "--replay",
        type=Path,
        metavar="DIR",
        help="measure the proof in DIR again and say which figures hold; FILE, --against and --text say where "
        "these lie now, and so does --tasks; all else is as it was recorded, speed left out. Exit status 1 where a "
        "figure differs",
    )
    parser.add_argument(
        "--peers",
        metavar="RECORD",
        type=Path,
        action="extend",
        nargs="+",
        help="draw other files into the report: records (a folder, or its result.json) of `sprat prove`, "
        "`sprat compare`, bench.quality or bench.llamacpp of the same model on the same text",
    )
    add_evaluation(parser)
    parser.add_argument(
        "--skip", type=int, metavar="N", help="leave the first N positions of each context out (default half)"
    )
    parser.add_argument("--layers", action="store_true", help="also what each layer alone costs (minutes)")
    parser.add_argument(
        "--generations",
        type=int,
        metavar="N",
        help=f"let both models continue N pieces of the text (default {_GENERATIONS} with --report, else 0)",
    )
    parser.add_argument(
        "--tasks",
        metavar="TASK",
        action="extend",
        nargs="+",
        help="questions for both models: JSON-lines files (ARC, PIQA, LAMBADA, BLiMP, ...) or names of "
        "lm-evaluation-harness tasks (pip install 'sprat[eval]')",
    )
    parser.add_argument(
        "--items",
        type=whole,
        metavar="N",
        help="at most N questions of each task, evenly spread (default all)",
    )
    parser.add_argument("--no-speed", action="store_true", help="do not measure how fast the file runs here")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of the bootstrap (default 0)")
    parser.add_argument(
        "--resamples", type=whole, default=2000, metavar="N", help="draws of the bootstrap (default 2000)"
    )


def execute(arguments: argparse.Namespace) -> None:
    """Measure, then print the figures with their intervals; warnings go to standard error."""
    if arguments.report is not None:
        refuse_folder(arguments.report, ("result.json", "README.md", "index.html"))
    if arguments.replay is not None:
        _replay(arguments)
        return
    if arguments.items is not None and not arguments.tasks:
        raise ProofError("--items says how many questions of each task, and no --tasks were given")
    needed = {"FILE": arguments.file, "--against": arguments.against, "--text": arguments.text}
    if lacking := [name for name, value in needed.items() if value is None]:
        arguments.parser.error(f"the following arguments are required: {', '.join(lacking)}")
    from sprat.prove.proof import prove

    generations = _GENERATIONS if arguments.report is not None else 0
    with terminal.bars() as progress:
        proof = prove(
            arguments.file,
            arguments.against,
            arguments.text,
            tokens=arguments.tokens,
            context=arguments.context,
            skip=arguments.skip,
            dtype=arguments.dtype,
            seed=arguments.seed,
            resamples=arguments.resamples,
            layers=arguments.layers,
            generations=generations if arguments.generations is None else arguments.generations,
            speed=not arguments.no_speed,
            tasks=arguments.tasks or (),
            items=arguments.items,
            peers=arguments.peers or (),
            progress=progress,
        )
    if arguments.report is not None:
        proof.save(arguments.report)
    if arguments.json:
        terminal.write_json(proof.to_json())
    else:
        _show(proof)
    for warning in proof.warnings:
        terminal.note(warning)


def _replay(arguments: argparse.Namespace) -> None:
    """Measure a record again; leave with status 1 where a figure differs."""
    for name in _RECORDED:
        if getattr(arguments, name) != arguments.parser.get_default(name):
            raise ProofError(
                f"--{name.replace('_', '-')} does not go with --replay, which measures as the record says"
            )
    from sprat.prove.replay import replay

    with terminal.bars() as progress:
        again = replay(
            arguments.replay,
            arguments.file,
            arguments.against,
            arguments.text or (),
            arguments.tasks or (),
            progress,
        )
    if arguments.report is not None:
        again.proof.save(arguments.report)
    if arguments.json:
        terminal.write_json(again.to_json())
    else:
        _show_replay(again)
    for warning in again.proof.warnings:
        terminal.note(warning)
    if not again.holds:
        raise SystemExit(1)


def _show_replay(again: Replay) -> None:
    rows = [
        (
            row.name.replace("_", " "),
            f"{row.then:.6g}",
            "" if row.low is None or row.high is None else f"{row.low:.6g} to {row.high:.6g}",
            "" if row.now is None else f"{row.now:.6g}",
            {"within": "within its interval", "missing": "not measured"}.get(row.verdict, row.verdict),
        )
        for row in again.rows
    ]
    terminal.out().print(terminal.table(("", "recorded", "95 % interval", "now", ""), rows))
    if not again.same_file:
        terminal.note(
            "the file is not the record's, byte for byte: only figures with an interval were compared"
        )
    terminal.out().print(again.summary())


def _show(proof: Proof) -> None:
    size, original = proof.file["bytes"], proof.against["bytes"]
    m, s, c = proof.metrics, proof.settings, proof.cost
    rows: list[tuple[str, str, str]] = []

    def add(name: str, estimate: Estimate | None, places: int, scale: float = 1, unit: str = "") -> None:
        if estimate is not None:
            rows.append((name, _figure(estimate, places, scale) + unit, _interval(estimate, places, scale)))

    add("KL, nats a token", m.kl, 4)
    if m.kl_median is not None:
        rows.append(("  median, p99, max", f"{m.kl_median:.4f}, {m.kl_p99:.3f}, {m.kl_max:.2f}", ""))
    add("same top token", m.same_top, 1, 100, " %")
    add("probability shift, RMS", m.probability_shift_rms, 2, 100, " %")
    add("perplexity", m.perplexity_compressed, 3)
    add("  of the original", m.perplexity_original, 3)
    add("  ratio", m.perplexity_ratio, 4)
    add("bits a byte", m.bits_per_byte_compressed, 4)
    add("  of the original", m.bits_per_byte_original, 4)
    add("  difference", m.bits_per_byte_difference, 4)
    if proof.generations is not None:
        add("tokens until generations differ", proof.generations["divergence"], 1)
    if "decode_tokens_per_second" in c:
        rows.append(
            ("written here", f"{c['decode_tokens_per_second']:.0f} tokens/s", f"{c['threads']} threads")
        )
        rows.append(("  read", f"{c['prefill_tokens_per_second']:.0f} tokens/s", ""))
        rows.append(("  opened in", f"{c['open_seconds']:.2f} s", ""))
        rows.append(("  memory", format_bytes(c["resident_bytes"]), ""))
    console = terminal.out()
    console.print(
        f"{proof.file['path']}: {size:,} bytes ({format_bytes(size)}, {original / size:.2f} times smaller "
        f"than {proof.against['name']}, {format_bytes(original)} in bf16)",
        markup=False,
        soft_wrap=True,
    )
    console.print(terminal.table(("", "figure", "95 % interval"), rows))
    if proof.tasks:
        console.print(task_table(proof.tasks))
    of = f", of {s['documents']} documents," if s["documents"] > 1 else ""
    console.print(
        f"{s['scored_tokens']:,} tokens scored in {s['contexts']} contexts of {s['context']}{of} "
        f"from {proof.text['path']}, {s['dtype']}, {proof.seconds:.0f} s; intervals are over this text alone",
        markup=False,
        soft_wrap=True,
    )


def _figure(estimate: Estimate, places: int, scale: float = 1) -> str:
    return f"{estimate.value * scale:.{places}f}"


def _interval(estimate: Estimate, places: int, scale: float = 1) -> str:
    return f"{estimate.low * scale:.{places}f} to {estimate.high * scale:.{places}f}"
