"""What may a query leave out of the key-value cache, and at what KL: attention over a part of the positions.

In every layer a query reads at most B positions, its own among them, B a share of the context's length; the others are
masked before the softmax. Keys keep the angles of their places in the text. Nothing is calibrated, nothing is rounded.

    top-k            of each query head, the B keys of largest weight: no method knows them without having read all keys
    top-k, shared    of each key-value head, the B keys of largest weight summed over its query heads
    recent           the last B positions
    recent + 4       the first 4 positions ("attention sinks") and the last B - 4: StreamingLLM, arXiv 2309.17453
    heavy hitters    of each key-value head, the last B/2 positions and what eviction left: a position that does not fit
                     is dropped for good, the one to which least attention was paid so far: H2O, arXiv 2306.14048
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bench import texts
from bench.judge import Judge, contexts
from bench.record import Record, command_line
from sprat.cli.terminal import bars
from sprat.errors import SpratError
from sprat.prove.environment import machine, versions
from sprat.source.load import load

#: How many first positions always stay beside a window.
SINKS = 4
_NAME = "sprat_bench_cache"
EXAMPLES = """\
examples:
  python -m bench.cache --record records/2026-11-22-cache
  python -m bench.cache --length 2048 --contexts 4 --selections "recent + 4;heavy hitters" --shares 0.25
