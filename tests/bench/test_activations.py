"""Thinning against a loop over tokens; a share of one changes nothing."""

from __future__ import annotations

import torch
from bench.activations import choose, thinned, thinning

from families import contexts, tiny_model
from sprat.source.maps import groups


def test_the_largest_stay():
    x, norms = torch.randn(3, 5, 10), torch.rand(10) + 0.1
    found = thinned(x, norms, 0.3)
    for row, out in zip(x.view(-1, 10), found.view(-1, 10), strict=True):
        kept = sorted(range(10), key=lambda j: -abs(float(row[j] * norms[j])))[:3]
        assert out.nonzero().flatten().tolist() == sorted(kept)
        assert torch.equal(out[kept], row[kept])


def test_whole_shares_change_nothing_and_smaller_ones_do():
    model, ids = tiny_model("llama"), contexts(2, 12)
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        for where, count in (("neurons", 2), ("all inputs", 8)):
            chosen = choose(groups(model), where)
            assert len(chosen) == count
            with thinning(chosen, 1.0):
                assert torch.equal(model(input_ids=ids).logits, plain)
            with thinning(chosen, 0.5):
                assert not torch.allclose(model(input_ids=ids).logits, plain)
        assert torch.equal(model(input_ids=ids).logits, plain)
