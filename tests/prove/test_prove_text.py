"""Evaluation text: contexts, exact bytes, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from sprat.errors import ProofError
from sprat.prove import overlap
from sprat.prove.text import Text, cut, excerpts, read


def byte_tokenizer() -> Tokenizer:
    """One token a byte: characters outside ASCII are several tokens."""
    vocabulary = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


TOKENIZER = byte_tokenizer()


def text(content: str) -> Text:
    return Text(content, "text", len(content.encode()), "")


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab é漢🐟\n", min_size=40, max_size=200), st.integers(0, 1))
def test_bytes_are_those_of_the_scored_tokens(content, prefix):
    try:
        contexts = cut(TOKENIZER, text(content), length=16, skip=7, tokens=10**6, prefix=[0] * prefix)
    except ProofError:
        return  # no window of this text begins and ends between characters
    assert contexts.ids.shape[1] == 16
    # A byte-level token is a byte, so the scored bytes are the scored tokens.
    assert (contexts.bytes_scored == contexts.scored).all()
    for row in contexts.ids:
        scored = TOKENIZER.decode(row[8:].tolist(), skip_special_tokens=False)
        assert "�" not in scored
        assert scored in content


def test_contexts_are_spread_evenly_and_do_not_overlap():
    content = "".join(f"{i:08d}" for i in range(1000))
    contexts = cut(TOKENIZER, text(content), length=80, skip=40, tokens=400)
    starts = [int(TOKENIZER.decode(row[:8].tolist())) for row in contexts.ids]
    assert starts == [0, 250, 500, 740, 990]


def test_a_long_text_is_read_in_excerpts_that_start_at_words():
    content = " ".join(f"word{i}" for i in range(200_000))
    pieces = excerpts(content, count=4, length=100)
    assert len(pieces) == 4
    assert sum(map(len, pieces)) < 5000
    assert all(piece.strip().startswith("word") for piece in pieces)
    contexts = cut(TOKENIZER, text(content), length=100, skip=50, tokens=400)
    assert len(contexts.ids) == 4


def test_a_special_prefix_opens_every_context():
    contexts = cut(TOKENIZER, text("x" * 100), length=10, skip=5, tokens=1000, prefix=[7, 9])
    assert contexts.ids.shape == (12, 10)
    assert (contexts.ids[:, :2] == [7, 9]).all()
    assert (contexts.bytes_scored == 4).all()


def test_too_short_a_text_says_how_much_it_lacks():
    with pytest.raises(ProofError, match="it has 5 tokens and one context needs 512"):
        cut(TOKENIZER, text("hello"), length=512, skip=256, tokens=20480)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        ("caf\u00e9".encode("latin1"), "not UTF-8 text: byte 0xe9 at offset 3"),
        ("text".encode("utf-16"), "not UTF-8"),
    ],
)
def test_unreadable_text_is_refused(tmp_path, raw, message):
    path = tmp_path / "text.txt"
    path.write_bytes(raw)
    with pytest.raises(ProofError, match=message):
        read(path)


def test_missing_text_is_refused(tmp_path):
    with pytest.raises(ProofError, match="there is no text file"):
        read(tmp_path / "absent.txt")
    with pytest.raises(ProofError, match="cannot read the text"):
        read(tmp_path)


def test_overlap_finds_how_much_was_seen():
    random = np.random.default_rng(0)
    words = [f"w{i}" for i in random.integers(0, 5000, size=4000)]
    seen, unseen = " ".join(words[:2000]), " ".join(words[2000:])
    sketch = overlap.sketch(seen)
    assert len(sketch) < 700
    assert overlap.shared(sketch, seen.upper()) == 1
    assert overlap.shared(sketch, unseen) == 0
    half = overlap.shared(sketch, " ".join(words[1000:3000]))
    assert 0.3 < half < 0.7
    assert overlap.shared(overlap.sketch("too few"), seen) == 0
    with pytest.raises(ProofError, match="sketch"):
        overlap.shared("not base64!", seen)
