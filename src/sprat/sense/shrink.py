"""Making statistics from few tokens trustworthy.

The sample H of an n-wide input from t tokens says that directions which the sample never saw are free. Shrinking the
correlations, not the variances,
    H ← (1 - α) H + α diag(H),     α = strength · n / (strength · n + t),
keeps every input's own scale, which damping by a multiple of the identity does not (massive activations put orders of
magnitude between inputs). The form is Ledoit and Wolf's (J. Multivariate Analysis 88, 2004) with the diagonal as
target (Schäfer and Strimmer, 2005, target D) and an intensity that falls with the
tokens that an input has for each of its channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sprat.errors import StatisticsError


def shrink(h: Tensor, tokens: int, strength: float) -> Tensor:
    """The shrunk copy of h: (n, n) float32 from `tokens` samples."""
    n = h.shape[0]
    alpha = strength * n / (strength * n + tokens)
    diagonal = h.diagonal().clamp_min(0)
    out = h * (1 - alpha)
    out.diagonal().copy_(diagonal)
    # A channel that was never active still needs a price: a millionth of the mean.
    out.diagonal().add_(1e-6 * float(diagonal.mean()) + 1e-30)
    return out


def upper_factor(h: Tensor, name: str) -> Tensor:
    """U, upper triangular float32 (n, n), with H⁻¹ = Uᵀ U: 1 / U_jj² is the variance of input j given the later ones.

    Factored as a correlation matrix, H = D C D, whose condition number the shrinkage bounds by n / α: float32 is
    enough then, and twice as fast; float64 is the second try. Raises StatisticsError when H is not positive definite.
    """
    scale = h.diagonal().rsqrt()
    correlation = h * scale[:, None] * scale
    for dtype in (torch.float32, torch.float64):
        lower, failed = torch.linalg.cholesky_ex(correlation.to(dtype))
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed and bool(torch.isfinite(upper).all()):
                return upper.float() * scale
    raise StatisticsError(
        f"{name}: the second moments of its input are not positive definite; calibrate on more tokens "
        "or raise the recipe's `shrinkage`"
    )
