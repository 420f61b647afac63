"""The water level in slow float64, from the formulas in methods/waterlevel.py, for the tests to compare with.

One row at a time, one column at a time; a survivor of the trellis search is a path with its own residual.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from sprat.coding.tensors import BUCKETS, OFFSET, ZERO
from sprat.recipe import Recipe
from sprat.sparsity import Sparsity, parse

#: (next state by parity of k, quantizer) of each state: ISO/IEC 15938-17 for four, VVC's ECM for eight.
STATES = {
    0: [((0, 0), 0)],
    4: [((0, 2), 0), ((2, 0), 0), ((1, 3), 1), ((3, 1), 1)],
    8: [
        ((0, 2), 0),
        ((5, 7), 1),
        ((1, 3), 0),
        ((6, 4), 1),
        ((2, 0), 0),
        ((4, 6), 1),
        ((3, 1), 0),
        ((7, 5), 1),
    ],
}


@dataclass
class Path:
    """A survivor: its cost and integers in this block, and the row's residual after its feedback."""

    cost: float
    q: list[int]
    rest: np.ndarray


@dataclass
class Reference:
    q: np.ndarray
    row: np.ndarray
    col: np.ndarray


def upper(h: np.ndarray) -> np.ndarray:
    """U, upper triangular with H⁻¹ = Uᵀ U."""
    return np.linalg.cholesky(np.linalg.inv(h)).T


def round_to_level(
    w: np.ndarray, h: np.ndarray, g: np.ndarray, level: float, recipe: Recipe, bits: np.ndarray
) -> Reference:
    """w: (m, n), h: (n, n), g: (m,); bits: (2, BUCKETS, 2 K + 1), the price of symbol k at k + K."""
    w, h, g = w.astype(float), h.astype(float), g.astype(float)
    n = w.shape[1]
    order = np.argsort(-np.diag(h), kind="stable") if recipe.order == "descending" else np.arange(n)
    w, u = w[:, order], upper(h[np.ix_(order, order)])
    rows = np.maximum(g, recipe.row_floor * g.mean()) ** -0.5
    columns = np.diag(u).copy()
    if not recipe.row_steps:
        rows[:] = np.exp(np.log(rows).mean())
    if not recipe.column_steps:
        columns[:] = np.exp(np.log(columns).mean())
    points = 2 if recipe.trellis else 1
    grid = recipe.scale_resolution
    row = 2 ** (np.rint(np.log2(level / points * rows) * grid) / grid)
    col = 2 ** (np.rint(np.log2(columns) * grid) / grid)
    buckets = expected_buckets(w, row * points, col)
    price = recipe.rate_weight * np.log(2) / 6 * (level * rows / row) ** 2
    q = round_rows(w / row[:, None], np.sqrt(g) * row, u, col, price, buckets, bits, recipe)
    back = np.argsort(order)
    return Reference(q[:, back], row, col[back])


def expected_buckets(w: np.ndarray, row: np.ndarray, col: np.ndarray) -> np.ndarray:
    """(m, n) contexts: w's deviation in steps, a row's times a column's, in quarter octaves."""
    scaled = (w / col) ** 2
    row_std = np.sqrt(scaled.mean(1))
    col_std = np.sqrt((scaled / row_std[:, None] ** 2).mean(0))
    classes = np.rint(4 * np.log2(row_std / row))[:, None] + np.rint(4 * np.log2(col_std))
    assert OFFSET == 128
    return np.clip(classes + ZERO, 0, BUCKETS - 1).astype(int)


