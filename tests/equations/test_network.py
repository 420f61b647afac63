"""The equation of a whole network: its parts, its counts, its place in a golf's decoder."""

from __future__ import annotations

import pytest
import torch

from golf.small import recipe
from sprat.anatomy.shape import from_numbers
from sprat.equations.maps import Maps
from sprat.equations.network import parse
from sprat.errors import RecipeError
from sprat.golf.model import Decoder


@pytest.mark.parametrize(
    "text",
    [
        "dense",
        "lowrank(4) + shared(dense)",
        "dense; embedding: lowrank(8)",
        "attention: kron(1, 8); ffn: monarch(4)",
        "attention: kron(1, 8); ffn: monarch(4, 2); embedding: lowrank(8)",
    ],
)
def test_it_prints_as_it_reads(text):
    assert str(parse(text)) == text and parse(str(parse(text))) == parse(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("attn: dense", "did you mean 'attention'"),
        ("dense; ffn: dense", "ffn is given twice"),
        ("ffn: dense; ffn: lowrank(2)", "ffn is given twice"),
        ("embedding: kron(1, 2)", "an embedding is dense or lowrank"),
        ("dense;", "formula ends"),
        ("ffn: monark(3)", "did you mean 'monarch'"),
    ],
)
def test_what_is_wrong_is_named(text, says):
    with pytest.raises(RecipeError, match=says):
        parse(text)


FORMULAS = [
    "dense",
    "attention: lowrank(4); ffn: shared(monarch(4)); embedding: lowrank(8)",
    "scaled(seeded) + polynomial(1, kron(1, 8))",
    "hypernetwork(4); embedding: lowrank(3)",
]


@pytest.mark.parametrize("formula", FORMULAS)
def test_a_decoder_has_the_parameters_that_are_counted(formula):
    chosen = recipe(equation=formula)
    model = Decoder(chosen, 320, 1)
    shape = from_numbers(
        chosen.width, chosen.layers, chosen.inner, 320, chosen.heads, chosen.kv_heads, tied=True
    )
    norms = (
        chosen.layers * 2 * (chosen.width // chosen.heads)
    )  # of queries and keys, which this shape has not
    counted = parse(formula).parameters(shape)
    assert sum(counted.values()) + norms == sum(p.numel() for p in model.parameters())
    assert parse(formula).nbytes(shape, 4.0) == -(-sum(counted.values()) // 2)
    # The same model on every call, and other weights with another seed.
    ids = torch.arange(40)[None]
    twin = Decoder(chosen, 320, 2)
    assert not torch.equal(twin(ids), model(ids))
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(ids), model(ids))
    # Its dense twin computes the same.
    plain = Decoder(recipe(), 320, 1)
    state = {name: value for name, value in model.state_dict().items() if "maps." not in name}
    kinds = model.model.maps
    assert isinstance(kinds, torch.nn.ModuleDict)
    for name, maps in kinds.items():
        assert isinstance(maps, Maps)
        for layer in range(chosen.layers):
            state[f"model.layers.{layer}.{name.replace('-', '.')}.weight"] = maps.dense(layer)
    if (right := state.pop("model.embed_tokens.right", None)) is not None:
        state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"] @ right
    plain.load_state_dict(state)
    torch.testing.assert_close(plain(ids), model(ids), atol=1e-4, rtol=1e-4)


def test_dense_costs_what_the_anatomy_says():
    shape = from_numbers(4096, 64, 16384, 50257)
    dense = parse("dense")
    assert sum(dense.parameters(shape).values()) == shape.parameters
    assert dense.flops(shape, 100) == shape.flops(100)


def test_an_equation_that_does_not_fit_is_refused_before_any_training():
    with pytest.raises(RecipeError, match="lowrank"):
        recipe(equation="lowrnk(2)")
    with pytest.raises(RecipeError, match="at most 16"):
        recipe(equation="lowrank(24)")
