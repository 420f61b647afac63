"""Evaluation text: contexts, exact bytes, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from sprat.errors import ProofError
from sprat.prove import overlap
from sprat.prove.honesty import calibration_overlap
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
    assert (contexts.bytes_scored == contexts.mask.sum(axis=1)).all()
    for row, length, passage in zip(contexts.ids, contexts.lengths, contexts.passages, strict=True):
        scored = TOKENIZER.decode(row[8:length].tolist(), skip_special_tokens=False)
        assert "�" not in scored
        assert scored == passage[1]
        assert "".join(passage) in content


def test_contexts_are_spread_evenly_and_do_not_overlap():
    content = "".join(f"{i:08d}" for i in range(1000))
    contexts = cut(TOKENIZER, text(content), length=80, skip=40, tokens=400)
    starts = [int(TOKENIZER.decode(row[:8].tolist())) for row in contexts.ids]
    assert starts == [0, 250, 500, 740, 990]


def test_a_long_text_is_read_in_excerpts_that_start_at_words():
    content = " ".join(f"word{i}" for i in range(200_000))
    pieces = [piece for _, piece in excerpts([content], count=4, length=100)]
    assert len(pieces) == 4
    assert sum(map(len, pieces)) < 5000
    assert all(piece.strip().startswith("word") for piece in pieces)
    contexts = cut(TOKENIZER, text(content), length=100, skip=50, tokens=400)
    assert len(contexts.ids) == 4


def test_a_special_prefix_opens_every_context():
    contexts = cut(TOKENIZER, text("x" * 100), length=10, skip=5, tokens=1000, prefix=[7, 9])
    assert contexts.ids.shape == (12, 10)
    assert contexts.mask.all()
    assert (contexts.ids[:, :2] == [7, 9]).all()
    assert (contexts.bytes_scored == 4).all()


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        ("one\n\ntwo", ["one\n\ntwo"]),
        ("one\n\n\n\ntwo\n \n\t\n\n\nthree", ["one", "two", "three"]),
        ("one\f\n\n\n\ntwo\f \f", ["one", "\n\n\n\ntwo"]),
        ("<|endoftext|>one\ftwo<|endoftext|>three", ["one\ftwo", "three"]),
        ("one\r\n\r\n\r\n\r\ntwo", ["one\r", "two"]),
    ],
)
def test_documents_are_what_the_strongest_mark_separates(content, documents):
    assert text(content).documents() == documents


def test_no_context_spans_two_documents_and_each_knows_its_own():
    documents = ["a" * 100, "b" * 33, "c" * 9, "d" * 20]
    contexts = cut(TOKENIZER, text("\f".join(documents)), length=32, skip=15, tokens=10**6)
    words = [
        TOKENIZER.decode(row[:n].tolist()) for row, n in zip(contexts.ids, contexts.lengths, strict=True)
    ]
    assert words == ["a" * 32] * 3 + [
        "b" * 32,
        "d" * 20,
    ]  # what is left of a document is left out, a short one not
    assert contexts.documents.tolist() == [0, 0, 0, 1, 3]
    assert contexts.bytes_scored.tolist() == [16, 16, 16, 16, 4]
    assert contexts.mask.sum(axis=1).tolist() == [16, 16, 16, 16, 4]
    assert (contexts.left_out, contexts.unit, contexts.document_count) == (1, "document", 3)


def test_several_files_are_several_documents():
    contexts = cut(TOKENIZER, [text("a" * 64), text("b" * 64)], length=32, skip=15, tokens=10**6)
    assert contexts.clusters.tolist() == [0, 0, 1, 1]


def test_contexts_of_one_document_are_drawn_alone():
    contexts = cut(TOKENIZER, text("a" * 96), length=32, skip=15, tokens=10**6)
    assert (contexts.unit, contexts.clusters.tolist()) == ("context", [0, 1, 2])


def test_a_long_text_of_many_documents_is_read_evenly():
    documents = [f"{i:04d} " * 200 for i in range(1000)]
    contexts = cut(TOKENIZER, text("\f".join(documents)), length=50, skip=10, tokens=1000)
    assert len(contexts.ids) == 20
    assert len(set(contexts.documents.tolist())) == 20
    assert np.diff(contexts.documents).min() > 20


def test_a_special_token_in_the_text_counts_its_bytes():
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(["<eos>"])
    contexts = cut(tokenizer, text("ab<eos>" * 8), length=24, skip=11, tokens=24)
    assert contexts.altered == ""
    assert contexts.bytes_scored[0] == len("ab<eos>" * 4)


def test_tokens_that_do_not_give_the_text_back_are_told():
    tokenizer = byte_tokenizer()
    tokenizer.normalizer = normalizers.Lowercase()
    contexts = cut(tokenizer, text("all is well, Here Not so"), length=16, skip=3, tokens=16)
    assert contexts.altered == "'Here Not so' comes back as 'here not so'"
    assert cut(tokenizer, text("all is well and stays so"), length=16, skip=3, tokens=16).altered == ""


def test_too_short_a_text_says_how_much_it_lacks():
    with pytest.raises(
        ProofError, match="document has 5 tokens, and the first 257 of a context are not scored"
    ):
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
    assert overlap.seen(sketch, seen) == 1 and overlap.seen(sketch, unseen) == 0
    assert (
        overlap.shared(overlap.sketch("too few"), seen) == overlap.seen(overlap.sketch("too few"), seen) == 0
    )
    with pytest.raises(ProofError, match="sketch"):
        overlap.shared("not base64!", seen)


def test_a_short_text_that_was_seen_whole_is_told_though_it_is_little_of_the_calibration_text():
    random = np.random.default_rng(0)
    words = [f"w{i}" for i in random.integers(0, 5000, size=40_000)]
    sketch, part = overlap.sketch(" ".join(words)), " ".join(words[8000:16_000])
    unseen = " ".join(f"w{i}" for i in random.integers(0, 5000, size=8000))
    assert 0.1 < overlap.shared(sketch, part) < 0.35
    assert overlap.seen(sketch, part) == 1
    assert 0.3 < overlap.seen(sketch, f"{part} {unseen}") < 0.7
    said = {"calibration": {"source": "notes.txt", "sketch": sketch}}
    found = calibration_overlap(said, [Text(part, "part.txt", 0, "")])
    assert found == {"source": "notes.txt", "overlap": 1.0}
    # One run in both by chance is not the whole text.
    assert overlap.seen(sketch, " ".join(words[:9])) <= 2 / 8
    nothing = {"calibration": {"source": "short.txt", "sketch": overlap.sketch("too few")}}
    assert calibration_overlap(nothing, [Text(part, "part.txt", 0, "")])["overlap"] is None
