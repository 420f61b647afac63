"""Attention over a part of the cache against a loop that decodes token by token with explicit lists of positions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bench.cache import SELECTIONS, reading, share_read
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from bench import cache
from families import contexts, tiny_model
from sprat.errors import SpratError

LENGTH = 24


class Slow:
    """Decodes a Llama one token at a time; of each layer and key-value head a list of the positions that are kept."""

    def __init__(self, model: PreTrainedModel, selection: str, budget: int):
        self.model, self.selection, self.budget = model, selection, budget
        self.config = model.config
        self.keys: list[list[Tensor]] = [[] for _ in model.model.layers]
        self.values: list[list[Tensor]] = [[] for _ in model.model.layers]
        places = [
            (i, h) for i in range(len(model.model.layers)) for h in range(self.config.num_key_value_heads)
        ]
        self.kept: dict[tuple[int, int], list[int]] = {place: [] for place in places}
        self.paid = {place: [0.0] * LENGTH for place in places}
        self.most = 0

    def step(self, t: int, token: Tensor) -> Tensor:
        inner = self.model.model
        x = inner.embed_tokens(token)[None, None]
        angles = inner.rotary_emb(x, torch.tensor([[t]]))
        for i, layer in enumerate(inner.layers):
            x = x + self.attend(i, layer.self_attn, layer.input_layernorm(x), t, angles)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.model.lm_head(inner.norm(x))[0, 0]

    def attend(self, i: int, attention, x: Tensor, t: int, angles) -> Tensor:
        width, group = attention.head_dim, attention.num_key_value_groups
        q, k, v = (
            m(x).view(1, 1, -1, width).transpose(1, 2)
            for m in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, *angles)
        self.keys[i].append(k[0, :, 0])
        self.values[i].append(v[0, :, 0])
        out = []
        for h in range(self.config.num_key_value_heads):
            queries = [q[0, h * group + g, 0] for g in range(group)]
            logits = [
                [float(query @ self.keys[i][p][h]) / math.sqrt(width) for p in range(t + 1)]
                for query in queries
            ]
            for query, positions in zip(logits, self.choose(i, h, t, logits), strict=True):
                self.most = max(self.most, len(positions))
                weights = softmax({p: query[p] for p in positions})
                for p, weight in weights.items():
                    self.paid[i, h][p] += weight
                out.append(sum(weight * self.values[i][p][h] for p, weight in weights.items()))
        return attention.o_proj(torch.cat(out)[None, None])

    def choose(self, i: int, h: int, t: int, logits: list[list[float]]) -> list[list[int]]:
        """For each query head of key-value head h the positions that it reads at time t."""
        budget, everything = self.budget, range(t + 1)
        if self.selection == "top-k":
            return [sorted(everything, key=lambda p: -query[p])[:budget] for query in logits]
        if self.selection == "top-k, shared":
            full = [softmax(dict(enumerate(query))) for query in logits]
            return [sorted(everything, key=lambda p: -sum(w[p] for w in full))[:budget]] * len(logits)
        kept = self.kept[i, h]
        if len(kept) == budget:
            if self.selection == "recent":
                kept.pop(0)
            elif self.selection == "recent + 4":
                kept.pop(min(4, budget - 1))  # in order of the text: the oldest that is no sink
            else:
                safe = max(1, budget // 2)
                kept.remove(min((p for p in kept if p <= t - safe), key=lambda p: self.paid[i, h][p]))
        kept.append(t)
        return [list(kept)] * len(logits)


def softmax(logits: dict[int, float]) -> dict[int, float]:
    top = max(logits.values())
    total = sum(math.exp(x - top) for x in logits.values())
    return {p: math.exp(x - top) / total for p, x in logits.items()}


@torch.no_grad()
@pytest.mark.parametrize("budget", [1, 6, 11])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_as_decoded_token_by_token(selection, budget):
    model, ids = tiny_model("llama"), contexts(1, LENGTH)
    slow = Slow(model, selection, budget)
    expected = torch.stack([slow.step(t, ids[0, t]) for t in range(LENGTH)])
    assert slow.most == budget
    with reading(model, SELECTIONS[selection], budget):
        found = model(input_ids=ids, use_cache=False).logits[0]
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
    plain = model(input_ids=ids, use_cache=False).logits[0]
    torch.testing.assert_close(found[:budget], plain[:budget], atol=2e-4, rtol=1e-4)  # nothing is dropped yet
    assert not torch.allclose(found[budget:], plain[budget:], atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize(
    "family", ["llama", "gemma3", "gpt2"]
)  # gemma3: the first layer has a sliding window
def test_the_whole_cache_is_the_plain_model(family):
    model, ids = tiny_model(family), contexts(1, LENGTH)
    plain, before = model(input_ids=ids, use_cache=False).logits, model.config._attn_implementation
    for select in SELECTIONS.values():
        with reading(model, select, LENGTH):
            assert model.config._attn_implementation != before
            torch.testing.assert_close(
                model(input_ids=ids, use_cache=False).logits, plain, atol=1e-4, rtol=1e-4
            )
        assert model.config._attn_implementation == before
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, plain)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_every_query_reads_its_budget_and_what_is_evicted_stays_so(selection):
    scores = torch.randn(2, 3, LENGTH, LENGTH).masked_fill(
        ~torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(), -torch.inf
    )
    read = SELECTIONS[selection](scores, 7)
    assert (read.sum(-1) == torch.arange(1, LENGTH + 1).clamp(max=7)).all()
    assert not read.triu(1).any()
    if "top-k" not in selection:
        assert read.shape == (2, 1, LENGTH, LENGTH)
        assert not (read[..., 1:, :] & ~read[..., :-1, :]).tril(-1).any()
        assert read.diagonal(dim1=-2, dim2=-1).all()


@pytest.mark.parametrize("seed", range(20))  # one alone seldom meets an eviction that is close
def test_heavy_hitters_of_sharp_attention(seed):
    """Here what other heads read, and what a query did not, would change what is evicted."""
    drawn = torch.randn(2, 3, LENGTH, LENGTH, generator=torch.Generator().manual_seed(seed))
    scores = (4 * drawn).masked_fill(~torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(), -torch.inf)
    read = cache.heavy(scores, 7)
    for h, own in enumerate(scores.tolist()):
        kept: list[int] = []
        paid = [0.0] * LENGTH
        for t in range(LENGTH):
            if len(kept) == 7:
                kept.remove(min((p for p in kept if p <= t - 3), key=lambda p: paid[p]))
            kept.append(t)
            for query in own:
                for p, weight in softmax({p: query[t][p] for p in kept}).items():
                    paid[p] += weight
            assert read[h, 0, t].nonzero().flatten().tolist() == kept


def test_a_model_whose_attention_stays_is_refused():
    model = SimpleNamespace(
        config=SimpleNamespace(_attn_implementation="eager"), set_attn_implementation=print
    )
    refused = pytest.raises(SpratError, match="the attention of SimpleNamespace cannot be replaced")
    with refused, reading(model, cache.top, 1):
        raise AssertionError


def test_the_share_that_is_read():
    assert share_read(8, 8, 4) == 1.0
    assert share_read(4, 8, 4) == (4 + 4 + 4) / (5 + 6 + 7)


def test_a_record_keeps_its_rows(tmp_path: Path, monkeypatch, capsys):
    model = tiny_model("llama")
    (tmp_path / "text").write_text("")
    found = SimpleNamespace(ids=contexts(2, 16).numpy(), skip=8)
    judged = []

    class Judge:
        def __init__(self, *_):
            pass

        def score(self, *_):
            judged.append(1)
            return {"kl": {"value": 0.1, "low": None, "high": None}, "same_top": {"value": 0.9}}

    monkeypatch.setattr(cache, "load", lambda *_, **__: SimpleNamespace(model=model))
    monkeypatch.setattr(cache.texts, "write", lambda _: {"evaluation": tmp_path / "text"})
    monkeypatch.setattr(cache, "contexts", lambda *_: found)
    monkeypatch.setattr(cache, "Judge", Judge)
    words = [
        "tiny",
        "--length",
        "16",
        "--contexts",
        "2",
        "--selections",
        "recent;top-k",
        "--record",
        str(tmp_path),
    ]
    cache.main([*words, "--shares", "0.5"])
    cache.main([*words, "--shares", "0.5,0.25"])
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert len(judged) == 4
    assert [(row["selection"], row["budget"], row["contexts"]) for row in rows.values()] == [
        ("recent", 8, 2), ("top-k", 8, 2), ("recent", 4, 2), ("top-k", 4, 2)
    ]  # fmt: skip
    with pytest.raises(SystemExit):
        cache.main([*words, "--selections", "recant"])
    assert "no selection 'recant'; there are top-k" in capsys.readouterr().err
