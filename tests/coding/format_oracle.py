"""A reader of `.sprat` in plain Python, written from docs/format.md, to check the native code against."""

from __future__ import annotations

import hashlib
import itertools
import json
import struct
import zlib

M = 1 << 14
POWERS = [16777216, 15384774, 14107901, 12937002, 11863283, 10878678, 9975792, 9147842]
TRELLIS = {
    0: ([(0, 0)], lambda s: 0),
    1: ([(0, 2), (2, 0), (1, 3), (3, 1)], lambda s: s >> 1),
    2: ([(0, 2), (5, 7), (1, 3), (6, 4), (2, 0), (4, 6), (3, 1), (7, 5)], lambda s: s & 1),
}


def cells_of(b: int) -> int:
    return 16 if b <= 20 else 32 if b <= 26 else 64 if b <= 30 else 128


def raw_of(b: int) -> int:
    return 0 if b <= 38 else (b - 35) // 4


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


class Bits:
    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.low, self.high = data, 4, 0, 2**32 - 1
        self.value = int.from_bytes(data[:4].ljust(4, b"\0"), "big")

    def bit(self, p: int) -> int:
        mid = self.low + ((self.high - self.low) * p >> 16)
        one = self.value <= mid
        if one:
            self.high = mid
        else:
            self.low = mid + 1
        while self.low >> 24 == self.high >> 24:
            byte = self.data[self.at] if self.at < len(self.data) else 0
            self.at += 1
            self.low = self.low << 8 & 0xFFFFFFFF
            self.high = (self.high << 8 & 0xFFFFFFFF) | 255
            self.value = (self.value << 8 & 0xFFFFFFFF) | byte
        return int(one)


class Model:
    def __init__(self) -> None:
        self.p, self.n = 32768, 0

    def read(self, bits: Bits) -> int:
        one = bits.bit(min(max(self.p, 512), 65024))
        if one:
            self.p += (65535 - self.p) * 2 // (2 * self.n + 3)
        else:
            self.p -= self.p * 2 // (2 * self.n + 3)
        self.n = min(self.n + 1, 127)
        return one


class IntModel:
    def __init__(self) -> None:
        self.zero, self.last = Model(), 0
        self.sign = [Model() for _ in range(3)]
        self.exponent, self.first = [Model() for _ in range(34)], [Model() for _ in range(34)]
        self.second = [(Model(), Model()) for _ in range(34)]

    def read(self, bits: Bits) -> int:
        if self.zero.read(bits):
            self.last = 0
            return 0
        negative = self.sign[self.last].read(bits)
        self.last = 1 + negative
        e = 0
        while self.exponent[e].read(bits):
            e += 1
            assert e <= 32
        magnitude, t = 1, 0
        for i in range(e):
            if i == 0:
                bit = t = self.first[e].read(bits)
            elif i == 1:
                bit = self.second[e][t].read(bits)
            else:
                bit = bits.bit(32768)
            magnitude = magnitude * 2 + bit
        return -magnitude if negative else magnitude


