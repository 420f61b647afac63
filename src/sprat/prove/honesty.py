"""What a proof says against itself: too little text, text seen in calibration, models that cannot be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sprat.prove import overlap
from sprat.prove.text import Contexts, Text

if TYPE_CHECKING:
    from sprat.prove.intervals import Estimate
    from sprat.run.tokenizer import TextTokenizer

#: Below this many clusters an interval of 95 % is a rough guess: six already can fail to hold the true figure between
#: them with probability 2 · ½⁶ = 3 %.
FEW = 8
#: Below this KL the noise of a 16-bit type (about 0.001) is no longer small beside it.
_SMALL = 0.02
#: Pieces of a long text in which two tokenizers are compared.
PIECES = 10


def different_tokens(
    mine: TextTokenizer, theirs: TextTokenizer, texts: Sequence[Text], sample: int = 100_000
) -> str:
    """Why KL cannot be had where two tokenizers cut a text differently; else empty.

    mine: the file's, theirs: the original's. KL compares distributions over the same tokens. sample: characters that
    are looked at, from all over the texts.
    """
    for piece in (piece for text in texts for piece in _pieces(text.content, sample // len(texts))):
        a, b = mine.encode(piece, special=False), theirs.encode(piece, special=False)
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            return (
                "the file and the original cut text into different tokens "
                f"({mine.decode(a[at : at + 3])!r} against {theirs.decode(b[at : at + 3])!r}). KL and same-top compare "
                "distributions over the same tokens, so they cannot be had, and bits per byte stand alone: is this "
                "the model that the file was made from?"
            )
    return ""


def _pieces(content: str, sample: int) -> list[str]:
    """All of a text, or PIECES of it at even distances, `sample` characters together."""
    if len(content) <= sample:
        return [content]
    size = max(1, sample // PIECES)
    starts = (i * (len(content) - size) // (PIECES - 1) for i in range(PIECES))
    return [content[start : start + size] for start in starts]


def calibration_overlap(provenance: dict[str, Any], texts: Sequence[Text]) -> dict[str, Any]:
    """Whether the evaluation text was seen in calibration or in healing, as far as the file's provenance can tell.

    Reads provenance["calibration"] and `healings`: {"source": "self" or a name, "sha256": [of each file], "sketch":
    overlap.sketch}. overlap: the larger of two estimated shares, that of such a text which is in the evaluation text
    and that of the evaluation text which is in it; of all of them the largest; None: unknown.
    """
    said = [provenance.get("calibration") or {}, *healings(provenance)]
    origins = dict.fromkeys(str(one.get("source", "unknown")) for one in said if one)
    found = [_seen(one, texts) for one in said]
    known = [share for share in found if share is not None]
    # One that is in the text is bad enough; none is only known of all.
    unknown = len(known) < len(found) and not any(known)
    return {"source": ", ".join(origins) or "unknown", "overlap": None if unknown else max(known)}


def healings(provenance: dict[str, Any]) -> list[dict[str, Any]]:
    """What a file says of each of its healings, in their order; in older files one stands without a list."""
    said = provenance.get("heal") or []
    return [said] if isinstance(said, dict) else list(said)


def _beyond(config: dict[str, Any], context: int) -> list[str]:
    """A warning where contexts are longer than what the model of `config` was made for."""
    positions = config.get("text_config", config).get("max_position_embeddings")
    if not isinstance(positions, int) or context <= positions:
        return []
    return [
        f"contexts of {context:,} tokens are longer than the {positions:,} that the model was made for: what both do "
        f"behind those is scored too (--context {positions})"
    ]


def _seen(said: dict[str, Any], texts: Sequence[Text]) -> float | None:
    if said.get("source") == "self":
        return 0.0
    if {text.sha256 for text in texts} & set(said.get("sha256", [])):
        return 1.0
    sketch = said.get("sketch")
    if not isinstance(sketch, str) or not sketch:  # an empty one, of under eight words, tells nothing
        return None
    content = "\n".join(text.content for text in texts)
    return round(max(share(sketch, content) for share in (overlap.shared, overlap.seen)), 4)


def warnings(
    config: dict[str, Any],
    contexts: Contexts,
    asked: int,
    dtype: str,
    kl: Estimate | None,
    seen: dict[str, Any],
) -> list[str]:
    """What a reader of the figures should know. config: the model's; asked: for how many contexts; seen:
    `calibration_overlap`."""
    said = _beyond(config, contexts.ids.shape[1])
    clusters, unit = len(np.unique(contexts.clusters)), contexts.unit
    if len(contexts.ids) < asked:
        said.append(f"the text holds {len(contexts.ids)} contexts of the {asked} that were asked for")
    if clusters < FEW:
        said.append(
            f"{clusters} {unit}{'s' if clusters != 1 else ''} are too few for intervals of 95 % to be trusted "
            f"(at least {FEW}): give more text"
        )
    if contexts.left_out:
        said.append(
            f"{contexts.left_out} of the documents that were read are too short to be scored behind the first "
            f"{contexts.skip + 1} tokens of a context: a smaller context or skip would count them"
        )
    if contexts.altered:
        said.append(
            f"the tokens do not give the text back ({contexts.altered}): bits per byte count the text's own bytes"
        )
    if dtype != "float32" and kl is not None and kl.value < _SMALL:
        said.append(f"the noise of {dtype} is a KL of about 0.001: use float32 for differences this small")
    if seen["overlap"] is None:
        said.append("the file does not say what it was calibrated on: overlap with this text is unknown")
    elif seen["overlap"] > 0:
        said.append(
            f"about {seen['overlap']:.0%} of the calibration text, or of this text, is in both: the figures flatter "
            "the file"
        )
    return said
