"""Where the KL is: by position in the context, and by how frequent the token is that was to be predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sprat.prove.intervals import Estimate, estimate, gather, resample
from sprat.prove.metrics import Scores

#: Equal stretches that the scored positions are told in.
STRETCHES = 8
QUARTERS = ("rarest quarter", "second quarter", "third quarter", "most frequent quarter")


def by_position(scores: Scores, seed: int = 0, resamples: int = 2000) -> list[dict[str, Any]]:
    """[{from, to, tokens, kl}]: the KL in nats a token where the predicted token stands at from .. to−1."""
    first, scored = scores.contexts.skip + 1, scores.kl.shape[1]
    edges = np.unique(np.linspace(0, scored, min(STRETCHES, scored) + 1).astype(int)).tolist()
    group = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
    kl, tokens = _estimates(scores, np.broadcast_to(group, scores.kl.shape), len(edges) - 1, seed, resamples)
    return [
        {"from": first + edges[i], "to": first + edges[i + 1], "tokens": tokens[i], "kl": kl[i]}
        for i in range(len(edges) - 1)
        if tokens[i]
    ]


def by_frequency(scores: Scores, seed: int = 0, resamples: int = 2000) -> list[dict[str, Any]]:
    """[{name, tokens, kl, share}]: the KL by how often the predicted token occurs in all contexts that were read.

    Four groups of about as many scored tokens each; one token is never in two groups, so that a very frequent
    token can leave a group empty, which is then not told. share: of the whole KL, what falls on the group.
    """
    contexts = scores.contexts
    targets = contexts.ids[:, contexts.skip + 1 :]
    lengths = np.full(len(targets), contexts.ids.shape[1]) if contexts.lengths is None else contexts.lengths
    read = contexts.ids[np.arange(contexts.ids.shape[1]) < lengths[:, None]]
    count = np.bincount(read)[targets]
    # Equal counts are told apart by the token's id, so that groups are of even size and each token is in one.
    rank = count * (int(targets.max()) + 1) + targets
    ordered = np.sort(rank[contexts.mask])
    edges = ordered[[len(ordered) * i // 4 for i in (1, 2, 3)]]
    group = np.searchsorted(edges, rank, side="right")
    kl, tokens = _estimates(scores, group, 4, seed, resamples)
    whole = scores.kl.sum()
    return [
        {
            "name": name,
            "tokens": tokens[i],
            "kl": kl[i],
            "share": float(scores.kl[group == i].sum() / whole) if whole else tokens[i] / len(ordered),
        }
        for i, name in enumerate(QUARTERS)
        if tokens[i]
    ]


def _estimates(
    scores: Scores, group: np.ndarray, groups: int, seed: int, resamples: int
) -> tuple[Sequence[Estimate], Sequence[int]]:
    """The mean KL of each group of positions, group: (contexts, scored), and how many tokens it has."""
    mask = scores.contexts.mask
    inside = [mask & (group == i) for i in range(groups)]
    columns = [part.sum(axis=1) for i in inside for part in (scores.kl * i, i)]
    sums = gather(np.stack(columns, axis=1).astype(np.float64), scores.contexts.clusters)
    draws = resample(sums, resamples, seed)
    tokens = [int(i.sum()) for i in inside]
    made = [
        estimate(sums, draws, lambda s, i=i: s[..., 2 * i] / s[..., 2 * i + 1])
        if tokens[i]
        else Estimate(0, 0, 0)
        for i in range(groups)
    ]
    return made, tokens
