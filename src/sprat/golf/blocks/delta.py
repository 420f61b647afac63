"""Recurrent memory in the place of attention: a matrix a head, rewritten by the gated delta rule.

    S_t = a_t S_t-1 + u_t k_t',   u_t = b_t (v_t - a_t S_t-1 k_t),   o_t = S_t q_t          S: (size, size)

q, k: silu, then of length 1; b = sigmoid(B x); a = exp(-exp(A) softplus(D x + d)). The input of q, k and v is a short
causal convolution of x, a weight a channel and step back. Gated DeltaNet (arXiv 2412.06464), without its output gate
and with one convolution for the three. The state has one size however long the text is.

Computed in chunks of C tokens (section 3.3 there; 2406.06484): with G_t the product of a within the chunk and S its
first state,
    U = (I + tril(diag(b) (G_t / G_j * K K'), -1))^-1 diag(b) (V - diag(G) K S')
    O = diag(G) Q S' + tril(G_t / G_j * Q K') U,      S' <- G_C S' + (diag(G_C / G) K)' U
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprat.golf.blocks.bitlinear import linear

MEMORIES = ("none", "delta")
#: Tokens a chunk.
CHUNK = 64
#: Tokens that the convolution sees, the last among them.
TAPS = 4
EPS = 1e-6


class DeltaMemory(nn.Module):
    """`heads` memories of (width / heads) squared numbers each."""

    def __init__(self, width: int, heads: int, weights: str):
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.q_proj = linear(width, width, weights)
        self.k_proj = linear(width, width, weights)
        self.v_proj = linear(width, width, weights)
        self.o_proj = linear(width, width, weights)
        self.gates = linear(width, 2 * heads)
        self.taps = nn.Parameter(F.pad(torch.ones(width), (0, (TAPS - 1) * width)))
        self.decay = nn.Parameter(torch.zeros(heads))
        # softplus(offset) from 0.01 to 0.2: memories of a hundred tokens and of five.
        self.offset = nn.Parameter(torch.logspace(-2, -0.7, heads).expm1().log())
        self.o_norm = nn.Parameter(torch.ones(self.size))

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], kept: dict[str, Tensor] | None = None
    ) -> Tensor:
        """x: (batch, context, width), what follows the state in `kept`, which becomes that behind it. `rope` is not
        asked for: the order is in the state."""
        inputs = torch.cat([kept["inputs"], x], 1) if kept else x
        near = self.mixed(inputs)[:, -x.shape[1] :]

        def split(y: Tensor) -> Tensor:
            return y.float().unflatten(-1, (self.heads, self.size)).transpose(1, 2)

        q = F.normalize(F.silu(split(self.q_proj(near))), dim=-1)
        k = F.normalize(F.silu(split(self.k_proj(near))), dim=-1)
        v = F.silu(split(self.v_proj(near)))
        rate, forget = self.gates(x).float().transpose(1, 2).chunk(2, dim=1)
        decay = -self.decay.float().exp()[:, None] * F.softplus(forget + self.offset.float()[:, None])
        with torch.autocast(x.device.type, enabled=False):
            out, state = gated_delta(q, k, v, rate.sigmoid(), decay, kept["state"] if kept else None)
        if kept is not None:
            kept |= {"inputs": inputs[:, 1 - TAPS :].clone(), "state": state}
        out = F.rms_norm(out, (self.size,), self.o_norm.float(), EPS)
        return self.o_proj(out.transpose(1, 2).flatten(2).to(x.dtype))

    def mixed(self, x: Tensor) -> Tensor:
        """The convolution: (batch, context, width)."""
        context = x.shape[1]
        taps = self.taps.view(TAPS, -1)
        return sum(
            (F.pad(x, (0, 0, back, 0))[:, :context] * taps[back] for back in range(1, TAPS)), x * taps[0]
        )


def gated_delta(
    q: Tensor, k: Tensor, v: Tensor, rate: Tensor, decay: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """O, as v, and the last state. q, k, v: (batch, heads, context, size) float32; rate b and decay log a: (batch,
    heads, context); state: S' of what came before, (batch, heads, size, size), None for nothing."""
    batch, heads, context, size = v.shape
    missing = -context % CHUNK
    if missing:  # behind the text: nothing reads it, and it leaves the state as it is
        q, k, v = (F.pad(t, (0, 0, 0, missing)) for t in (q, k, v))
        rate, decay = F.pad(rate, (0, missing)), F.pad(decay, (0, missing))
    q, k, v = (t.unflatten(2, (-1, CHUNK)) for t in (q, k, v))
    rate, total = (
        rate.unflatten(2, (-1, CHUNK))[..., None],
        decay.unflatten(2, (-1, CHUNK)).cumsum(-1)[..., None],
    )
    later = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=v.device).triu(1)
    ratio = (total - total.mT).masked_fill(later, -torch.inf).exp()
    past = total.exp()
    system = torch.eye(CHUNK, device=v.device) + (rate * ratio * (k @ k.mT)).tril(-1)
    solved = torch.linalg.solve_triangular(
        system, torch.cat([rate * v, rate * past * k], -1), upper=False, unitriangular=True
    )
    fresh, old = solved.split(size, dim=-1)
    inside, reading = ratio * (q @ k.mT), past * q
    writing, kept = (ratio[..., -1:, :].mT * k).mT, past[..., -1:, :]
    out: list[Tensor] = []
    memory = v.new_zeros(batch, heads, size, size) if state is None else state
    parts = (part.unbind(2) for part in (fresh, old, reading, inside, kept, writing))
    for new, erased, read, within, keep, write in zip(*parts, strict=True):
        u = new - erased @ memory
        out.append(read @ memory + within @ u)
        memory = keep * memory + write @ u
    return torch.stack(out, 2).flatten(2, 3)[:, :, :context], memory
