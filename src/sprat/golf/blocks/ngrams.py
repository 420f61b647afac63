"""Hashed n-gram embeddings: a table that says what the last two (and three) tokens mean together.

    h_t += T[hash(x_t, x_t-1)] + T[hash(x_t, x_t-1, x_t-2)]          on the first columns of h, as wide as T is

Rows are few and shared by whatever falls on them, as in fastText (Bojanowski et al., arXiv 1607.04606, section 3.2) and
hash embeddings (1709.03933). The table begins at nothing, so that a row that no text has reached says nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Odd multipliers of the hash, one a token of the n-gram; sums stay exact in int64.
_MULTIPLIERS = (2654435761, 2246822519, 3266489917)
#: Bits that are thrown away of a product: the low ones of a multiplicative hash hardly mix.
_SHIFT = 15
ORDERS = (2, 3)


class NgramEmbedding(nn.Embedding):
    """weight: (rows, width), looked up by row; order 2 hashes pairs, 3 pairs and triples into the same rows."""

    def __init__(self, rows: int, width: int, order: int):
        super().__init__(rows, width)
        self.order = order

    def rows(self, ids: Tensor) -> Tensor:
        """ids: (batch, context) int64 -> (orders, batch, context) int64. In front of a context stand zeros."""
        out, mixed = [], ids * _MULTIPLIERS[0]
        for back in range(1, self.order):
            before = F.pad(ids, (back, 0))[:, : ids.shape[1]]
            mixed = mixed ^ ((before + 1) * _MULTIPLIERS[back])
            out.append((mixed >> _SHIFT) % self.num_embeddings)
        return torch.stack(out)

    def added_to(self, h: Tensor, ids: Tensor) -> Tensor:
        """h: (batch, context, at least width) with the rows of the last `context` of `ids` on its first columns."""
        found = self(self.rows(ids)[:, :, ids.shape[1] - h.shape[1] :]).float().sum(0)
        return h + F.pad(found, (0, h.shape[-1] - found.shape[-1]))
