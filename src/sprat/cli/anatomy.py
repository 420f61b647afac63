"""`sprat anatomy`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sprat.cli import terminal
from sprat.cli.arguments import whole
from sprat.errors import SourceError
from sprat.sizes import format_bytes

if TYPE_CHECKING:
    from sprat.anatomy.required import Finding
    from sprat.anatomy.shape import Shape

SUMMARY = "Count a model's parameters, bytes and work by its shape alone, and say what a claim would need."
EXAMPLES = """  sprat anatomy ./model
  sprat anatomy config.json --context 8192 --json
  sprat anatomy --width 4096 --layers 64 --ffn 16384 --vocab 50257 --claim "17.6B to 417M"
  sprat anatomy --claim "1.15 GB at 1.125 bpw" """.rstrip()

RATES = (16, 8, 4, 3, 2, 1.58, 1)
_NUMBERS = ("width", "layers", "ffn", "vocab", "heads", "kv_heads", "head_dim")
_NEEDED = _NUMBERS[:4]


def configure(parser: argparse.ArgumentParser) -> None:
    """A model or its shape, and what is claimed of it."""
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="a config.json, a folder that has one, or a .sprat file"
    )
    shape = parser.add_argument_group("shape, without a MODEL")
    help_texts = {
        "width": "of the hidden state",
        "layers": "decoder layers",
        "ffn": "width inside the feed-forward",
        "vocab": "tokens",
        "heads": "attention heads (default width / 128)",
        "kv_heads": "key-value heads (default heads)",
        "head_dim": "width of a head (default width / heads)",
    }
    for name in _NUMBERS:
        shape.add_argument(f"--{name.replace('_', '-')}", type=whole, metavar="N", help=help_texts[name])
    shape.add_argument("--tied", action="store_true", help="the head is the embedding")
    shape.add_argument(
        "--ungated", action="store_true", help="two feed-forward maps (GPT-2), not three (Llama)"
    )
    parser.add_argument(
        "--claim",
        metavar="TEXT",
        action="append",
        default=[],
        help='say what would have to be true, such as "17.6B to 417M", "1.15 GB at 1.125 bpw", "42x", '
        '"50%% smaller" or "50%% zeros" (may be given several times)',
    )
    parser.add_argument(
        "--context", type=whole, default=2048, metavar="N", help="tokens of context (default %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def execute(arguments: argparse.Namespace) -> None:
    """Count, then print tables and sentences, or JSON."""
    from sprat.anatomy.claim import parse
    from sprat.anatomy.required import required

    shape = _shape(arguments)
    findings = {text: required(parse(text), shape) for text in arguments.claim}
    if arguments.json:
        terminal.write_json(_json(shape, findings, arguments.context))
        return
    if shape is not None:
        _show(shape, arguments.context)
    console = terminal.out()
    for text, found in findings.items():
        console.print(f'\nFor "{text}" to be true:', markup=False, soft_wrap=True)
        for finding in found:
            console.print(f"  - {finding.statement}", markup=False, soft_wrap=True)
        if not found:
            console.print("  - nothing follows without a model: give MODEL or its shape", markup=False)


def _shape(arguments: argparse.Namespace) -> Shape | None:
    """From the model or the numbers; None where there is a claim alone."""
    from sprat.anatomy import config
    from sprat.anatomy.shape import from_numbers

    given = [name for name in _NUMBERS if getattr(arguments, name) is not None]
    if arguments.model is not None:
        if given:
            raise SourceError(
                f"give a MODEL or its shape, not both: --{given[0].replace('_', '-')} is in the config"
            )
        return config.read(arguments.model)
    if not given and arguments.claim:
        return None
    if missing := [f"--{name}" for name in _NEEDED if name not in given]:
        raise SourceError(
            f"an anatomy needs a MODEL (config.json, its folder, a .sprat), or a shape: {', '.join(missing)} missing"
        )
    return from_numbers(
        arguments.width,
        arguments.layers,
        arguments.ffn,
        arguments.vocab,
        arguments.heads,
        arguments.kv_heads,
        arguments.head_dim,
        arguments.tied,
        not arguments.ungated,
    )


def sizes(shape: Shape) -> list[dict[str, float]]:
    """Bytes at each rate: for every parameter, and for the layers' maps alone with all else in 16 bits."""
    inside = sum(shape.parts.get(name, 0) for name in ("attention", "feed-forward"))
    rest = shape.parameters - inside
    return [
        {
            "bits_a_weight": rate,
            "bytes": round(shape.parameters * rate / 8),
            "bytes_layers_only": round(inside * rate / 8 + 2 * rest),
        }
        for rate in RATES
    ]


def _json(shape: Shape | None, findings: dict[str, list[Finding]], context: int) -> dict[str, Any]:
    out: dict[str, Any] = {"schema": "sprat.anatomy/1"}
    if shape is not None:
        out |= {
            "shape": {name: value for name, value in asdict(shape).items() if name != "windows"},
            "parts": shape.parts,
            "parameters": shape.parameters,
            "active_parameters": shape.active,
            "sizes": sizes(shape),
            "context": context,
            "flops_a_token": shape.flops(context),
            "cache_bytes": shape.cache_bytes(context),
            "cache_bytes_a_token": shape.cache_bytes(1),
        }
    out["claims"] = [
        {"claim": text, "findings": [asdict(f) for f in found]} for text, found in findings.items()
    ]
    return out


def _show(shape: Shape, context: int) -> None:
    console = terminal.out()
    tied = "tied" if shape.tied else "untied"
    experts = f"{shape.chosen} of {shape.experts} experts of " if shape.experts else ""
    console.print(
        f"{shape.family}: {shape.layers} layers of width {shape.width:,}, feed-forward {experts}{shape.ffn:,}"
        f"{'' if shape.gated else ' (ungated)'}, {shape.heads} heads ({shape.kv_heads} of keys and values) of "
        f"{shape.head_dim}, {shape.vocabulary:,} tokens, {tied}\n",
        markup=False,
        soft_wrap=True,
    )
    total = shape.parameters
    rows = [(name, f"{n:,}", f"{100 * n / total:.1f} %") for name, n in shape.parts.items()]
    rows.append(("all", f"{total:,}", ""))
    if shape.experts:
        rows.append(("of one token", f"{shape.active:,}", f"{100 * shape.active / total:.1f} %"))
    console.print(terminal.table(("part", "parameters", "share"), rows))
    console.print()
    columns = ("bits a weight", "whole model", "layers alone, the rest in 16 bits")
    lines = [
        (f"{row['bits_a_weight']:g}", format_bytes(row["bytes"]), format_bytes(row["bytes_layers_only"]))
        for row in sizes(shape)
    ]
    console.print(terminal.table(columns, lines))
    console.print(
        f"\n{_scaled(shape.flops(context))}FLOP for a token behind {context:,}; key-value cache (16 bits) "
        f"{format_bytes(shape.cache_bytes(1))} a token, {format_bytes(shape.cache_bytes(context))} for {context:,}",
        markup=False,
        soft_wrap=True,
    )


def _scaled(value: float) -> str:
    """`0.27 G`, `35.2 G`, `1.2 T`"""
    unit, scale = ("T", 1e12) if value >= 1e12 else ("G", 1e9) if value >= 1e8 else ("M", 1e6)
    return f"{value / scale:.3g} {unit}"
