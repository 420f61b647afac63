"""What would have to be true for a claim to hold: arithmetic alone, no judgement of any method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sprat.anatomy.claim import Claim
from sprat.anatomy.shape import Shape
from sprat.sizes import format_bytes

#: Counts and sizes are given to two or three figures: this much apart they are called the same.
SAME = 0.02
#: Bits at which embeddings and head are commonly kept when only the layers are compressed.
KEPT = (16, 8, 4)
#: What a weight costs before its scales are counted.
_GRIDS = {
    1.0: "one bit",
    math.log2(3): "ternary (1.585 bits)",
    2.0: "two bits",
    3.0: "three bits",
    4.0: "four bits",
}


@dataclass(frozen=True)
class Finding:
    """One consequence of a claim: a sentence, and its figures."""

    kind: str
    statement: str
    figures: dict[str, float]


def required(claim: Claim, shape: Shape | None = None) -> list[Finding]:
    """What follows from `claim`, for a model of `shape` where one is known."""
    of_shape = (_original, _implied, _left, _rate)
    of_claim = (_factors, _scales, _zeros)
    return [f for find in of_shape for f in find(claim, shape)] + [
        f for find in of_claim for f in find(claim)
    ]


def _original(claim: Claim, shape: Shape | None) -> Iterator[Finding]:
    """Whether the model that is spoken of is this one, and in how many bits the claim counts it."""
    weights = shape.parameters if shape else claim.parameters_before
    if shape is not None and claim.parameters_before is not None:
        apart = claim.parameters_before / shape.parameters - 1
        same = "which is the claim's" if abs(apart) < SAME else "so the claim is about another model"
        yield Finding(
            "original",
            f"this shape has {count(shape.parameters)} parameters, {same} ({count(claim.parameters_before)})",
            {"parameters": shape.parameters, "claimed": claim.parameters_before, "apart": apart},
        )
    if claim.bytes_before is not None and weights is not None:
        bits = 8 * claim.bytes_before / weights
        text = f"the original is counted at {bits:.3g} bits a weight"
        if abs(bits / 16 - 1) > 4 * SAME:
            text += f"; models are published at 16, where it is {format_bytes(2 * weights)}"
        yield Finding("original bits", text, {"bits_a_weight": bits})


def _factors(claim: Claim) -> Iterator[Finding]:
    """How many times fewer or smaller."""
    pairs = (
        ("fewer parameters", claim.parameters_before, claim.parameters),
        ("fewer bytes", claim.bytes_before, claim.bytes),
        ("fewer bits a weight", claim.rate_before, claim.rate),
    )
    for what, before, after in pairs:
        if before is not None and after is not None:
            factor = before / after
            said = ""
            if claim.smaller is not None:
                same = abs(factor / claim.smaller - 1) < SAME
                said = f", as is said ({claim.smaller:g})" if same else f", and not {claim.smaller:g}"
            yield Finding("factor", f"{factor:.3g} times {what}{said}", {"factor": factor})


def _implied(claim: Claim, shape: Shape | None) -> Iterator[Finding]:
    """A size at a rate: how many weights that are; a rate alone: which size that is."""
    if claim.rate is None or claim.rate_before is not None:
        return
    if claim.bytes is None:
        yield from _size(claim.rate, claim.parameters_before, shape)
        return
    weights = 8 * claim.bytes / claim.rate
    text = f"{format_bytes(claim.bytes)} at {claim.rate:g} bits a weight hold {count(weights)} weights"
    figures = {"weights": weights}
    total = shape.parameters if shape else claim.parameters_before
    if total is not None:
        figures["parameters"] = total
        if abs(weights / total - 1) < SAME:
            text += f": all {count(total)} of the model, embeddings and head among them at that rate too"
        elif weights < total:
            text += f": {count(total - weights)} fewer than the model's {count(total)}, which must be stored somewhere"
        else:
            text += (
                f", but the model has {count(total)}: {format_bytes(claim.bytes - total * claim.rate / 8)} are "
                "something else (embeddings in more bits, scales, tables)"
            )
    yield Finding("weights", text, figures)


def _size(rate: float, weights: float | None, shape: Shape | None) -> Iterator[Finding]:
    """What a rate gives, for every weight and for those of the layers alone."""
    total = shape.parameters if shape else weights
    if total is None:
        return
    whole = total * rate / 8
    figures = {"bytes": whole}
    text = f"{count(total)} weights at {rate:g} bits are {format_bytes(whole)}, if no weight is left out"
    if shape is not None and rate < 16:
        some = ((total - shape.outside) * rate + shape.outside * 16) / 8
        figures |= {"bytes_layers_only": some, "bits_layers_only": 8 * some / total}
        in_all = f"{8 * some / total:.3g} bits a weight in all"
        text += f"; with embeddings and head in 16 bits {format_bytes(some)}, {in_all}"
    yield Finding("size", text, figures)


def _left(claim: Claim, shape: Shape | None) -> Iterator[Finding]:
    """Fewer parameters: what the embeddings leave for the layers, in vectors and in ranks."""
    if shape is None or claim.parameters is None:
        return
    rest = claim.parameters - shape.outside
    kept = f"the {count(shape.outside)} of embeddings and head"
    figures: dict[str, float] = {"parameters": claim.parameters, "outside": shape.outside, "left": rest}
    if rest <= 0:
        text = f"{count(claim.parameters)} are fewer than {kept}: those would have to be compressed too"
        yield Finding("left", text, figures)
        return
    a_layer = rest / shape.layers
    vectors = a_layer / shape.width
    before = sum(m.weights for m in shape.maps)
    rank = a_layer / sum((m.rows + m.columns) * m.experts for m in shape.maps)
    figures |= {"a_layer": a_layer, "vectors_a_layer": vectors, "layer_parameters": before, "rank": rank}
    yield Finding(
        "left",
        f"{count(claim.parameters)} parameters less {kept} leave {count(rest)} for {shape.layers} layers: "
        f"{count(a_layer)} a layer, {vectors:.3g} vectors of width {shape.width:,}, in place of {count(before)} "
        f"(1 in {before / a_layer:,.3g})",
        figures,
    )
    maps = f"each of the {sum(m.experts for m in shape.maps)} maps of a layer"
    low = f"not even rank one for {maps}" if rank < 1 else f"rank {rank:.3g} for {maps}"
    yield Finding("rank", f"as factors of low rank that is {low}", {"rank": rank})


def _rate(claim: Claim, shape: Shape | None) -> Iterator[Finding]:
    """Bits a weight of the original, everything counted, and what is left where embeddings are kept better."""
    weights = claim.parameters_before or (shape.parameters if shape else None)
    nbytes, said = claim.bytes, None
    if nbytes is None and claim.smaller is not None and weights:
        nbytes, said = (claim.bytes_before or 2 * weights) / claim.smaller, "of 16-bit weights"
    if nbytes is None and claim.parameters is not None and weights:
        nbytes, said = 2 * claim.parameters, "if each parameter that is left takes 16 bits"
    if nbytes is None and claim.bytes is None and claim.smaller is not None:
        bits = 16 / claim.smaller
        text = f"{claim.smaller:g} times smaller than 16 bits is {bits:.3g} bits a weight, everything counted"
        yield Finding("rate", text, {"bits_a_weight": bits})
        return
    if nbytes is None or not weights or (claim.rate is not None and claim.rate_before is None):
        return
    bits = 8 * nbytes / weights
    text = f"{format_bytes(nbytes)} for {count(weights)} weights are {bits:.3g} bits for each weight of the original"
    yield Finding("rate", text + (f" ({said})" if said else ""), {"bytes": nbytes, "bits_a_weight": bits})
    if bits < 1:
        share = nonzero_share(bits)
        yield Finding(
            "below one bit",
            f"below one bit a weight cannot keep even its own sign: where places and signs are arbitrary, at most "
            f"{100 * share:.2g} % of the weights could be nonzero, with no bits left for their magnitudes",
            {"nonzero_share": share},
        )
    if shape is not None and abs(weights / shape.parameters - 1) < SAME:
        inside = shape.parameters - shape.outside
        for kept in KEPT:
            if kept <= bits:
                continue
            rest = (8 * nbytes - kept * shape.outside) / inside
            left = f"leave {rest:.3g} bits a weight for the layers" if rest > 0 else "do not fit"
            yield Finding(
                "kept", f"embeddings and head at {kept} bits {left}", {"kept_bits": kept, "layer_bits": rest}
            )


def _scales(claim: Claim) -> Iterator[Finding]:
    """A rate slightly above a grid's own bits: the group whose 16-bit scale fits between."""
    if claim.rate is None:
        return
    below = [bits for bits in _GRIDS if bits < claim.rate - 1e-9]
    if not below:
        return
    grid = max(below)
    over = claim.rate - grid
    if over > 0.5:  # that is no scale, but more levels
        return
    yield Finding(
        "scales",
        f"{claim.rate:g} bits a weight are {_GRIDS[grid]} and {over:.3g} for scales: one of 16 bits for every "
        f"{16 / over:.4g} weights",
        {"grid_bits": grid, "scale_bits": over, "group": 16 / over},
    )


