"""A file's ledger as a person reads it: attention, feed-forward, …, and where in the model they lie."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from sprat.coding.ledger import Ledger, Line

#: What a section is, by the first pattern that its name has.
_KINDS = (
    (r"embed|wte|wpe|lm_head", "embedding and head"),
    (r"attn|attention", "attention"),
    (r"mlp|ffn|feed_forward|moe|experts", "feed-forward"),
)


@dataclass(frozen=True)
class Part:
    """Bytes that belong together."""

    kind: str
    layer: int | None
    nbytes: int
    weights: int
    zeros: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.weights if self.weights else 0.0

    def __add__(self, other: Part) -> Part:
        return replace(
            self,
            nbytes=self.nbytes + other.nbytes,
            weights=self.weights + other.weights,
            zeros=self.zeros + other.zeros,
        )


def parts(ledger: Ledger) -> list[Part]:
    """One part for each kind in each layer, in the order of the file."""
    merged: dict[tuple[int | None, str], Part] = {}
    for line in ledger.lines:
        number = re.search(r"(?:layers|h|blocks)\.(\d+)\.", line.name)
        layer = int(number[1]) if number else None
        part = Part(_kind(line), layer, line.nbytes, line.weights, line.zeros)
        key = (layer, part.kind)
        merged[key] = merged[key] + part if key in merged else part
    return list(merged.values())


def _kind(line: Line) -> str:
    if line.kind == "file":
        return "tokenizer"
    if line.kind == "dense":
        return "norms and biases"
    if line.kind not in ("lattice", "left", "right"):
        return "header and tables"
    return next((kind for pattern, kind in _KINDS if re.search(pattern, line.name)), "other")


def by_kind(found: list[Part]) -> list[Part]:
    """One part for each kind, the largest first."""
    kinds: dict[str, Part] = {}
    for part in found:
        kinds[part.kind] = kinds[part.kind] + part if part.kind in kinds else replace(part, layer=None)
    return sorted(kinds.values(), key=lambda part: -part.nbytes)


def by_layer(found: list[Part]) -> list[tuple[str, Part]]:
    """A row for each layer in order, and one for each kind that belongs to none."""
    rows: dict[tuple[int, str], Part] = {}
    for part in found:
        key = (1, part.kind) if part.layer is None else (0, f"{part.layer:04d}")
        rows[key] = rows[key] + part if key in rows else part
    return [(name if group else f"layer {int(name)}", rows[group, name]) for group, name in sorted(rows)]
