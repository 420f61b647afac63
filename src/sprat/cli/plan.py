"""`sprat plan`."""

from __future__ import annotations

import argparse

from sprat.cli import terminal
from sprat.cli.arguments import (
    add_calibration,
    add_model,
    add_ram,
    add_structure,
    budgets,
    calibrated,
    limited,
)
from sprat.errors import BudgetError

SUMMARY = "Predict what each budget would cost, without writing anything."
EXAMPLES = """  sprat plan smollm2-135m --budgets 30MB,50MB,80MB
  sprat plan ./my-model --budgets 20%,40% --calibrate notes.txt --json
  sprat plan smollm2-135m --ram 80MB --context 1024"""


def configure(parser: argparse.ArgumentParser) -> None:
    """What to predict, for which budgets."""
    add_model(parser)
    parser.add_argument(
        "--budgets",
        type=budgets,
        default=[],
        metavar="B,B,…",
        help="sizes of the file with commas between: 30MB,50MB,80MB",
    )
    add_ram(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_calibration(parser)
    add_structure(parser)


def execute(arguments: argparse.Namespace) -> None:
    """Predict, and print a row a budget."""
    if not arguments.budgets and arguments.ram is None:
        raise BudgetError(
            "say what to plan for: --budgets 30MB,50MB for the file, --ram 80MB for memory, or both"
        )
    limits = limited(arguments)
    options = calibrated(arguments)  # before the import: a wrong setting is refused at once
    from sprat.plan import plan

    with terminal.bars() as progress:
        rows = plan(
            arguments.model,
            arguments.budgets,
            **options,
            progress=progress,
            **limits,
        )
    if arguments.json:
        fields = ["budget_bytes", "predicted_bytes", "predicted_kl", "bits_per_weight"]
        fields += ["predicted_ram_bytes"] if arguments.ram else []
        terminal.write_json([{name: getattr(row, name) for name in fields} for row in rows])
        return
    lines = [
        (
            "" if row.budget_bytes is None else f"{row.budget_bytes:,}",
            f"{row.predicted_bytes:,}",
            *([] if row.predicted_ram_bytes is None else [f"{row.predicted_ram_bytes:,}"]),
            f"{row.bits_per_weight:.3f}",
            f"{row.predicted_kl:.4f}",
        )
        for row in rows
    ]
    memory = ["predicted memory"] if arguments.ram else []
    columns = ("budget, bytes", "predicted bytes", *memory, "bits a weight", "predicted KL, nats a token")
    terminal.out().print(terminal.table(columns, lines))
