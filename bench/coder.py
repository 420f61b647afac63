"""Speed and overhead of the entropy coder on synthetic lattices: python bench/coder.py [ROWS COLUMNS]."""

from __future__ import annotations

import sys
import time

import numpy as np

from sprat.coding import entropy
from sprat.coding.tensors import Lattice, LogScale


def lattice(rows: int, columns: int, step: float, trellis: int, seed: int = 0) -> Lattice:
    """Laplace-Gaussian integers whose deviations vary by row and column as a water level's do."""
    rng = np.random.default_rng(seed)
    row, col = np.exp2(rng.normal(0, 0.5, rows)), np.exp2(rng.normal(0, 0.6, columns))
    heavy = np.where(
        rng.random((rows, columns)) < 0.3, rng.laplace(size=(rows, columns)), rng.normal(size=(rows, columns))
    )
    k = np.rint(heavy * row[:, None] * col / step).astype(np.int64)
    q, state = k, np.zeros(rows, np.int64)
    if trellis:
        table = {
            4: [[0, 2], [2, 0], [1, 3], [3, 1]],
            8: [[0, 2], [5, 7], [1, 3], [6, 4], [2, 0], [4, 6], [3, 1], [7, 5]],
        }
        follow, q = np.array(table[trellis]), np.empty_like(k)
        for j in range(columns):
            second = state & 1 if trellis == 8 else state >> 1
            q[:, j] = 2 * k[:, j] - np.where(second == 1, np.sign(k[:, j]), 0)
            state = follow[state, k[:, j] & 1]
    row_class, col_class = entropy.classes(row / step, col)
    scale = LogScale.nearest
    return Lattice(q.astype(np.int16), scale(row, 16), scale(col, 16), row_class, col_class, trellis)


def measure(rows: int, columns: int) -> None:
    print("  step trellis   bits/w  tables B  over entropy   encode M/s  decode M/s  count M/s")
    for step in (2.0, 1.0, 0.5, 0.1):
        for trellis in (0, 4, 8):
            x = lattice(rows, columns, step, trellis)
            start = time.perf_counter()
            counts = entropy.count([x])
            t_count = time.perf_counter() - start
            tables = entropy.Tables.from_counts(counts)
            start = time.perf_counter()
            data = entropy.encode(x, tables)
            t_encode = time.perf_counter() - start
            t_decode, q = 1e9, x.q
            for _ in range(3):
                start = time.perf_counter()
                q = entropy.decode(data, x.shape, x.q.dtype, x.row_class, x.col_class, trellis, tables)
                t_decode = min(t_decode, time.perf_counter() - start)
            assert (q == x.q).all()
            total = len(data) + len(tables.to_bytes())
            weights = rows * columns
            print(
                f"{step:6} {trellis:7} {8 * total / weights:8.3f} {len(tables.to_bytes()):9} "
                f"{100 * (8 * total / counts.entropy() - 1):12.3f} % {weights / t_encode / 1e6:11.1f} "
                f"{weights / t_decode / 1e6:11.1f} {weights / t_count / 1e6:10.1f}"
            )


if __name__ == "__main__":
    size = [int(v) for v in sys.argv[1:3]] or [8192, 1536]
    measure(size[0], size[1])
