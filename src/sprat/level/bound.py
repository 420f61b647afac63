"""The rate–distortion bound of a model's statistics: the fewest bytes at which its quadratic loss can be had.

Take the weights of a map as independent Gaussians, w_ij ~ N(0, r_i² k_j²), and the loss as ½ tr(G ΔW H ΔWᵀ) nats.
With μ the eigenvalues of K H K, K = diag(k), and ν those of R G R, R = diag(r) (g_i r_i² where of G only the diagonal
is known), a map is then m·n independent components of variance v_ij = ½ ν_i μ_j nats, and reverse water-filling (Cover
& Thomas, section 10.3.3) at the water level θ gives

    KL(θ) = Σ min(v, θ),     bits(θ) = Σ max(0, ½ log2(v / θ)),

below which no code of any kind gets for such weights. The assumptions: real weights are only roughly Gaussian and
independent; H and g are measured on calibration text, with the recipe's shrinkage; KL is taken as quadratic, as it is
where it is small. What no rate changes (tokenizer, header, norms) is added as it is; scales and tables cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sprat.level.predict import solve_level
from sprat.level.targets import Target, Targets
from sprat.methods.metric import Metric, floored
from sprat.progress import Progress, silent
from sprat.recipe import Recipe

#: Bins an octave in which components are counted: a bin's width is an error of 0.5 / 16 bits at most, 0 on average.
_RESOLUTION = 16
#: Octaves below the largest component that are told apart; what is smaller lies under every water.
_SPAN = 80


@dataclass(frozen=True)
class Components:
    """How many components have which variance: counts (bins,) of variances (bins,) in nats, all targets' together."""

    variances: np.ndarray
    counts: np.ndarray

    def kl(self, water: float) -> float:
        """Nats per token."""
        return float((self.counts * np.minimum(self.variances, water)).sum())

    def bits(self, water: float) -> float:
        """Bits of the weights."""
        return float((self.counts * np.maximum(0.0, 0.5 * np.log2(self.variances / water))).sum())

    def kl_at(self, bits: float) -> float:
        """The lowest KL that `bits` allow; all of the weights' own where there are none."""
        if bits <= 0:
            return self.kl(np.inf)
        top = float(self.variances.max())
        return self.kl(solve_level(self.bits, bits, top * 2.0**-200, top))


def components(targets: Targets, recipe: Recipe, progress: Progress = silent) -> Components:
    """Of all targets, layer by layer: an eigendecomposition of each one's metric."""
    logs: dict[int, float] = {}
    total = len(targets.layers()) + 1
    for number, index in enumerate(targets.layers(), 1):
        for target in targets.layer(index):
            _count(logs, target, recipe)
        progress("rate-distortion bound", number, total)
    for target in targets.embeddings():
        _count(logs, target, recipe)
    progress("rate-distortion bound", total, total)
    bins = np.array(sorted(logs))
    return Components(np.exp2(bins / _RESOLUTION), np.array([logs[b] for b in bins.tolist()]))


def _count(logs: dict[int, float], target: Target, recipe: Recipe) -> None:
    """Add a target's components to `logs`: bin -> how many."""
    rows, columns = spectra(target.w, target.metric(recipe), recipe.row_floor)
    a, b = (np.rint(np.log2(x[x > 0]) * _RESOLUTION).astype(int) for x in (rows, columns))
    if not (a.size and b.size):
        return
    # Every row meets every column: the sums of their logarithms are counted by a convolution.
    low_a, low_b = (max(x.min(), x.max() - _SPAN * _RESOLUTION) for x in (a, b))
    both = np.convolve(
        np.bincount(np.maximum(a - low_a, 0)), np.bincount(np.maximum(b - low_b, 0)).astype(float)
    )
    for place in np.flatnonzero(both).tolist():
        key = int(low_a + low_b + place)
        logs[key] = logs.get(key, 0.0) + float(both[place])


def spectra(w: Tensor, metric: Metric, row_floor: float) -> tuple[np.ndarray, np.ndarray]:
    """½ ν_i and μ_j for w: (m, n), float64, at most m and n of them, as some may be zero: v_ij is their product."""
    square = w.double().square()
    k = square.mean(0)
    live = k > 0
    r = (square[:, live] / k[live]).mean(1) if bool(live.any()) else torch.zeros(len(w), dtype=torch.float64)
    if metric.fisher is None:
        nu = floored(metric.g.double(), row_floor) * r
    else:
        nu = _eigenvalues(metric.fisher, r.sqrt())
    return (0.5 * nu).numpy(), _eigenvalues(metric.h, k.sqrt()).numpy()


def _eigenvalues(moments: Tensor, scale: Tensor) -> Tensor:
    """Of those whose scale is not zero: what is zero exactly would come out as 1e-17 on some processors."""
    live = scale > 0
    inner = moments.double()[live][:, live] * scale[live, None] * scale[live]
    return torch.linalg.eigvalsh(inner).clamp_min(0)
