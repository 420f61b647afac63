"""`sprat compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sprat.cli import terminal
from sprat.cli.arguments import add_evaluation, seed
from sprat.folders import refuse_target, write_whole

if TYPE_CHECKING:
    from sprat.prove.comparison import Comparison

SUMMARY = "Measure several files of one model on the same text, and say which of them differ."
EXAMPLES = """  sprat compare 40.sprat 50.sprat --against smollm2-135m --text held-out.txt
  sprat compare smol.sprat model-Q4_K_M.gguf ./exported --against ./model --text held-out.txt --svg all.svg"""


def configure(parser: argparse.ArgumentParser) -> None:
    """What to compare, with what, on which text."""
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="a .sprat file, a GGUF (computed by llama.cpp where llama-cpp-python is installed, else dequantized), a "
        "Hugging Face folder or hub id, or an installed model",
    )
    parser.add_argument(
        "--against", required=True, metavar="MODEL", help="the original, as `sprat fit` takes it"
    )
    parser.add_argument(
        "--text", required=True, metavar="TEXT", help="a UTF-8 text file, not used for calibration"
    )
    parser.add_argument("--svg", type=Path, metavar="OUT", help="draw KL against bytes into an SVG file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    add_evaluation(parser)
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of the bootstrap (default 0)")


def execute(arguments: argparse.Namespace) -> None:
    """Measure, then print a row a file and a row a pair; warnings go to standard error."""
    if arguments.svg is not None:
        refuse_target(arguments.svg, *arguments.files, arguments.text)
    from sprat.prove.comparison import compare_files

    with terminal.bars() as progress:
        found = compare_files(
            arguments.files,
            arguments.against,
            arguments.text,
            tokens=arguments.tokens,
            context=arguments.context,
            seed=arguments.seed,
            dtype=arguments.dtype,
            progress=progress,
        )
    if arguments.svg is not None:
        write_whole(arguments.svg, found.svg())
    if arguments.json:
        terminal.write_json(found.to_json())
    else:
        _show(found)
    for warning in found.warnings:
        terminal.note(warning)


def _show(found: Comparison) -> None:
    console, s = terminal.out(), found.settings
    several = any(row.engine != "PyTorch" for row in found.rows)
    rows = []
    for row in sorted(found.rows, key=lambda row: row.bytes):
        m = row.metrics
        figures = (
            (f"{m.kl.value:.4f}", f"{m.kl.low:.4f} to {m.kl.high:.4f}") if m.kl is not None else ("", "")
        )
        rows.append(
            (
                row.name,
                f"{row.bytes:,}",
                *figures,
                f"{100 * m.same_top.value:.1f} %" if m.same_top is not None else "",
                f"{m.perplexity_ratio.value:.4f}" if m.perplexity_ratio is not None else "",
                f"{m.bits_per_byte_difference.value:+.4f}",
                *([row.engine] if several else []),
            )
        )
    columns = ("", "bytes", "KL", "95 % interval", "same top", "perplexity ×", "bits a byte")
    console.print(terminal.table((*columns, *(["computed by"] if several else [])), rows))
    if found.pairs:
        console.print()
        lines = [
            (
                f"{pair.lower} < {pair.higher}",
                f"{pair.difference.value:.4f}",
                f"{pair.difference.low:.4f} to {pair.difference.high:.4f}",
                f"{pair.p_holm:.2g}",
                "different" if pair.distinguishable else "not told apart",
            )
            for pair in found.pairs
        ]
        columns = ("pair, lower KL first", "difference", "95 % interval", "p (Holm)", "at 95 %")
        console.print(terminal.table(columns, lines))
    console.print(
        f"{s['scored_tokens']:,} tokens scored in {s['contexts']} contexts of {s['context']} from "
        f"{found.text['path']}, against {found.against['name']}, {s['dtype']}, {found.seconds:.0f} s",
        markup=False,
        soft_wrap=True,
    )
