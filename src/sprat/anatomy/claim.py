"""A small grammar of claims: what a sentence about a compressed model says in numbers.

    claim    = quantity { [connective] quantity }
    quantity = count | size | rate | factor | share
    count    = number (K | M | B | T | thousand … trillion) [parameters | weights], or number parameters
    size     = number (bytes | kB | MB | GB | TB | KiB | MiB | GiB | TiB)
    rate     = number (bpw | bits | bits a weight | bit)
    factor   = number (x | × | times | fold) [smaller | fewer | less]
    share    = number % (smaller | fewer | less | zeros | sparse | pruned | removed)
    connective = from, to, ->, into, in, at, as, with, and, a comma or colon

A B alone is a billion, as in "17.6B"; bytes are written out. Of two quantities of one kind the first is the original.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sprat.errors import SpratError
from sprat.sizes import UNITS

_NUMBER = r"(?P<number>[0-9](?:[0-9_,]*[0-9])?(?:\.[0-9]+)?|\.[0-9]+)\s*"
_WEIGHTS = r"(?:parameters?|params?|weights?|models?)"
_LESS = r"(?:\s*(?:smaller|fewer|less|compression|compressed))"
_QUANTITIES = {
    "rate": rf"-?(?:bpw|bits?(?:\s*(?:a|per|/)\s*{_WEIGHTS})?)",
    "size": r"(?P<unit>bytes?|[kKMGT]i?B)",
    "factor": rf"(?:x|×|times|-?fold){_LESS}?",
    "zeros": r"%\s*(?:zeros?|sparse|sparsity|pruned|removed)",
    "share": rf"%{_LESS}",
    "count": rf"(?:(?P<unit>[KMBT]|thousand|million|billion|trillion)(?:\s*{_WEIGHTS})?|{_WEIGHTS})",
}
_PATTERNS = {
    kind: re.compile(_NUMBER + tail + r"(?![A-Za-z0-9])", re.IGNORECASE) for kind, tail in _QUANTITIES.items()
}
_CONNECTIVE = re.compile(
    r"\s*(?:(?:down\s+)?to\b|from\b|->|→|into\b|in\b|at\b|as\b|with\b|and\b|[,;:])?\s*", re.I
)
_COUNTS = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_SIZES = {unit.lower(): count for unit, count in UNITS.items()}

#: Kinds of which a claim may name two: before and after.
_PAIRS = ("count", "size", "rate")

#: What an error shows.
EXAMPLES = (
    '"17.6B to 417M", "1.15 GB at 1.125 bpw", "8B in 1.15 GB", "42x smaller", "50% smaller", "50% zeros", '
    '"16 bits to 1.58 bits"'
)


@dataclass(frozen=True)
class Claim:
    """What is said; None where nothing is. Sizes in bytes, rates in bits a weight.

    smaller: bytes of the original over bytes after; zeros: share of the weights that are zero.
    """

    text: str
    parameters_before: float | None = None
    parameters: float | None = None
    bytes_before: float | None = None
    bytes: float | None = None
    rate_before: float | None = None
    rate: float | None = None
    smaller: float | None = None
    zeros: float | None = None


def parse(text: str) -> Claim:
    """Read a claim. Raises SpratError with what is understood."""
    found: dict[str, list[float]] = {}
    at = _connective(text, 0)
    while at < len(text):
        kind, value, at = _quantity(text, at)
        found.setdefault(kind, []).append(value)
        at = _connective(text, at)
    if not found:
        raise SpratError(f"an empty claim: write one such as {EXAMPLES}")
    if crowded := [kind for kind, values in found.items() if len(values) > (2 if kind in _PAIRS else 1)]:
        raise SpratError(f"{text!r} names more than one {crowded[0]} before and after: make it two claims")
    if "factor" in found and "share" in found:
        raise SpratError(f"{text!r} says twice how much smaller: make it two claims")
    counts, sizes, rates = (found.get(kind, []) for kind in _PAIRS)
    # "8B in 1.15 GB": the count is the model's, the size is what is claimed; so with a rate, a factor or a share.
    other = bool(sizes or rates or len(found) > 1)
    return Claim(
        text=text.strip(),
        parameters_before=counts[0] if len(counts) == 2 or (counts and other) else None,
        parameters=counts[-1] if len(counts) == 2 or (counts and not other) else None,
        bytes_before=sizes[0] if len(sizes) == 2 else None,
        bytes=sizes[-1] if sizes else None,
        rate_before=rates[0] if len(rates) == 2 else None,
        rate=rates[-1] if rates else None,
        smaller=_smaller(found, text),
        zeros=found["zeros"][0] / 100 if "zeros" in found else None,
    )


def _connective(text: str, at: int) -> int:
    found = _CONNECTIVE.match(text, at)
    assert found is not None  # every part of it may be missing
    return found.end()


def _quantity(text: str, at: int) -> tuple[str, float, int]:
    for kind, pattern in _PATTERNS.items():
        if match := pattern.match(text, at):
            value = float(re.sub("[,_]", "", match["number"]))
            unit = (match.groupdict().get("unit") or "").lower()
            if kind == "count" and unit:
                value *= _COUNTS["k" if unit == "thousand" else unit[0]]
            elif kind == "size":
                value *= _SIZES.get(unit, 1)
            if value <= 0 or (kind in ("zeros", "share") and value >= 100):
                raise SpratError(
                    f"{match[0].strip()!r} in {text!r} cannot be: more than 0, and less than 100 %"
                )
            return kind, value, match.end()
    raise SpratError(f"{text[at:].strip()!r} is not understood in a claim; understood are {EXAMPLES}")


def _smaller(found: dict[str, list[float]], text: str) -> float | None:
    if "factor" in found:
        if found["factor"][0] < 1:
            raise SpratError(f"{text!r} is larger, not smaller")
        return found["factor"][0]
    return 100 / (100 - found["share"][0]) if "share" in found else None
