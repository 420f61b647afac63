"""One metric for an embedding that reads tokens, scores them, or both (tied).

Row v of a tied embedding has the metric g_v H + f_v F: as output weights of token v it is hit by the final hidden
states (H) with sensitivity g_v = E[p_v (1 - p_v)], as input vector with frequency f_v by the gradient there (F). A sum
of two Kronecker products has no single feedback, so it is replaced by the rank-one one of equal traces:
    M = mean_v (g_v H + f_v F),     w_v = (g_v tr H + f_v tr F) / tr M.
Rare tokens keep a floor: the share `floor` of the probability is spread evenly over the vocabulary, since calibration
text of any length misses most of it.
"""

from __future__ import annotations

from torch import Tensor

from sprat.sense.shrink import shrink
from sprat.sense.statistics import HeadStatistics

ROLES = ("tied", "input", "output")


def embedding_metric(head: HeadStatistics, role: str, floor: float, strength: float) -> tuple[Tensor, Tensor]:
    """(M: (d, d), w: (V,)) for `role`: "tied", "input" or "output"."""
    vocabulary = len(head.g)
    g = (1 - floor) * head.g + floor * head.g.mean()
    f = (1 - floor) * head.frequency + floor / vocabulary
    h, inner = shrink(head.h, head.tokens, strength), shrink(head.f, head.tokens, strength)
    if role == "output":
        return h, g
    if role == "input":
        return inner, f
    metric = g.mean() * h + f.mean() * inner
    weights = (g * h.trace() + f * inner.trace()) / metric.trace()
    return metric, weights
