"""`sprat sweep`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sprat.cli import terminal
from sprat.cli.arguments import add_calibration, add_evaluation, add_model, budgets, calibrated
from sprat.errors import BudgetError
from sprat.sizes import format_bytes

SUMMARY = "Fit a model into several budgets from one calibration, and draw quality against bytes."
EXAMPLES = """  sprat sweep smollm2-135m --budgets 30MB,50MB,80MB --report sweep --text held-out.txt
  sprat sweep ./my-model --budgets 20%,30%,40% --report sweep --set heal=0 --keep"""


def configure(parser: argparse.ArgumentParser) -> None:
    """What to fit, into how much, and what to measure it on."""
    add_model(parser)
    parser.add_argument(
        "--budgets",
        type=budgets,
        required=True,
        metavar="B,B,…",
        help="sizes with commas between: 30MB,50MB,80MB",
    )
    parser.add_argument(
        "--report",
        type=Path,
        required=True,
        metavar="DIR",
        help="the folder for result.json, README.md and curve.svg; budgets that it holds are not fitted again",
    )
    parser.add_argument(
        "--text",
        metavar="TEXT",
        help="measure each file on this UTF-8 text, not used for calibration (default: calibration text held out)",
    )
    parser.add_argument(
        "--proofs",
        metavar="RECORD",
        type=Path,
        action="extend",
        nargs="+",
        help="folders of `sprat prove --report` on this text: files that they prove are not measured again",
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="leave the .sprat files in DIR too (those of an earlier --keep stay in any case)",
    )
    parser.add_argument("--json", action="store_true", help="print result.json instead of a table")
    add_evaluation(parser)
    add_calibration(parser)


def execute(arguments: argparse.Namespace) -> None:
    """Fit and measure, then print a row a budget; warnings go to standard error. BudgetError where none was met."""
    options = calibrated(arguments)  # before the import: a wrong setting is refused at once
    from sprat.sweep import sweep

    with terminal.bars() as progress:
        result = sweep(
            arguments.model,
            arguments.budgets,
            arguments.report,
            arguments.text,
            **options,
            progress=progress,
            tokens=arguments.tokens,
            context=arguments.context,
            dtype=arguments.dtype,
            keep=arguments.keep,
            proofs=arguments.proofs or (),
        )
    if arguments.json:
        terminal.write_json(result)
        return
    console = terminal.out()
    console.print(
        terminal.table(
            ("budget", "bytes", "bits a weight", "KL", "95 % interval", "predicted"), _lines(result)
        )
    )
    if result["knee"] is not None:
        console.print(
            f"knee at {format_bytes(result['knee'])}; {arguments.report}/README.md says what that means"
        )
    for row in result["rows"]:
        for said in [row["failed"]] if "failed" in row else row["warnings"]:
            terminal.note(f"{row['budget']}: {said}")
    if all("failed" in row for row in result["rows"]):
        raise BudgetError("no budget could be met")


def _lines(result: dict[str, Any]) -> list[tuple[str, ...]]:
    from sprat.prove.quality import kl_of

    lines = []
    for row in result["rows"]:
        if "failed" in row:
            lines.append((row["budget"], "", "", "not fitted", "", ""))
            continue
        kl, ends = kl_of(row)
        lines.append(
            (
                row["budget"],
                f"{row['bytes']:,}",
                f"{row['bits_per_weight']:.3f}",
                f"{kl:.4f}",
                f"{ends[0]:.4f} to {ends[1]:.4f}" if ends else "",
                f"{row['predicted_kl']:.4f}",
            )
        )
    return lines
