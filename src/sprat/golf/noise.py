"""The rounding to come, felt in training: uniform noise of its step on every matrix.

At b bits a weight, entropy-coded rounding of a row of standard deviation s has the step
    delta = s * sqrt(2 pi e) * 2^-b          (a Gaussian's entropy; Cover & Thomas, sections 8.3 and 9.1)
and its error is about uniform in +-delta/2. Gradients are taken at the noisy weights and applied to the clean ones, as
in learned compression (Balle et al., arXiv 1611.01704; for networks Quant-Noise, 2004.07320).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def rounding_noise(weights: Sequence[Tensor], bits: float, generator: torch.Generator) -> Iterator[None]:
    """Within it the matrices (m, n) are noisy; behind it they are what they were, bit for bit."""
    clean = [w.detach().clone() for w in weights]
    scale = math.sqrt(2 * math.pi * math.e) * 2.0**-bits
    with torch.no_grad():
        for w in weights:
            noise = torch.rand(w.shape, generator=generator).sub_(0.5).to(w.device)
            w.addcmul_(noise, w.square().mean(1, keepdim=True).sqrt().expand_as(w), value=scale)
    try:
        yield
    finally:
        with torch.no_grad():
            for w, before in zip(weights, clean, strict=True):
                w.copy_(before)
