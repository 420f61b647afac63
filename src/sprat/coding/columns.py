"""The bytes of a packed tokenizer: numbers and strings in columns, each compressed by LZMA2.

blob   = varint(raw bytes) varint(packed bytes) LZMA2
column = varint(count) bytes-a-value(1) layout(1: 0 interleaved, 1 planes) blob
"""

from __future__ import annotations

import json
import lzma
from typing import Any

import numpy as np

from sprat.errors import FormatError

FILTERS = [
    {
        "id": lzma.FILTER_LZMA2,
        "preset": 9 | lzma.PRESET_EXTREME,
        "dict_size": 1 << 24,
        "lc": 3,
        "lp": 0,
        "pb": 0,
    }
]
#: What broken data raises in the parsers used here.
BROKEN = (lzma.LZMAError, ValueError, LookupError, TypeError, RecursionError, OverflowError, EOFError)


class Reader:
    """Reads what the functions below made, allocating nothing that the limit does not cover."""

    def __init__(self, data: bytes, limit: int) -> None:
        self._data, self._at, self.room = data, 0, limit

    def spend(self, size: int) -> None:
        self.room -= size
        if self.room < 0:
            raise FormatError("section 'tokenizer': it unpacks to more than a tokenizer may")

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def varint(self) -> int:
        value = 0
        for shift in range(0, 42, 7):
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise FormatError("section 'tokenizer': a number that is too long")

    def blob(self) -> bytes:
        raw, packed = self.varint(), self.varint()
        if packed > len(self._data) - self._at:
            raise FormatError("section 'tokenizer': truncated")
        self.spend(raw)
        data = self._data[self._at : self._at + packed]
        self._at += packed
        out = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=FILTERS).decompress(data, max_length=raw + 1)
        if len(out) != raw:
            raise FormatError("section 'tokenizer': a part is not as long as it says")
        return out

    def column(self, signed: bool = True) -> np.ndarray:
        """(count,) int64, or the unsigned values in their own width."""
        count, width, planes = self.varint(), self.byte(), self.byte()
        if width not in (1, 2, 4, 8):
            raise FormatError(f"section 'tokenizer': a column {width} bytes wide")
        raw = self.blob()
        if len(raw) != count * width:
            raise FormatError("section 'tokenizer': a column is not as long as it says")
        cells = np.frombuffer(raw, np.uint8)
        if planes:
            cells = cells.reshape(width, count).T
        values = np.ascontiguousarray(cells).reshape(-1).view(f"<u{width}")
        if not signed:
            return values
        self.spend(8 * count)
        return (
            (values.astype(np.int64) >> 1) ^ -(values.astype(np.int64) & 1)
            if width == 8
            else values.astype(np.int64)
        )

    def text_column(self) -> list[str]:
        """Strings, each ended by a zero."""
        raw = self.blob()
        self.spend(raw.count(0) * 64)
        return raw.decode("utf-8", "surrogatepass").split("\0")[:-1]


def column(values: Any, width: int = 0) -> bytes:
    """Numbers without sign in the least width; with sign in eight bytes, folded to even and odd."""
    values = np.asarray(values)
    if not width:
        values = values.astype(np.int64)
        top = int(values.max(initial=0))
        width = 1 if top < 1 << 8 else 2 if top < 1 << 16 else 4
        if values.min(initial=0) < 0 or top >= 1 << 32:
            values, width = (values << 1) ^ (values >> 63), 8
    cells = values.astype(f"<u{width}").view(np.uint8).reshape(-1, width)
    layouts = [blob(cells.tobytes()), blob(cells.T.tobytes())]
    planes = int(len(layouts[1]) < len(layouts[0]))
    return varint(len(values)) + bytes([width, planes]) + layouts[planes]


def text_column(strings: list[str]) -> bytes:
    """Strings with a zero behind each, as a blob; ValueError where one holds a zero."""
    if any("\0" in s for s in strings):
        raise ValueError("a token holds a zero")
    return blob("".join(s + "\0" for s in strings).encode("utf-8", "surrogatepass"))


def blob(data: bytes) -> bytes:
    """Both lengths, and `data` in raw LZMA."""
    # A dictionary no larger than the data finds the same matches; clearing 16 MB for each part took most of the time.
    fitting = {**FILTERS[0], "dict_size": min(FILTERS[0]["dict_size"], max(len(data), 1 << 12))}
    packed = lzma.compress(data, lzma.FORMAT_RAW, filters=[fitting])
    return varint(len(data)) + varint(len(packed)) + packed


def varint(value: int) -> bytes:
    """LEB128: seven bits a byte, the low ones first."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def dump(value: Any) -> bytes:
    """JSON without spaces, in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
