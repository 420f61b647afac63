"""Walking a model layer by layer gives what the model itself computes."""

from __future__ import annotations

import pytest
import torch

from families import ALL, contexts, tiny_model
from sprat.sense.walk import Walk, batches
from sprat.source.maps import decoder_layers


@pytest.mark.parametrize("family", sorted(ALL))
def test_replay_equals_the_models_own_forward(family: str) -> None:
    model, ids = tiny_model(family), contexts(5, 17)
    seen: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for layer in decoder_layers(model)[1]
    ]
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    walk = Walk(model, ids)
    hidden = walk.boundaries(batch=2)
    assert len(hidden) == len(seen) + 1
    for own, replayed in zip(seen, hidden[1:], strict=True):
        torch.testing.assert_close(replayed, own, rtol=1e-5, atol=1e-5)
    leaf, final, again = walk.tail(hidden[-1], ids)
    torch.testing.assert_close(again, logits, rtol=1e-5, atol=1e-5)
    assert leaf.requires_grad and not final.requires_grad
    with torch.no_grad():  # the model is left as it was
        assert torch.equal(model(input_ids=ids, use_cache=False).logits, logits)


def test_a_sliding_window_matters_in_this_test() -> None:
    """Without its window the Mistral of these tests computes something else: the masks above were right."""
    ids = contexts(2, 17)
    model, wide = tiny_model("mistral"), tiny_model("mistral")
    wide.config.sliding_window = None
    with torch.no_grad():
        one, two = model(input_ids=ids).logits, wide(input_ids=ids).logits
    assert (one[:, :5] - two[:, :5]).abs().max() < 1e-4 < 0.01 < (one[:, 8:] - two[:, 8:]).abs().max()


def test_batches_cover_everything_once() -> None:
    assert [(b.start, b.stop) for b in batches(7, 3)] == [(0, 3), (3, 6), (6, 7)]
    assert list(batches(0, 3)) == []


def test_progress_ends_at_its_total() -> None:
    calls: list[tuple[str, int, int]] = []
    walk = Walk(tiny_model("llama"), contexts(3, 9))
    walk.boundaries(2, lambda name, done, total: calls.append((name, done, total)))
    assert [c[1] for c in calls] == sorted(c[1] for c in calls)
    assert calls[-1][1] == calls[-1][2]
