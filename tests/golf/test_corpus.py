"""Documents: split, deduplicated, never in both halves, refused where they are none."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import documents, write

from sprat.errors import SourceError
from sprat.golf import corpus, words


def test_the_split_depends_on_the_documents_alone(tmp_path):
    files = write(tmp_path, documents())
    first, second = corpus.read(files, 0.2), corpus.read(files[::-1], 0.2)
    assert set(first.train) == set(second.train) and first.validation_hash == second.validation_hash
    assert not set(first.train) & set(first.validation)
    assert len(first.train) + len(first.validation) == 40 and 2 <= len(first.validation) <= 16
    without = [file for file in files if file.read_text().strip() in first.train]
    assert set(corpus.read([*without[1:], *(f for f in files if f not in without)], 0.2).validation) == set(
        first.validation
    )


def test_a_document_that_comes_twice_is_learnt_once(tmp_path):
    texts = documents(20)
    found = corpus.read(write(tmp_path, [*texts, texts[3], texts[3] + "\n"]), 0.2)
    assert found.dropped == 2 and len(found.train) + len(found.validation) == 20


def test_validation_inside_the_training_text_is_refused_by_name(tmp_path):
    texts = documents(6)
    held = write(tmp_path, ["A new text.", texts[2][40:300].replace(" ", "\n")], "held")
    with pytest.raises(
        SourceError, match=r"1 of 2 validation documents are inside the training text: '"
    ) as error:
        corpus.read(write(tmp_path, texts), 0.2, held)
    assert " ".join(texts[2][40:300].split())[:40] in str(error.value)
    assert corpus.read(write(tmp_path, texts), 0.2, held[:1]).validation == ("A new text.",)


def test_marked_documents_are_told_apart_and_long_texts_are_cut(tmp_path):
    (tmp_path / "marked.txt").write_text("one<|endoftext|> two <|endoftext|>three")
    assert corpus.documents([tmp_path / "marked.txt"]) == ["one", "two", "three"]
    paragraphs = [f"{i} " + "word " * 200 for i in range(60)]
    (tmp_path / "long.txt").write_text("\n\n".join(paragraphs))
    pieces = corpus.documents([tmp_path / "long.txt"])
    assert len(pieces) > 2 and all(len(piece) >= corpus.PIECE for piece in pieces[:-1])
    assert "\n\n".join(pieces).split() == " ".join(paragraphs).split()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b" \n \n", "is empty"),
        (b"\x89PNG\r\n\x1a\n\0\0", "not UTF-8"),
        (b"text\0text", "is binary"),
        (b"only one document", "the text has 1 documents"),
    ],
)
def test_what_is_no_corpus_is_refused(tmp_path, data, said):
    (tmp_path / "t.txt").write_bytes(data)
    with pytest.raises(SourceError, match=said):
        corpus.read([tmp_path / "t.txt"], 0.2)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"no text file .*absent\.txt"):
        corpus.read([tmp_path / "absent.txt"], 0.2)


def test_the_tokenizer_keeps_its_size_and_opens_texts_with_its_mark():
    tokenizer = words.learn(documents(), 320)
    assert tokenizer.get_vocab_size() == 320 and tokenizer.token_to_id(words.MARK) == 0
    assert tokenizer.encode("The cat").ids == [0, *words.encode(tokenizer, "The cat")]
    ids = words.stream(tokenizer, ["The cat", "sees"])
    assert [tokenizer.decode([i], skip_special_tokens=False) for i in ids if i == 0] == [words.MARK] * 3
    assert tokenizer.decode(ids.tolist()) == "The catsees"


@given(st.text(max_size=60), st.text(max_size=20))
@settings(max_examples=50, deadline=None)
def test_any_text_comes_back_from_its_tokens(a, b):
    text = a + words.MARK + b
    ids = words.encode(TOKENIZER, text)
    assert TOKENIZER.decode(ids) == text and 0 not in ids


TOKENIZER = words.learn(documents(5), 300)
