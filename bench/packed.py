"""Group-quantized matrices and the complete file that a tool would keep them in: packed, weighed, read back.

The file is one safetensors: integers packed without gaps at their own width, scales in two bytes, integer
zero points packed at the integers' width (HQQ's fractional ones in two bytes), everything else in bf16, and
the same packed tokenizer and config that a `.sprat` holds, so that its bytes compare with a `.sprat`'s.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file


@dataclass(frozen=True)
class Grouped:
    """W = (q - zero) · scale with one scale and zero point for every `group` neighbours of a row of q.

    q: (r, c) uint8, laid out as the method groups it;
    shape: (m, n) of the matrix that it stands for, m·n = r·c;
    scale: (r, ceil(c / group)) float32, exact in `number`;
    zero: of the same shape, uint8, or float32 exact in `number`.
    """

    q: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    bits: int
    group: int
    shape: tuple[int, int]
    number: str = "bf16"

    def dense(self) -> np.ndarray:
        """(m, n) float32."""
        columns = self.q.shape[1]
        scale = np.repeat(self.scale, self.group, axis=1)[:, :columns]
        zero = np.repeat(self.zero.astype(np.float32), self.group, axis=1)[:, :columns]
        return ((self.q.astype(np.float32) - zero) * scale).reshape(self.shape)

    def entropy_bits(self) -> float:
        """Bits of the integers under an ideal code for their own distribution, one table for the matrix."""
        counts = np.bincount(self.q.ravel(), minlength=2).astype(np.float64)
        counts = counts[counts > 0]
        return float((counts * np.log2(counts.sum() / counts)).sum())


@dataclass(frozen=True)
class Weight:
    """What a file weighs, in bytes: as it lies on disk, and with its integers under an ideal entropy code
    (a table a matrix, free) and its scales and zero points under lzma."""

    disk: int
    compressed: int


def pack_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """uint8 values below 2**bits as a gapless stream of bytes, lowest bit first."""
    if bits == 8:
        return values.astype(np.uint8).ravel()
    out = []
    flat = values.astype(np.uint8).ravel()
    for start in range(0, len(flat), 1 << 20):  # a multiple of 8 values ends on a whole byte
        part = flat[start : start + (1 << 20), None] >> np.arange(bits, dtype=np.uint8) & 1
        out.append(np.packbits(part.ravel(), bitorder="little"))
    return np.concatenate(out) if out else np.zeros(0, np.uint8)


def unpack_bits(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The inverse of `pack_bits`: (count,) uint8."""
    if bits == 8:
        return packed[:count].copy()
    out = np.zeros(count, np.uint8)
    for start in range(0, count, 1 << 20):
        size = min(1 << 20, count - start)
        part = packed[start * bits // 8 : -(-(start + size) * bits // 8)]
        planes = np.unpackbits(part, bitorder="little")[: size * bits].reshape(size, bits)
        out[start : start + size] = (planes << np.arange(bits, dtype=np.uint8)).sum(1, dtype=np.uint8)
    return out


def to_number(values: np.ndarray, number: str) -> np.ndarray:
    """float32 values rounded to "bf16" (nearest, ties to even) or "f16", as float32."""
    values = np.asarray(values, np.float32)
    if number == "f16":
        return values.astype(np.float16).astype(np.float32)
    return _from_bits(_to_bits(values, number), number)


def write(
    path: Path,
    quantized: Mapping[str, Grouped],
    others: Mapping[str, np.ndarray],
    tokenizer: bytes,
    config: Mapping[str, Any],
) -> Weight:
    """Write the whole model; others: float32 arrays that are kept in bf16 (norms, biases)."""
    arrays: dict[str, np.ndarray] = {"tokenizer": np.frombuffer(tokenizer, np.uint8)}
    layout: dict[str, Any] = {}
    saved = 0.0
    for name, x in quantized.items():
        fractional = x.zero.dtype != np.uint8
        parts = {
            "q": pack_bits(x.q, x.bits),
            "s": _to_bits(x.scale, x.number),
            "z": _to_bits(x.zero, x.number) if fractional else pack_bits(x.zero, x.bits),
        }
        arrays |= {f"{name}.{key}": part for key, part in parts.items()}
        layout[name] = [x.bits, x.group, *x.q.shape, *x.shape, x.number, fractional]
        saved += parts["q"].nbytes - x.entropy_bits() / 8
        for key in ("s", "z"):
            saved += max(0, parts[key].nbytes - len(lzma.compress(parts[key].tobytes())))
    for name, array in others.items():
        arrays[name] = _to_bits(array, "bf16")
    save_file(arrays, path, metadata={"config": _dump(config), "layout": _dump(layout)})
    disk = path.stat().st_size
    return Weight(disk, round(disk - saved))


def read(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file as a dense float32 array: what a user of the file gets."""
    out: dict[str, np.ndarray] = {}
    with safe_open(path, framework="np") as file:
        layout = json.loads(file.metadata()["layout"])
        for name, (bits, group, r, c, m, n, number, fractional) in layout.items():
            groups = -(-c // group)
            scale = _from_bits(file.get_tensor(f"{name}.s"), number).reshape(r, groups)
            raw = file.get_tensor(f"{name}.z")
            zero = _from_bits(raw, number) if fractional else unpack_bits(raw, bits, r * groups)
            q = unpack_bits(file.get_tensor(f"{name}.q"), bits, r * c).reshape(r, c)
            out[name] = Grouped(q, scale, zero.reshape(r, groups), bits, group, (m, n), number).dense()
        packed = {f"{name}.{key}" for name in layout for key in "qsz"} | {"tokenizer"}
        for name in file.keys():  # noqa: SIM118 (no mapping)
            if name not in packed:
                out[name] = _from_bits(file.get_tensor(name), "bf16")
    return out


def _to_bits(values: np.ndarray, number: str) -> np.ndarray:
    values = np.ascontiguousarray(values, np.float32)
    if number == "f16":
        return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _from_bits(bits: np.ndarray, number: str) -> np.ndarray:
    if number == "f16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _dump(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))
