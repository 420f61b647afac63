"""The streamed statistics against brute force on the whole model, and resumed from the cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from families import CONFIGS, contexts, tiny_model
from sprat.errors import StatisticsError
from sprat.sense.cache import Cache
from sprat.sense.measure import measure
from sprat.sense.moments import PROBES, WIDE
from sprat.sense.statistics import SKIP, GroupStatistics, HeadStatistics
from sprat.sense.walk import Walk
from sprat.source.load import load
from sprat.source.maps import Group, groups

HELD_OUT, SEED = 2, 5


@dataclass
class Brute:
    """Inputs and output gradients (contexts, context, width) of every map by name, from one pass."""

    x: dict[str, Tensor]
    gradient: dict[str, Tensor]
    embedding: Tensor
    p: Tensor
    final: Tensor


@contextmanager
def labels(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """The labels (tokens,) that backward passes inside it sample: where ∂ℓ/∂logits = p - onehot is negative."""
    found: list[Tensor] = []

    def keep(_, __, out: Tensor) -> None:
        if out.requires_grad:
            out.register_hook(lambda gradient: found.append(gradient.flatten(0, 1).argmin(-1)))

    hook = model.get_output_embeddings().register_forward_hook(keep)
    try:
        yield found
    finally:
        hook.remove()


def brute_force(model: PreTrainedModel, found: list[Group], ids: Tensor, label: Tensor) -> Brute:
    """Plain forward and backward of the summed loss at `label`: (tokens,)."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    x: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    hooks = []
    maps = [m for group in found for m in group.maps]
    for m in maps:

        def keep(_, args, out, name=m.name) -> None:
            x[name] = args[0].detach()
            outputs[name] = out
            out.retain_grad()

        hooks.append(m.module.register_forward_hook(keep))
    entered: list[Tensor] = []

    def embedded(_, __, out: Tensor) -> Tensor:
        entered.append(out.detach().requires_grad_())
        return entered[0]

    final: list[Tensor] = []
    hooks.append(model.get_input_embeddings().register_forward_hook(embedded))
    output = model.get_output_embeddings()
    hooks.append(output.register_forward_pre_hook(lambda _, args: final.append(args[0].detach())))
    logits = model(input_ids=ids, use_cache=False).logits
    p = logits.detach().softmax(-1)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), label, reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    gradient = {name: out.grad for name, out in outputs.items() if out.grad is not None}
    assert entered[0].grad is not None
    return Brute(x, gradient, entered[0].grad, p, final[0])


def flat(x: Tensor) -> Tensor:
    """Without each context's first token: (tokens, width)."""
    return x[:, SKIP:].flatten(0, 1)


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_equals_brute_force_on_the_whole_model(family: str, tmp_path: Path) -> None:
    compare_with_brute_force(tiny_model(family), contexts(7, 17), tmp_path)


def test_equals_brute_force_on_a_model_from_disk(tiny, tmp_path: Path) -> None:
    model = load(tiny.folder, dtype=torch.float32).model
    compare_with_brute_force(model, contexts(6, 24), tmp_path)


def compare_with_brute_force(model: PreTrainedModel, ids: Tensor, root: Path) -> None:
    found = groups(model)
    cache = Cache({}, root)
    with labels(model) as sampled:
        measure(Walk(model, ids), found, cache, held_out=HELD_OUT, batch=2, seed=SEED)
    label = torch.cat(sampled)
    learning = ids[:-HELD_OUT]
    brute = brute_force(model, found, learning, label[: learning.numel()])
    tokens = learning[:, SKIP:].numel()
    probed = brute_force(model, found, ids[-HELD_OUT:], label[learning.numel() :])
    for group in found:
        if group.layer is None:
            continue
        s: GroupStatistics = cache.get(f"layer/{group.layer}", GroupStatistics)[group.name]
        x = flat(brute.x[group.maps[0].name])
        close(s.h, x.T @ x / tokens)
        gradient = torch.cat([flat(brute.gradient[m.name]) for m in group.maps], 1)
        close(s.g, gradient.square().mean(0))
        assert bool(len(s.fisher)) == (gradient.shape[1] <= WIDE * group.width)
        if len(s.fisher):
            close(s.fisher, gradient.T @ gradient / tokens)
        assert s.tokens == tokens
        kept = flat(probed.x[group.maps[0].name])
        assert len(s.probes) == min(PROBES, len(kept))
        torch.testing.assert_close(s.probes.float(), kept, rtol=0.02, atol=0.02)
    head: HeadStatistics = cache.get("head", HeadStatistics)["head"]
    variance, last = (brute.p * (1 - brute.p)).flatten(0, 1), brute.final.flatten(0, 1)
    weight = variance.sum(1, keepdim=True)
    close(head.h, (last * weight).T @ last / weight.sum())
    close(head.g, variance.mean(0))
    close(head.frequency, brute.p.flatten(0, 1).mean(0))
    assert float(head.frequency.sum()) == pytest.approx(1, abs=1e-5)
    # Gemma multiplies the embedding's rows on their way: what hits a row is that much larger.
    inner = flat(brute.embedding) * float(getattr(model.get_input_embeddings(), "embed_scale", 1.0))
    close(head.f, inner.T @ inner / tokens)


