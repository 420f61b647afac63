"""`sprat fit`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprat.cli import terminal
from sprat.cli.arguments import (
    add_calibration,
    add_methods,
    add_model,
    add_ram,
    add_structure,
    budget,
    calibrated,
    limited,
    minutes,
)
from sprat.errors import BudgetError, RecipeError
from sprat.recipe import Recipe
from sprat.sizes import format_bytes

if TYPE_CHECKING:
    from sprat.fit import FitResult

SUMMARY = "Fit a model into a byte budget and write it as one .sprat file."
EXAMPLES = """  sprat fit smollm2-135m --budget 50MB -o smol.sprat
  sprat fit ./my-model --budget 40% --calibrate notes.txt -o mine.sprat
  sprat fit model.gguf --budget 3.2bpw --seed 7 -o model.sprat
  sprat fit smollm2-135m --ram 80MB --context 1024 -o phone.sprat
  sprat fit smollm2-135m --budget 50MB --sparsity 2:4 -o half.sprat
  sprat fit smollm2-135m --budget 30MB --method auto -o best.sprat"""


#: KL in nats a token from which on it pays to remove something and to heal for longer (docs/methods.md, docs/heal.md).
MUCH = 0.5


def configure(parser: argparse.ArgumentParser) -> None:
    """What to fit, into how much, and where to write it."""
    add_model(parser)
    parser.add_argument(
        "--budget",
        type=budget,
        metavar="B",
        help="the size of the whole file: 50MB, 5.5GiB, 250kB, 500000, 40%% (of the original in bf16) "
        "or 3.2bpw",
    )
    add_ram(parser)
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FILE", help="the .sprat file to write"
    )
    add_methods(parser)
    add_calibration(parser)
    add_structure(parser)
    parser.add_argument(
        "--heal",
        dest="heal_minutes",
        type=minutes,
        metavar="MINUTES",
        help=f"train the result towards the model for so long (default: on {Recipe.heal} contexts)",
    )
    parser.add_argument(
        "--deep",
        dest="heal_deep",
        action="store_const",
        const=True,
        help="train the integers too, not the scales alone; without a trellis",
    )


def execute(arguments: argparse.Namespace) -> None:
    """Fit, then say what came of it; warnings go to standard error."""
    if arguments.budget is None and arguments.ram is None:
        raise BudgetError(
            "say how large it may be: --budget 50MB for the file, --ram 80MB for memory, or both"
        )
    limits = limited(arguments)
    options = calibrated(arguments)  # before the import: a wrong setting is refused at once
    from sprat.fit import fit
    from sprat.training import processes

    if (several := processes.started()) > 1:
        raise RecipeError(
            f"a fit is one process, and torchrun started {several}: fit without it, then heal the file in several "
            "(torchrun … -m sprat heal FILE --against MODEL --minutes M -o OUT)"
        )
    with terminal.bars() as progress:
        result = fit(
            arguments.model,
            arguments.budget,
            arguments.out,
            **options,
            progress=progress,
            **limits,
        )
    of = f" of a budget of {arguments.budget}" if arguments.budget else ""
    rows = [
        ("file", f"{result.path}"),
        ("size", f"{result.nbytes:,} bytes ({format_bytes(result.nbytes)}){of}"),
        ("rate", f"{result.bits_per_weight:.3f} bits a weight, everything counted"),
        *_memory(result.ram_nbytes, limits),
        ("predicted KL", f"{result.predicted_kl:.4f} nats a token"),
    ]
    healed = f" ({result.unhealed_kl:.4f} before healing)" if result.unhealed_kl > result.measured_kl else ""
    rows.append(
        ("measured KL", f"{result.measured_kl:.4f} nats a token, on calibration text held out{healed}")
    )
    if result.bits_per_byte:
        before, after = result.bits_per_byte
        rows.append(
            ("bits a byte", f"{after:.4f} on the same text, the original {before:.4f} (other tokens)")
        )
    stages = ", ".join(f"{stage} {spent:.0f} s" for stage, spent in result.seconds.items())
    rows.append(("time", f"{sum(result.seconds.values()):.0f} s ({stages})"))
    for name, value in rows:
        terminal.out().print(f"{name:<13} {value}", markup=False, soft_wrap=True)
    if result.considered:
        terminal.out().print(
            terminal.table(("considered", "predicted KL", "measured", ""), _considered(result))
        )
    for warning in [*result.warnings, *_more(result, options["recipe"])]:
        terminal.note(warning)


def _more(result: FitResult, recipe: Recipe | None) -> list[str]:
    """What would help a file that lost much and was not asked for."""
    from sprat.level.planner import AUTO

    recipe = recipe or Recipe()
    ways = ["--method auto, which may remove layers"] * (recipe.method != AUTO)
    ways += ["--heal 20, which trains it for longer"] * (recipe.heals and not recipe.heal_minutes)
    if result.measured_kl < MUCH or not ways:
        return []
    return [
        f"a KL of {result.measured_kl:.2f} is much; at such a budget it may be lower with {' and '.join(ways)}"
    ]


def _considered(result: FitResult) -> list[tuple[str, str, str, str]]:
    def figure(kl: float | None) -> str:
        return "" if kl is None else f"{kl:.4f}"

    return [
        (row.name, figure(row.predicted_kl), figure(row.measured_kl), row.verdict)
        for row in result.considered
    ]


def _memory(nbytes: int | None, limits: dict[str, Any]) -> list[tuple[str, str]]:
    if nbytes is None:
        return []
    return [
        (
            "memory",
            f"{nbytes:,} bytes ({format_bytes(nbytes)}) of {limits['ram']} to run with a context of "
            f"{limits['context']:,} tokens",
        )
    ]