"""

#: (scores, B) -> whether each query reads a key, (kv_heads, group or 1, queries, keys). The scores are those before
#: the softmax, (kv_heads, group, queries, keys), -inf where a query cannot see a key.
Select = Callable[[Tensor, int], Tensor]


def top(scores: Tensor, budget: int) -> Tensor:
    """The `budget` largest scores of each query head, fewer where it sees fewer."""
    kept = scores.topk(min(budget, scores.shape[-1]), sorted=False).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, kept, True) & (scores > -torch.inf)


def top_shared(scores: Tensor, budget: int) -> Tensor:
    """The keys with the `budget` largest weights, summed over the heads that share a key-value head."""
    weights = scores.softmax(-1).sum(1, keepdim=True)
    return top(weights.masked_fill(scores[:, :1] == -torch.inf, -torch.inf), budget)


def recent(scores: Tensor, budget: int, sinks: int = 0) -> Tensor:
    """The first `sinks` positions (at most all but one of the budget) and the last of the rest of the budget."""
    query, key = torch.arange(scores.shape[-2])[:, None], torch.arange(scores.shape[-1])
    sinks = min(sinks, budget - 1)
    kept = (key < sinks) | (key > query - (budget - sinks))
    return kept & (scores[:, :1] > -torch.inf)


def recent_and_sinks(scores: Tensor, budget: int) -> Tensor:
    return recent(scores, budget, SINKS)


def heavy(scores: Tensor, budget: int) -> Tensor:
    """Token by token: what is over the budget is dropped, then the query reads what is left and its own position.

    A position's attention is summed over the queries so far, each over what it read, and over the heads that share the
    key-value head. The last budget/2 positions are safe. Every position counts as written, none as a prompt's.
    """
    heads, _, length, _ = scores.shape
    safe, all_heads = max(1, budget // 2), torch.arange(heads)
    kept = torch.zeros(heads, length, dtype=torch.bool)
    paid = torch.zeros(heads, length)
    read = torch.zeros(heads, 1, length, length, dtype=torch.bool)
    for t in range(length):
        kept &= scores[:, 0, t] > -torch.inf  # behind a layer's sliding window: gone anyway
        if t >= budget:
            candidates = kept.clone()
            candidates[:, t - safe + 1 :] = False
            least = paid.masked_fill(~candidates, torch.inf).argmin(-1)
            full = kept.sum(-1) >= budget
            kept[all_heads[full], least[full]] = False
        kept[:, t] = True
        seen = scores[:, :, t, : t + 1].masked_fill(~kept[:, None, : t + 1], -torch.inf)
        paid[:, : t + 1] += seen.softmax(-1).sum(1)
        read[:, 0, t] = kept
    return read


SELECTIONS: dict[str, Select] = {
    "top-k": top,
    "top-k, shared": top_shared,
    "recent": recent,
    f"recent + {SINKS}": recent_and_sinks,
    "heavy hitters": heavy,
}


@contextmanager
def reading(model: PreTrainedModel, select: Select, budget: int) -> Iterator[None]:
    """The model with attention over what `select` leaves, for whole contexts read at once (no cache behind them).

    Raises `SpratError` for a model whose attention cannot be replaced.
    """

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """query (1, heads, T, d); key, value (1, kv_heads, T, d); mask (1, 1, T, T) or None: causal."""
        (_, heads, length, width), kv_heads = query.shape, key.shape[1]
        scaling = kwargs.get("scaling") or width**-0.5
        packed = query[0].float().view(kv_heads, heads // kv_heads, length, width)
        scores = packed @ key[0].float().transpose(1, 2)[:, None] * scaling
        seen = torch.ones(length, length, dtype=torch.bool).tril() if mask is None else mask[0, 0]
        chosen = select(scores.masked_fill(~seen, -torch.inf), budget)
        chosen = chosen.expand(-1, heads // kv_heads, -1, -1).reshape(1, heads, length, length)
        return sdpa_attention_forward(module, query, key, value, chosen, **kwargs)

    before = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register(_NAME, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, sdpa_mask)
    model.set_attn_implementation(_NAME)
    try:
        if model.config._attn_implementation != _NAME:  # transformers only warns
            raise SpratError(f"the attention of {type(model).__name__} cannot be replaced")
        yield
    finally:
        model.set_attn_implementation(before or "eager")


def share_read(budget: int, length: int, skip: int) -> float:
    """Of the positions that the scored queries would read of a whole cache, the share that they read."""
    whole = range(skip + 1, length)  # query t = skip .. length-2 reads t+1
    return sum(min(budget, n) for n in whole) / sum(whole)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_line("cache", "cache", __doc__, EXAMPLES)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--contexts", type=int, default=8)
    parser.add_argument(
        "--length", type=int, default=512, help="tokens of a context; its second half is scored"
    )
    parser.add_argument("--shares", default="0.5,0.25,0.125", help="of the length that is kept, by commas")
    parser.add_argument("--selections", default=";".join(SELECTIONS), help="which, by semicolons")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    options = parser.parse_args(arguments)
    chosen = options.selections.split(";")
    if unknown := [name for name in chosen if name not in SELECTIONS]:
        parser.error(f"no selection {unknown[0]!r}; there are {'; '.join(SELECTIONS)}")
    words = ["python", "-m", "bench.cache", *(sys.argv[1:] if arguments is None else arguments)]
    try:
        _measure(options, chosen, shlex.join(words))
    except SpratError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _measure(options: argparse.Namespace, chosen: Sequence[str], command: str) -> None:
    """The rows that the record does not hold yet."""
    record = Record(options.record, {"model": options.model, "dtype": options.dtype}, "sprat.cache/1")
    record.begin(command, versions(), machine())
    source = load(options.model, dtype=getattr(torch, options.dtype))
    judge = None
    with tempfile.TemporaryDirectory() as folder, bars() as progress:
        evaluation = texts.write(Path(folder))["evaluation"]
        found = contexts(source, evaluation, options.contexts, options.length)
        for share in map(float, options.shares.split(",")):
            budget = max(1, round(share * options.length))
            for selection in chosen:
                name = f"{selection}, {budget} of {options.length}, {options.contexts} contexts"
                if name in record.rows:
                    continue
                judge = judge or Judge(source.model, found, 0, progress)
                with reading(source.model, SELECTIONS[selection], budget):
                    row = judge.score(source.model, progress)
                read = share_read(budget, options.length, found.skip)
                about = {"selection": selection, "length": options.length, "budget": budget, "read": read}
                record.add(name, about | {"contexts": len(found.ids)} | row)
                kl, same = row["kl"], row["same_top"]["value"]
                ends = "" if kl["low"] is None else f" ({kl['low']:.4f}-{kl['high']:.4f})"
                print(f"{name}: {read:.1%} read, KL {kl['value']:.4f}{ends}, same top {same:.1%}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