def test_labels_are_drawn_from_the_models_own_distribution(tmp_path: Path) -> None:
    """Their mean surprise is the entropy, to 4 deviations of 1,350 draws; another seed draws others."""
    model, ids = tiny_model("llama"), contexts(62, 22)
    drawn = []
    for seed in (0, 0, 1):
        cache = Cache({"n": len(drawn)}, tmp_path)
        with labels(model) as sampled:
            measure(Walk(model, ids), groups(model), cache, held_out=HELD_OUT, batch=16, seed=seed)
        drawn.append(torch.cat(sampled))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    with torch.no_grad():
        log_p = model(input_ids=ids).logits.log_softmax(-1).flatten(0, 1)
    entropy = -(log_p.exp() * log_p).sum(1)
    variance = (log_p.exp() * log_p.square()).sum(1) - entropy.square()
    for label in drawn:
        surprise = -log_p.gather(1, label[:, None])[:, 0]
        assert abs(float((surprise - entropy).sum())) < 4 * float(variance.sum().sqrt())


@pytest.mark.parametrize("where", ["model.layers.0.mlp.down_proj", "model.norm"])
def test_a_model_that_computes_nan_is_named_and_nothing_kept(where: str, tmp_path: Path) -> None:
    model, cache = tiny_model("llama"), Cache({}, tmp_path)
    ids, found = contexts(4, 9), groups(model)
    with torch.no_grad():
        model.get_submodule(where).weight.view(-1)[3] = float("nan")
    with pytest.raises(StatisticsError, match="statistics hold NaN or infinite values"):
        measure(Walk(model, ids), found, cache, held_out=1)
    assert "layer/1" not in cache and "head" not in cache


def close(got: Tensor, want: Tensor) -> None:
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


def everything(cache: Cache, layers: int) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name in [*(f"layer/{i}" for i in range(layers)), "head"]:
        for key, record in cache.get(name, HeadStatistics if name == "head" else GroupStatistics).items():
            for f in fields(record):
                out[f"{name} {key} {f.name}"] = torch.as_tensor(
                    getattr(record, f.name)
                ).clone()  # the file is mapped
    return out


@pytest.mark.parametrize("lost", ["layer-0", "layer-1", "head"])
@pytest.mark.parametrize("how", ["deleted", "cut", "noise"])
def test_resumes_with_identical_statistics(lost: str, how: str, tmp_path: Path) -> None:
    model, ids = tiny_model("llama"), contexts(6, 17)
    cache = Cache({"a": 1}, tmp_path)
    measure(Walk(model, ids), groups(model), cache, held_out=HELD_OUT, seed=SEED)
    before = everything(cache, 2)
    path = cache.folder / f"{lost}.safetensors"
    if how == "deleted":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9] if how == "cut" else b"\7" * 500)
    kept = {p: p.stat().st_mtime_ns for p in cache.folder.iterdir() if p != path}
    measure(Walk(model, ids), groups(model), cache, held_out=HELD_OUT, seed=SEED)
    after = everything(cache, 2)
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    # Layers that are there already are neither computed nor written again.
    assert {p: p.stat().st_mtime_ns for p in kept if p.stem != "head"} == {
        p: t for p, t in kept.items() if p.stem != "head"
    }


def test_what_is_cached_costs_no_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny_model("llama"), contexts(6, 17)
    cache = Cache({"a": 1}, tmp_path)
    measure(Walk(model, ids), groups(model), cache, held_out=HELD_OUT)
    walk = Walk(model, ids)
    monkeypatch.setattr(walk, "boundaries", lambda *_: pytest.fail("walked again"))
    measure(walk, groups(model), cache, held_out=HELD_OUT)


def test_batch_size_changes_nothing(tmp_path: Path) -> None:
    model, ids = tiny_model("qwen3"), contexts(6, 17)
    found = []
    for batch in (1, 4):
        cache = Cache({"batch": batch}, tmp_path)
        measure(Walk(model, ids), groups(model), cache, held_out=HELD_OUT, batch=batch, seed=SEED)
        found.append(everything(cache, 2))
    for key, value in found[0].items():
        torch.testing.assert_close(
            found[1][key],
            value,
            rtol=1e-3,
            atol=1e-5 * float(value.abs().amax() if value.numel() else 0) + 1e-7,
        )
