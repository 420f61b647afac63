"""`sprat prove`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from sprat.cli import terminal
from sprat.cli.arguments import add_file, seed, whole
from sprat.cli.tasks import task_table
from sprat.sizes import format_bytes

if TYPE_CHECKING:
    from sprat.prove.intervals import Estimate
    from sprat.prove.proof import Proof

SUMMARY = "Measure what a .sprat file lost against its original, each figure with an interval."
EXAMPLES = """  sprat prove smol.sprat --against smollm2-135m --text held-out.txt
  sprat prove smol.sprat --against ./model --text held-out.txt --tokens 100000 --json > proof.json
  sprat prove big.sprat --against ./big --text held-out.txt --dtype bfloat16"""


def configure(parser: argparse.ArgumentParser) -> None:
    """What to compare, on which text, and how much of it."""
    add_file(parser)
    parser.add_argument(
        "--against", required=True, metavar="MODEL", help="the original, as `sprat fit` takes it"
    )
    parser.add_argument(
        "--text", required=True, metavar="TEXT", help="a UTF-8 text file, not used for calibration"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the whole proof as JSON instead of a table"
    )
    parser.add_argument(
        "--tokens",
        type=whole,
        metavar="N",
        help="tokens of text to read, spread evenly (default 40 contexts)",
    )
    parser.add_argument(
        "--context", type=whole, default=512, metavar="N", help="tokens a context (default 512)"
    )
    parser.add_argument(
        "--skip", type=int, metavar="N", help="leave the first N positions of each context out (default half)"
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        help="compute both models in float32 (default) or bfloat16: about twice as fast, adds a KL "
        "of about 0.001",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=[],
        metavar="TASK",
        help="questions for both models: JSON-lines files (ARC, PIQA, LAMBADA, BLiMP, ...) or names of "
        "lm-evaluation-harness tasks (pip install 'sprat[eval]')",
    )
    parser.add_argument(
        "--task-items",
        type=whole,
        metavar="N",
        help="at most N questions of each task, evenly spread (default all)",
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of the bootstrap (default 0)")


def execute(arguments: argparse.Namespace) -> None:
    """Measure, then print the figures with their intervals; warnings go to standard error."""
    from sprat.prove.proof import prove

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
            tasks=arguments.tasks,
            task_items=arguments.task_items,
            progress=progress,
        )
    if arguments.json:
        terminal.write_json(proof.to_json())
    else:
        _show(proof)
    for warning in proof.warnings:
        terminal.note(warning)


def _show(proof: Proof) -> None:
    size, original = proof.file["bytes"], proof.against["bytes"]
    m, s = proof.metrics, proof.settings
    rows = [
        ("KL, nats a token", _figure(m.kl, 4), _interval(m.kl, 4)),
        ("  median, p99, max", f"{m.kl_median:.4f}, {m.kl_p99:.3f}, {m.kl_max:.2f}", ""),
        ("same top token", _figure(m.same_top, 1, 100) + " %", _interval(m.same_top, 1, 100)),
        ("perplexity", _figure(m.perplexity_compressed, 3), _interval(m.perplexity_compressed, 3)),
        ("  of the original", _figure(m.perplexity_original, 3), _interval(m.perplexity_original, 3)),
        ("  ratio", _figure(m.perplexity_ratio, 4), _interval(m.perplexity_ratio, 4)),
        ("bits a byte", _figure(m.bits_per_byte_compressed, 4), _interval(m.bits_per_byte_compressed, 4)),
        ("  of the original", _figure(m.bits_per_byte_original, 4), _interval(m.bits_per_byte_original, 4)),
        ("  difference", _figure(m.bits_per_byte_difference, 4), _interval(m.bits_per_byte_difference, 4)),
    ]
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
    console.print(
        f"{s['scored_tokens']:,} tokens scored in {s['contexts']} contexts of {s['context']} "
        f"from {proof.text['path']}, {s['dtype']}, {proof.seconds:.0f} s",
        markup=False,
        soft_wrap=True,
    )


def _figure(estimate: Estimate, places: int, scale: float = 1) -> str:
    return f"{estimate.value * scale:.{places}f}"


def _interval(estimate: Estimate, places: int, scale: float = 1) -> str:
    return f"{estimate.low * scale:.{places}f} to {estimate.high * scale:.{places}f}"