def vector(data: bytes, n: int) -> list[int]:
    bits = Bits(data)
    mode, base = bits.bit(32768), IntModel().read(bits)
    models, c, out = [IntModel() for _ in range(4)], 0, []
    for _ in range(n):
        d = models[c].read(bits)
        out.append(base + d)
        if mode:
            base, c = base + d, min(3, (abs(d) // 2).bit_length())
    return out


def tables(data: bytes) -> dict[tuple[int, int], list[int]]:
    """(quantizer, bucket) → frequencies."""
    bits, flags, models, last, out = Bits(data), [Model(), Model()], [IntModel() for _ in range(9)], 0, {}
    for z in range(2):
        centre, drop, end = 0, 16, 112
        for b in range(64):
            cells = cells_of(b)
            last = flags[last].read(bits)
            if not last:
                out[z, b] = [0] * (cells - 1) + [M]
                continue
            middle, v = cells // 2 - 1, {0: 0}
            o = models[0].read(bits)
            v[0] = centre + o
            for h in range(1, middle + 1):
                if h == 1:
                    expected, model = v[0] + drop, 1
                else:
                    expected = 127 if v[h - 1] == 127 else 2 * v[h - 1] - v[h - 2]
                    model = 2 + min(abs(o), 2)
                o = models[model].read(bits)
                v[h] = min(max(expected, 0), 127) + o
                expected = v[h - 1] if raw_of(b) else v[h]
                o = models[5 + min(abs(o), 2)].read(bits)
                v[-h] = expected + o
            end += models[8].read(bits)
            centre, drop = v[0], v[1] - v[0]
            out[z, b] = frequencies([v[h] for h in range(-middle, middle + 1)] + [end])
    return out


def frequencies(levels: list[int]) -> list[int]:
    weights = [0 if v == 127 else POWERS[v & 7] >> (v >> 3) for v in levels]
    total = sum(weights)
    f = [max(1, w * M // total) if w else 0 for w in weights]
    f[-1] = max(1, f[-1])
    f[f.index(max(f))] += M - sum(f)
    return f


def alias(f: list[int]) -> list[tuple[int, tuple[int, int, int], tuple[int, int, int]]]:
    """A cell: cut, (cell of symbol, freq, bias) of both halves."""
    n, size = len(f), M // len(f)
    left, other = list(f), list(range(n))
    small, large = [i for i in range(n) if f[i] < size], [i for i in range(n) if f[i] >= size]
    while small:
        s, g = small.pop(), large[-1]
        other[s] = g
        left[g] -= size - left[s]
        if left[g] < size:
            small.append(large.pop())
    cut = [min(v, size) for v in left]
    used, out = list(cut), []
    for i in range(n):
        a = other[i]
        out.append((cut[i], (i, f[i], 0), (a, f[a], used[a] - cut[i])))
        if cut[i] < size:
            used[a] += size - cut[i]
    return out


class Lane:
    def __init__(self, x: int, words: list[int]) -> None:
        self.x, self.words = x, words

    def refill(self) -> None:
        if self.x < 1 << 16:
            self.x = self.x << 16 | self.words.pop()

    def raw(self, t: int) -> int:
        if t == 0:
            return 0
        v = self.x & ((1 << t) - 1)
        self.x >>= t
        self.refill()
        return v

    def symbol(self, cells: list, r: int) -> int:
        n = len(cells)
        size = M // n
        u, cell = self.x % size, self.x % M // size
        cut, *halves = cells[cell]
        s, f, bias = halves[u >= cut]
        self.x = f * (self.x >> 14) + u + bias
        self.refill()
        if s < n - 1:
            return ((s - (n // 2 - 1)) << r) + self.raw(r)
        e = self.raw(7)
        length = e % 64
        if length == 0:
            return 0
        p = min(16, length - 1)
        k = 2 ** (length - 1) + self.raw(p)
        k += self.raw(length - 1 - p) << p
        return -k if e >= 64 else k


def integers(
    data: bytes, m: int, n: int, rows: list[int], cols: list[int], kind: int, freq: dict
) -> list[list[int]]:
    chunk = 131072 // n
    chunk = max(1, chunk - chunk % 8 if chunk >= 8 else chunk)
    count = -(-m // chunk)
    lengths = struct.unpack(f"<{count}I", data[: 4 * count])
    at, out = 4 * count, [[0] * n for _ in range(m)]
    follow, quantizer = TRELLIS[kind]
    cells = {key: alias(f) for key, f in freq.items()}
    for c, length in enumerate(lengths):
        part, at = data[at : at + length], at + length
        first, last = c * chunk, min(m, (c + 1) * chunk)
        live = min(8, last - first)
        words = list(struct.unpack(f"<{(length - 4 * live) // 2}H", part[4 * live :]))[::-1]
        lanes = [Lane(x, words) for x in struct.unpack(f"<{live}I", part[: 4 * live])]
        for group in range(first, last, 8):
            states = [0] * 8
            for j in range(n):
                for lane in range(min(8, last - group)):
                    i, s = group + lane, states[lane]
                    b = min(max(rows[i] + cols[j] - 128, 0), 63)
                    z = quantizer(s)
                    k = lanes[lane].symbol(cells[z, b], raw_of(b))
                    out[i][j] = k if kind == 0 else 2 * k - ((k > 0) - (k < 0) if z else 0)
                    states[lane] = follow[s][k & 1]
        assert not words and all(lane.x == 1 << 16 for lane in lanes)
    assert at == len(data)
    return out


def pattern(data: bytes, m: int, n: int, kept: int, group: int) -> list[list[int]]:
    """The columns that are coded, row by row."""
    sets = list(itertools.combinations(range(group), kept))
    share, rest = divmod(M - 1, len(sets))
    f = [share + (i < rest) for i in range(len(sets))] + [0] * (127 - len(sets)) + [1]
    ranks = integers(data, m, n // group, [128] * m, [31] * (n // group), 0, {(0, 31): f})
    return [
        [g * group + column for g, rank in enumerate(line) for column in sets[rank + 63]] for line in ranks
    ]


def lattice(data: bytes, freq: dict) -> dict:
    head, at = [], 0
    for _ in range(7):
        value, at = varint(data, at)
        head.append(value)
    m, n, zeros, *lengths = head
    flags, a, b = data[at], data[at + 1] + 1, data[at + 2] + 1
    at += 3
    kept, group, choices = 0, 1, 0
    if flags & 8:
        kept, group = data[at], data[at + 1]
        choices, at = varint(data, at + 2)
    vectors = []
    for length, size in zip(lengths, (m, n, m, n), strict=True):
        vectors.append(vector(data[at : at + length], size))
        at += length
    row, col, row_class, col_class = vectors
    if flags & 8:
        stay = pattern(data[at : at + choices], m, n, kept, group)
        sums = [sum(col_class[j : j + group]) for j in range(0, n, group)]
        classes = [(2 * total + group) // (2 * group) for total in sums for _ in range(kept)]
        coded = integers(data[at + choices :], m, len(classes), row_class, classes, flags & 3, freq)
        q = [[0] * n for _ in range(m)]
        for line, columns, values in zip(q, stay, coded, strict=True):
            for j, value in zip(columns, values, strict=True):
                line[j] = value
    else:
        q = integers(data[at:], m, n, row_class, col_class, flags & 3, freq)
    assert zeros == sum(v == 0 for line in q for v in line)
    return {"q": q, "row": row, "col": col, "resolution": (a, b), "trellis": (0, 4, 8)[flags & 3]}


def read(data: bytes) -> tuple[dict, dict[str, dict], dict[str, bytes]]:
    """(JSON, lattices by name, raw sections by name)."""
    magic, version, zero, packed, length = struct.unpack("<4sHHII", data[:16])
    assert (magic, version, zero) == (b"SPRT", 1, 0)
    header = data[32 : 32 + length]
    assert hashlib.sha256(data[:16] + header).digest()[:16] == data[16:32]
    body = json.loads(zlib.decompress(header[:packed]))
    names = [line.get("name", line["maps"][0]) for line in body["tensors"] if "dtype" not in line]
    order = ["tables"] * bool(names) + names + ["dense"] * any("dtype" in line for line in body["tensors"])
    at, start, sections = packed, 32 + length, {}
    for name in [*order, *body["files"]]:
        size, at = varint(header, at)
        sections[name] = data[start : start + size]
        assert hashlib.sha256(sections[name]).digest()[:16] == header[at : at + 16]
        at, start = at + 16, start + size
    assert at == len(header) and start == len(data)
    freq = tables(sections["tables"]) if names else {}
    return body, {name: lattice(sections[name], freq) for name in names}, sections
