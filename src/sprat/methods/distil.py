"""Distillation: a model trained towards another's distribution, KL(p || q) in nats a token.

    loss = 1/T Σ_t Σ_v p_tv (log p_tv − log q_tv),       ∂loss/∂z_tv = (q_tv − p_tv) / T     (z: the logits of q)

over all tokens v of the vocabulary: what the teacher knows of the unlikely ones is most of what a text does not say.
Both are computed a few rows at a time, so that no second copy of the logits exists in float32. What the teacher hands
from its last layer to its head is kept, so that a context's second turn costs its head alone.
Source: Hinton et al. (arXiv 1503.02531).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sprat.sense.statistics import SKIP
from sprat.sense.walk import Walk

#: Rows of logits that are turned into probabilities at once.
_ROWS = 64
#: What the kept hidden states may take.
_KEPT_BYTES = 1 << 30


class Teacher:
    """The original's logits on contexts of one length, int64 (context,), computed and kept where `model` lies."""

    def __init__(self, model: nn.Module):
        self.model = model
        self._kept: dict[bytes, Tensor] = {}
        self._room = _KEPT_BYTES
        self._walk: Walk | None = None

    def logits(self, ids: Tensor) -> Tensor:
        """(context − SKIP, vocabulary), without gradient."""
        if self._walk is None or self._walk.ids.shape[1] != len(ids):
            self._walk = Walk(self.model, ids[None])
        key = ids.numpy().tobytes()
        if (hidden := self._kept.get(key)) is None:
            hidden = self._walk.behind(ids[None])
            if hidden.nbytes <= self._room:
                self._room -= hidden.nbytes
                self._kept[key] = hidden
        return self._walk.logits(hidden, ids[None])[0, SKIP:]


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean KL(teacher || student) in nats over the rows of logits (T, vocabulary); differentiable in `student`."""
    return _Divergence.apply(student, teacher)  # type: ignore[return-value]


def student_logits(model: nn.Module, ids: Tensor) -> Tensor:
    """(context − SKIP, vocabulary) of one context, int64 (context,)."""
    batch = ids[None].to(next(model.parameters()).device)
    return model(input_ids=batch, use_cache=False).logits[0, SKIP:]


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:  # type: ignore[override]
        gradient, total = torch.empty_like(student), student.new_zeros((), dtype=torch.float32)
        for start in range(0, len(student), _ROWS):
            rows = slice(start, start + _ROWS)
            log_p, log_q = teacher[rows].float().log_softmax(-1), student[rows].float().log_softmax(-1)
            p = log_p.exp()
            total += (p * log_p.sub_(log_q)).sum()
            gradient[rows] = log_q.exp_().sub_(p).div_(len(student))
        ctx.save_for_backward(gradient)
        return total / len(student)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return gradient * above.to(gradient.dtype), None