def _zeros(claim: Claim) -> Iterator[Finding]:
    """What zeros are worth: the places of those that are not must be stored."""
    if claim.zeros is None:
        return
    places = entropy(claim.zeros)
    stored = {bits: (1 - claim.zeros) * bits + places for bits in (16, 4)}
    yield Finding(
        "zeros",
        f"{100 * claim.zeros:g} % zeros anywhere: their places take {places:.3g} bits a weight (the entropy), so that "
        f"16-bit weights take {stored[16]:.4g} and 4-bit weights {stored[4]:.4g} bits a weight",
        {"place_bits": places, "at_16_bits": stored[16], "at_4_bits": stored[4]},
    )


def entropy(share: float) -> float:
    """Bits of a choice that is true with probability `share`."""
    return -sum(p * math.log2(p) for p in (share, 1 - share) if p > 0)


def nonzero_share(bits: float) -> float:
    """The largest share p of nonzero weights whose places and signs fit `bits` a weight: h(p) + p = bits."""
    return _solve(lambda p: entropy(p) + p, bits)


def _solve(rising: Callable[[float], float], target: float) -> float:
    low, high = 0.0, 2 / 3  # where h(p) + p has its largest value, log2 3
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return high


def count(value: float) -> str:
    """`17.6 B`, `417 M`, `82.6 K`, `20`: three figures."""
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(value) >= 0.9995 * scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.3g}"
