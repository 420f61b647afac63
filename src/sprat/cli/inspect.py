"""`sprat inspect`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprat.cli import terminal
from sprat.cli.arguments import add_cache, add_file, whole
from sprat.cli.picture import svg
from sprat.coding.parts import Part, by_kind, by_layer, parts
from sprat.errors import FormatError, UnsupportedError
from sprat.folders import refuse_target, write_whole
from sprat.sizes import format_bytes

if TYPE_CHECKING:
    from rich.table import Table

    from sprat.coding.container import Artifact

SUMMARY = "Show where the bytes of a .sprat file are."
EXAMPLES = """  sprat inspect smol.sprat
  sprat inspect smol.sprat --json | jq .sections
  sprat inspect smol.sprat --svg smol.svg"""

_BAR = 40


def configure(parser: argparse.ArgumentParser) -> None:
    """Which file, and in which form."""
    add_file(parser)
    parser.add_argument(
        "--json", action="store_true", help="print the whole ledger, config and recipe as JSON"
    )
    parser.add_argument("--svg", type=Path, metavar="OUT", help="write the picture as an SVG file too")
    parser.add_argument(
        "--context",
        type=whole,
        metavar="N",
        help="tokens whose key-value cache is told (default: what the model was made for)",
    )
    add_cache(parser)
    parser.add_argument("--verify", action="store_true", help="check the hash of every section")


def execute(arguments: argparse.Namespace) -> None:
    """Print the ledger as a picture or JSON; an SVG is written whole or not at all."""
    import sprat

    if arguments.svg is not None:
        refuse_target(arguments.svg, arguments.file)
    artifact = sprat.open(arguments.file)
    if arguments.verify:
        artifact.verify()
    found = parts(artifact.ledger())
    cache = _cache(artifact, arguments)
    title = f"{arguments.file.name}: {artifact.config.get('model_type', 'model')}"
    if arguments.svg is not None:
        write_whole(arguments.svg, svg(found, title))
    if arguments.json:
        terminal.write_json(_json(arguments.file, artifact) | ({"cache": cache} if cache else {}))
    else:
        _show(arguments.file, artifact, found, cache)


def _cache(artifact: Artifact, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """What the native engine's key-value cache takes; None where it does not serve the model."""
    from sprat.run.architecture import architecture, check_cache

    precision = check_cache(arguments.cache)
    try:
        made = architecture(artifact.config)
    except (FormatError, UnsupportedError):
        return None
    context, token = arguments.context or made.context, made.cache_bytes(precision)
    return {"precision": precision, "context": context, "bytes_per_token": token, "bytes": context * token}


def _json(file: Path, artifact: Artifact) -> dict[str, Any]:
    ledger = artifact.ledger()
    rate = {"bits_per_weight": 8 * ledger.total / ledger.weights} if ledger.weights else {}
    return {
        "schema": "sprat.inspect/1",
        "file": str(file),
        "bytes": file.stat().st_size,
        **rate,
        **ledger.to_json(),
        "config": artifact.config,
        "recipe": artifact.recipe,
        "provenance": artifact.provenance,
    }


def _show(file: Path, artifact: Artifact, found: list[Part], cache: dict[str, Any] | None) -> None:
    console, size = terminal.out(), file.stat().st_size
    weights = sum(part.weights for part in found)
    rate = f", {weights:,} weights, {8 * size / weights:.3f} bits a weight in all" if weights else ""
    console.print(f"{file}: {size:,} bytes ({format_bytes(size)}){rate}", markup=False, soft_wrap=True)
    console.print()
    console.print(_bars("kind", [(part.kind, part) for part in by_kind(found)], size))
    console.print()
    console.print(_bars("layer", by_layer(found), size))
    if cache:
        console.print(
            f"\nrunning it takes a key-value cache besides: {cache['bytes_per_token']:,} bytes a token in "
            f"{cache['precision']}, {format_bytes(cache['bytes'])} for a context of {cache['context']:,}",
            markup=False,
            soft_wrap=True,
        )
    if name := artifact.provenance.get("model"):
        console.print(f"\nmade from {name}", markup=False, soft_wrap=True)
    for line in _structure(artifact.provenance.get("structure")):
        console.print(line, markup=False, soft_wrap=True)


def _structure(removed: Any) -> list[str]:
    """A line for each kind of thing that structural pruning removed, as far as the file says it."""
    if not isinstance(removed, dict):
        return []
    names = {
        "ffn": "feed-forward neurons a layer",
        "kv_heads": "key-value heads a layer",
        "experts": "experts a layer",
        "vocabulary": "tokens",
    }
    lines = []
    for kind, said in removed.items():
        if not isinstance(said, dict):
            continue
        if kind == "layers":
            gone = said.get("removed")
            gone = ", ".join(map(str, gone)) if isinstance(gone, list) else gone
            lines.append(f"removed: of {said.get('of')} layers {gone} (counted from 0)")
        elif kind in names:
            lines.append(f"kept: {said.get('kept')} of {said.get('of')} {names[kind]}")
    return lines


def _bars(what: str, rows: list[tuple[str, Part]], size: int) -> Table:
    """A line a row: bytes, share, bits a weight, share of zeros, and a bar as long as its bytes."""
    widest = max(part.nbytes for _, part in rows)
    lines = [
        (
            name,
            f"{part.nbytes:,}",
            f"{100 * part.nbytes / size:.1f} %",
            f"{part.bits_per_weight:.2f}" if part.weights else "",
            f"{100 * part.zeros / part.weights:.0f} %" if part.weights else "",
            _bar(part.nbytes / widest),
        )
        for name, part in rows
    ]
    made = terminal.table((what, "bytes", "share", "bits a weight", "zeros", ""), lines)
    made.columns[-1].justify = "left"
    made.columns[-1].style = "cyan"
    return made


def _bar(share: float) -> str:
    """A bar of up to 40 cells, drawn in eighths of one."""
    eighths = max(1, round(share * _BAR * 8))
    return "█" * (eighths // 8) + ("▏▎▍▌▋▊▉"[eighths % 8 - 1] if eighths % 8 else "")
