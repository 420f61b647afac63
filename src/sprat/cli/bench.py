"""`sprat bench`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from sprat.cli import running, terminal
from sprat.cli.arguments import add_file, whole
from sprat.sizes import format_bytes

if TYPE_CHECKING:
    from sprat.run.measure import Measurement

SUMMARY = "Measure how fast a .sprat file runs on this machine."
EXAMPLES = """  sprat bench smol.sprat
  sprat bench smol.sprat --threads 1 --json"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Which file, how often, and how it is computed."""
    add_file(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--runs", type=whole, default=5, metavar="N", help="medians of N runs are told (default 5)"
    )
    running.add_engine(parser)


def _resident(found: Measurement) -> str:
    """What stands beside the memory of the process."""
    libraries = f"Python and libraries {format_bytes(found.imported_bytes)}"
    if found.resident_ratio is None:
        return libraries
    return f"{libraries}, the rest {found.resident_ratio:.2f} x weights and cache"


def execute(arguments: argparse.Namespace) -> None:
    """Measure, then print a table or JSON."""
    from sprat.run.measure import measure

    with terminal.bars() as progress:
        found, engine = measure(
            arguments.file,
            arguments.threads,
            arguments.context,
            arguments.engine,
            arguments.runs,
            progress,
            arguments.cache,
            arguments.keep_unpacked,
        )
    running.note_engine(engine, arguments)
    if arguments.json:
        terminal.write_json(found.to_json())
        return
    low, high = found.spread["decode"]
    read_low, read_high = found.spread["prefill"]
    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    kernel = f", {found.kernel}" if found.kernel else ""
    rows = [
        ("decode", f"{found.decode_tokens_per_second:.1f} tokens/s", f"{low:.1f} to {high:.1f}"),
        (
            f"prefill, {found.prefill_tokens} tokens",
            f"{found.prefill_tokens_per_second:.1f} tokens/s",
            f"{read_low:.1f} to {read_high:.1f}",
        ),
        ("open", f"{found.open_seconds:.3f} s", ""),
        ("open to first token", f"{found.first_token_seconds:.3f} s", ""),
        ("resident", format_bytes(found.resident_bytes), _resident(found)),
        (
            "memory bandwidth",
            f"{found.bandwidth_bytes_per_second / 1e9:.1f} GB/s",
            f"reading {format_bytes(found.bandwidth_array_bytes)}",
        ),
    ]
    if found.cache_bytes is not None:
        cache = f"{found.context:,} tokens in {found.cache}"
        rows.insert(5, ("key-value cache", format_bytes(found.cache_bytes), cache))
    if found.bytes_per_token is not None and found.bandwidth_share is not None:
        rows.insert(4, ("weights read a token", format_bytes(found.bytes_per_token), ""))
        rows.append(("share of it reached", f"{100 * found.bandwidth_share:.0f} %", "decode x bytes a token"))
    console = terminal.out()
    console.print(
        f"{found.file}: {format_bytes(found.file_bytes)}, {found.engine} engine{kernel}, {threads}",
        markup=False,
        soft_wrap=True,
    )
    console.print(terminal.table(("", f"median of {found.runs}", "range"), rows))
