"""Where every byte of a `.sprat` goes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Line:
    """One section; weights and zeros are 0 where it has none."""

    name: str
    kind: str  # "header", "tables", "lattice", "left", "right", "dense" or "file"
    nbytes: int
    shape: tuple[int, ...] = ()
    weights: int = 0
    zeros: int = 0

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.weights if self.weights else 0.0

    @property
    def zero_share(self) -> float:
        return self.zeros / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class Ledger:
    """All sections of an artifact; their bytes sum to the file's size."""

    lines: tuple[Line, ...]

    @property
    def total(self) -> int:
        return sum(line.nbytes for line in self.lines)

    @property
    def weights(self) -> int:
        return sum(line.weights for line in self.lines)

    def by_kind(self) -> dict[str, int]:
        """Bytes of each kind, in the order of the file."""
        out: dict[str, int] = {}
        for line in self.lines:
            out[line.kind] = out.get(line.kind, 0) + line.nbytes
        return out

    def to_json(self) -> dict[str, Any]:
        return {
            "total": self.total,
            "weights": self.weights,
            "by_kind": self.by_kind(),
            "sections": [
                asdict(line) | {"bits_per_weight": line.bits_per_weight, "zero_share": line.zero_share}
                for line in self.lines
            ],
        }