def round_rows(
    w: np.ndarray,
    weight: np.ndarray,
    u: np.ndarray,
    col: np.ndarray,
    price: np.ndarray,
    buckets: np.ndarray,
    bits: np.ndarray,
    recipe: Recipe,
) -> np.ndarray:
    """The integers of all rows, w in units of its scale; weight: √g of a row in these units."""
    (m, n), pattern = w.shape, parse(recipe.sparsity)
    if not recipe.feedback:
        u = np.diag(np.diag(u))
    block = recipe.block
    if pattern.group:
        block = max(1, block // pattern.group) * pattern.group
    starts = range(0, n, block)
    saliency = np.abs(w) * weight[:, None] / np.diag(u)
    if pattern and not pattern.group:
        threshold = np.sort(saliency.ravel())[int(np.ceil(pattern.share * m * n)) - 1]
        quota = [int((saliency[:, a : a + block] <= threshold).sum()) for a in starts]
    paths = [{0: Path(0.0, [], row.copy())} for row in w]
    out = [[] for _ in w]
    for start in starts:
        columns = range(start, min(start + block, n))
        keep = np.ones((m, n), bool)
        if pattern and not pattern.group and quota[start // block]:
            rest = np.stack([next(iter(p.values())).rest for p in paths])[:, columns]
            now = np.abs(rest) * weight[:, None] / np.diag(u)[columns]
            keep[:, columns] = now > np.sort(now.ravel())[quota[start // block] - 1]
        for i in range(m):
            found = round_block(paths[i], columns, keep[i], u, col, price[i], buckets[i], bits, recipe)
            state = min(sorted(found), key=lambda s: found[s].cost)
            out[i] += found[state].q
            paths[i] = {state: Path(0.0, [], found[state].rest)}
    return np.array(out)


def round_block(
    paths: dict[int, Path],
    columns: range,
    keep: np.ndarray,
    u: np.ndarray,
    col: np.ndarray,
    price: float,
    bucket: np.ndarray,
    bits: np.ndarray,
    recipe: Recipe,
) -> dict[int, Path]:
    """The survivors of one row behind a block of columns; keep: (n,), False where the integer must be zero."""
    pattern = parse(recipe.sparsity)
    for j in columns:
        if pattern.group and j % pattern.group == 0:
            best = paths[min(sorted(paths), key=lambda s: paths[s].cost)]
            gone = removed(best.rest[j:], u[j:, j:], pattern)
            keep[j + gone] = False
            for path in paths.values():
                make_up(path.rest[j:], u[j:, j:], gone)
        grown: dict[int, Path] = {}
        for s in sorted(paths):
            extend(grown, s, paths[s], j, u, col, price, bits[:, bucket[j]], recipe, bool(keep[j]))
        paths = grown
    return paths


def removed(w: np.ndarray, u: np.ndarray, pattern: Sparsity) -> np.ndarray:
    """The columns of the first group whose removal costs least once all the other columns make up for it."""
    h = np.linalg.inv(u.T @ u)

    def cost(gone: tuple[int, ...]) -> float:
        left = [i for i in range(len(w)) if i not in gone]
        # min over the change of the columns that are left of d H dᵀ, d = -w where a column goes
        whole = -w[list(gone)]
        coupled = h[np.ix_(left, gone)] @ whole
        change = -np.linalg.solve(h[np.ix_(left, left)], coupled)
        return float(whole @ h[np.ix_(gone, gone)] @ whole + change @ coupled)

    return np.array(min(itertools.combinations(range(pattern.group), pattern.group - pattern.kept), key=cost))


def make_up(w: np.ndarray, u: np.ndarray, gone: np.ndarray) -> None:
    """Takes columns out of w, in place, and moves the others to where they make up for it."""
    h = np.linalg.inv(u.T @ u)
    left = np.array([i for i in range(len(w)) if i not in set(gone.tolist())])
    w[left] += np.linalg.solve(h[np.ix_(left, left)], h[np.ix_(left, gone)] @ w[gone])
    w[gone] = 0


def extend(
    grown: dict[int, Path],
    state: int,
    path: Path,
    j: int,
    u: np.ndarray,
    col: np.ndarray,
    price: float,
    bits: np.ndarray,
    recipe: Recipe,
    keep: bool = True,
) -> None:
    """All continuations of `path` by column j; the cheapest into each state stays. keep: else only zero is one."""
    following, quantizer = STATES[recipe.trellis][state]
    t = path.rest[j] / col[j]
    best: dict[int, tuple[float, int, float]] = {}
    for k in candidates(t, quantizer, recipe.trellis) if keep else [0]:
        q = point(k, quantizer, recipe.trellis)
        error = (t - q) * col[j]
        rate = symbol_bits(bits[quantizer], k) if keep else 0.0
        cost = path.cost + (error / u[j, j]) ** 2 + price * rate
        # Where a pattern has taken the column out nothing is coded.
        to = state if not keep and parse(recipe.sparsity).group else following[k & 1]
        if to not in best or cost < best[to][0]:
            best[to] = (cost, q, error)
    for to, (cost, q, error) in best.items():
        if to in grown and grown[to].cost <= cost:
            continue
        rest = path.rest.copy()
        if recipe.feedback:
            rest[j + 1 :] -= error * u[j, j + 1 :] / u[j, j]
        grown[to] = Path(cost, [*path.q, q], rest)


def point(k: int, quantizer: int, trellis: int) -> int:
    """The lattice point of symbol k."""
    if not trellis:
        return k
    return 2 * k - (int(np.sign(k)) if quantizer else 0)


def candidates(t: float, quantizer: int, trellis: int) -> list[int]:
    """The symbols whose points enclose t, and 0."""
    near = range(int(np.floor(min(abs(t), 1e9))) // (2 if trellis else 1) + 4)
    symbols = sorted({sign * k for k in near[-6:] for sign in (-1, 1)} | {-1, 0, 1})
    below = max(k for k in symbols if point(k, quantizer, trellis) <= t)
    above = min(k for k in symbols if point(k, quantizer, trellis) > t)
    return sorted({below, above, 0})


def symbol_bits(bits: np.ndarray, k: int) -> float:
    """The price of k; past the table's end it grows by a twentieth of a bit a symbol."""
    reach = len(bits) // 2
    inside = max(-reach, min(reach, k))
    return float(bits[inside + reach]) + 0.05 * abs(k - inside)
