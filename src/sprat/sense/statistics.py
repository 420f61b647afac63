"""What each weight matters: the second moments that the water level needs.

For a group of linear maps y = W x with a common input:
    H = E[x xᵀ]   (n, n)    over calibration tokens,
    G = E[γ γᵀ]   (m, m)    γ = ∂ℓ/∂y, y all maps' outputs, the label sampled from the model itself (the true Fisher),
    g = diag(G)   (m,)      alone, where the outputs are many (moments.WIDE),
so that ½ tr(G ΔW H ΔWᵀ), summed over the groups, approximates the KL divergence in nats per token
(YAQA, arXiv 2505.22988, section 3; GPTQ, 2210.17323, for H alone).

An expert of a mixture serves n of N tokens, and the KL is a mean over all N. What it adds is n/N times the product of
its own tokens' means, so H is the mean over the n and G the sum over them divided by N (both divided by N would weigh
rare experts with (n/N)²). An expert that the text hardly reaches would be free to vanish: the share moments.LENT of
each one's sums is that of its layer's average expert, as rare tokens get a share of the vocabulary's mean
(sense/embedding.py).

For the embedding, tied or not, in both of its roles:
    output: H of the final hidden state weighted by Σ_v p_v (1 - p_v), and g_v = E[p_v (1 - p_v)],
    input:  F = E[γ γᵀ] at the embedding's output, and the token frequency, taken as E[p_v] (far smoother than counts).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

#: Part of the cache's key: raise it when what is measured changes.
VERSION = 5
#: The first token of a context is left out: whatever it is, models park attention there, with activations and
#: gradients hundreds of times larger than any other token's; it would own every average.
SKIP = 1


@dataclass(frozen=True)
class GroupStatistics:
    """One group's moments. h: (n, n) float32; fisher: (m, m) float32, all maps' rows stacked, or (0, 0); g: (m,), its
    diagonal; probes: (k, n) bfloat16, inputs of held-out contexts, k at most moments.PROBES; tokens: that reached its
    maps."""

    h: Tensor
    g: Tensor
    fisher: Tensor
    probes: Tensor
    tokens: int


@dataclass(frozen=True)
class TableStatistics:
    """How often a calibration token reads each row of a table: frequency (rows,) float32."""

    frequency: Tensor


@dataclass(frozen=True)
class HeadStatistics:
    """h: (d, d), g: (V,): output role; f: (d, d), frequency: (V,): input role. All float32."""

    h: Tensor
    g: Tensor
    f: Tensor
    frequency: Tensor
    tokens: int
