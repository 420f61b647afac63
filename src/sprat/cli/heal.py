"""`sprat heal`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sprat.cli import terminal
from sprat.cli.arguments import add_device, add_file, add_text, budget, calibrated_text, minutes, whole
from sprat.errors import RecipeError
from sprat.sizes import format_bytes

if TYPE_CHECKING:
    from sprat.heal import HealResult

SUMMARY = "Train a .sprat file towards the model that it was made from, within its bytes."
EXAMPLES = """  sprat heal smol.sprat --against smollm2-135m --minutes 20 -o healed.sprat
  sprat heal smol.sprat --against smollm2-135m --minutes 20 -o healed.sprat --resume
  sprat heal smol.sprat --against smollm2-135m --contexts 200 --calibrate notes.txt --budget 50MB -o healed.sprat
  sprat heal smol.sprat --against smollm2-135m --minutes 20 --device cuda -o healed.sprat
  torchrun --nproc-per-node 2 -m sprat heal smol.sprat --against smollm2-135m --minutes 20 -o healed.sprat"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Which file, towards what, for how long, and where the result goes."""
    add_file(parser)
    parser.add_argument(
        "--against", metavar="MODEL", required=True, help="the model that the file was made from"
    )
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=minutes, metavar="M", help="minutes of training")
    length.add_argument(
        "--contexts",
        type=whole,
        metavar="N",
        help="contexts to learn from, of all processes together: the same result each time",
    )
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FILE", help="the .sprat file to write"
    )
    parser.add_argument(
        "--budget", type=budget, metavar="B", help="what it may weigh (default: what FILE weighs)"
    )
    add_text(parser)
    parser.add_argument(
        "--tokens",
        type=whole,
        metavar="N",
        help="tokens of text to learn from (default 32768, more for more minutes)",
    )
    parser.add_argument(
        "--deep",
        action="store_true",
        help="train the integers too, not the scales alone; for a file that was fitted with --set trellis=0",
    )
    parser.add_argument(
        "--rank",
        type=whole,
        default=0,
        metavar="R",
        help="also train products of rank R beside the maps, which need bytes of --budget (4: about 1 %% of 40 MB)",
    )
    add_device(parser, "where it is trained (with torchrun cuda is each process's own)")
    parser.add_argument("--rate", type=float, metavar="R", help="learning rate (default: the recipe's)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint beside the output")


def execute(arguments: argparse.Namespace) -> None:
    """Heal, then say what came of it."""
    given = calibrated_text(arguments)
    if arguments.rate is not None and not 0 < arguments.rate <= 0.1:
        raise RecipeError(f"--rate {arguments.rate:g} is not allowed; it must be above 0, at most 0.1")
    from sprat import heal as healing
    from sprat.training import processes

    kept = healing.checkpoint_path(arguments.out)
    found = _state(kept)
    with processes.joined() as first:
        try:
            with terminal.bars(first) as progress:
                result = healing.heal(
                    arguments.file,
                    arguments.against,
                    arguments.out,
                    minutes=arguments.minutes,
                    contexts=arguments.contexts,
                    calibrate=given,
                    tokens=arguments.tokens,
                    deep=arguments.deep,
                    rank=arguments.rank,
                    budget=arguments.budget,
                    rate=arguments.rate,
                    seed=arguments.seed,
                    resume=arguments.resume,
                    device=arguments.device,
                    progress=progress,
                )
        except KeyboardInterrupt:
            # One that an earlier run left is this one's only where it goes on from it.
            if first and kept.is_file() and (arguments.resume or _state(kept) != found):
                terminal.note("a checkpoint was kept: the same command with --resume goes on from it")
            elif first:
                after = f"{healing.CHECKPOINT_SECONDS:.0f} s"
                terminal.note(f"nothing was kept: the first checkpoint is written after {after} of training")
            raise
    if first:
        _show(result, arguments.file)


def _state(path: Path) -> tuple[int, int] | None:
    """What changes where a file is written anew; None where there is none."""
    found = path.stat() if path.is_file() else None
    return found and (found.st_ino, found.st_mtime_ns)


def _show(result: HealResult, file: Path) -> None:
    last = result.points[-1]
    change = f"{result.kl / result.before_kl - 1:+.0%}, {result.before_kl:.4f} before"
    rows = [
        ("file", f"{result.path}"),
        ("size", f"{result.nbytes:,} bytes ({format_bytes(result.nbytes)}), {result.before_nbytes:,} before"),
        ("measured KL", f"{result.kl:.4f} nats a token, on calibration text held out ({change})"),
        ("trained", f"{last.contexts} contexts in {last.seconds:.0f} s"),
    ]
    for name, value in rows:
        terminal.out().print(f"{name:<13} {value}", markup=False, soft_wrap=True)
    if not result.kept:
        terminal.note(
            f"healing did not help, so it was not kept ({result.rejected}): {result.path} is {file} as it was"
        )
