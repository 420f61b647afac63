"""Documents: split, deduplicated, never in both halves, refused where they are none."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import documents, recipe, write

from sprat.errors import SourceError
from sprat.golf import corpus, words
from sprat.golf.overlap import inside, plain


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


def test_validation_around_a_training_document_is_refused_by_name(tmp_path):
    texts = documents(6)
    short = "Once upon a time.\n"
    held = write(
        tmp_path, [f"A line.\n{texts[2].replace('. ', '.  ')}", f"Another. {short} And more."], "held"
    )
    train = write(tmp_path, [*texts, short])
    with pytest.raises(
        SourceError, match=r"1 of 7 training documents are inside the validation text: 'Story 2\."
    ):
        corpus.read(train, 0.2, held)
    # A few words are everywhere by chance.
    assert len(corpus.read(train, 0.2, held[1:]).train) == 7 and len(short) < corpus.SHORTEST
    cut = texts[2][: corpus.SHORTEST]
    for words_of, said in ((cut, True), (cut[:-1], False)):
        (tmp_path / "cut.txt").write_text(words_of)
        (tmp_path / "around.txt").write_text(f"Begin.\n{texts[2]}")
        given = [tmp_path / "cut.txt"], 0.2, [tmp_path / "around.txt"]
        if said:
            with pytest.raises(SourceError, match="inside the validation text"):
                corpus.read(*given)
        else:
            assert corpus.read(*given).train == (words_of.strip(),)


def test_what_is_learnt_and_stands_in_a_document_that_is_held_out_is_not_learnt(tmp_path):
    texts = documents(20)
    kept = [text for text in texts if not corpus.held_out(text, 0.2)]
    around = next(t for i in range(99) if corpus.held_out(t := f"{i}\n{kept[0]}\nThe end.", 0.2))
    found = corpus.read(write(tmp_path, [*texts, around]), 0.2)
    assert set(found.train) == set(kept[1:]) and around in found.validation and found.dropped == 1


@given(
    st.lists(st.text("ab \n", max_size=80), max_size=6), st.lists(st.text("ab \n", max_size=40), max_size=6)
)
@settings(max_examples=100, deadline=None)
def test_documents_inside_others_are_found_as_by_looking_everywhere(outer, inner):
    inner = list(dict.fromkeys([*inner, *(text[3:-2] for text in outer), *(text[:40] for text in outer)]))
    wholes = [plain(text) for text in outer]
    expected = [text for text in inner if any(plain(text) in whole for whole in wholes)]
    assert inside(outer, inner) == expected


def test_a_recipe_may_name_its_text(tmp_path, monkeypatch):
    write(tmp_path, documents(6))
    write(tmp_path, ["A text that is scored."], "held")
    monkeypatch.chdir(tmp_path)
    named = recipe(text=["story-*.txt"], validation_text="held-0.txt")
    assert corpus.of(named) == corpus.read(["story-*.txt"], 0.2, ["held-0.txt"])
    assert len(corpus.of(named, ["story-1.txt"]).train) == 1
    # Where a text lies says nothing of what is trained.
    assert named.to_dict() == recipe().to_dict()
    with pytest.raises(SourceError, match=r"give --text FILE, or the recipe a key `text`"):
        corpus.of(recipe())
    rows = [{"text": f"row {i}"} for i in range(90)]
    streamed = SimpleNamespace(load_dataset=lambda name, split, streaming: iter(rows))
    monkeypatch.setitem(sys.modules, "datasets", streamed)
    found = corpus.of(recipe(stream=60, validation=0.5, text="hub:some/set"))
    assert len(found.train) + len(found.validation) == 12  # of 5 characters each


def test_no_piece_of_a_long_text_is_held_out_while_another_is_learnt(tmp_path):
    stories = ["\n\n".join(f"{n} {i} " + "word " * 200 for i in range(60)) for n in "abcdefgh"]
    found = corpus.read(write(tmp_path, stories), 0.3)
    assert sorted([*found.train, *found.validation]) == sorted(story.strip() for story in stories)
    (tmp_path / "one.txt").write_text(stories[0])
    with pytest.raises(SourceError, match="the text has 1 documents"):
        corpus.read([tmp_path / "one.txt"], 0.3)


def test_what_is_held_out_and_stands_in_a_document_that_is_learnt_is_not_scored(tmp_path):
    texts = documents(20)
    held = [text for text in texts if corpus.held_out(text, 0.2)]
    kept = next(text for text in texts if not corpus.held_out(text, 0.2))
    around = next(t for i in range(99) if not corpus.held_out(t := f"{i}\n{held[0]}\n{kept}", 0.2))
    found = corpus.read(write(tmp_path, [*texts, around]), 0.2)
    assert set(found.validation) == set(held[1:]) and found.dropped == 1


def test_a_package_is_a_text(tmp_path, monkeypatch):
    for name, text in (("data/b.txt", "two"), ("a.txt", "one"), ("data/c.csv", "no")):
        (tmp_path / "site" / "prose" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / "prose" / name).write_text(text)
    (tmp_path / "site" / "prose" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "site" / "mute").mkdir()
    (tmp_path / "site" / "mute" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert corpus.documents(["package:prose"]) == ["one", "two"]
    for name, said in (
        ("proze", r"no installed package 'proze' \(did you mean 'prose'\?\)"),
        ("prose.data", "no installed package 'prose.data'"),
        ("", "no installed package ''"),
        ("mute", "the package mute holds no text"),
    ):
        with pytest.raises(SourceError, match=said):
            corpus.documents([f"package:{name}"])


def test_texts_are_files_folders_patterns_and_data_sets(tmp_path, monkeypatch):
    (tmp_path / "marked.txt").write_text("one<|endoftext|> two <|endoftext|>three")
    assert corpus.documents([tmp_path / "marked.txt"]) == ["one", "two", "three"]
    (tmp_path / "b").mkdir()
    for name, text in (("b/two.txt", "5"), ("b/one.txt", "4"), (".hidden", "no"), ("b/x.md", "6")):
        (tmp_path / name).write_text(text)
    assert corpus.documents([tmp_path]) == ["4", "5", "6", "one", "two", "three"]
    assert corpus.documents([f"{tmp_path}/**/*.txt"]) == ["4", "5", "one", "two", "three"]
    for absent, said in ((f"{tmp_path}/*.csv", "no file matches"), (f"{tmp_path}/none", "no text file")):
        with pytest.raises(SourceError, match=said):
            corpus.documents([absent])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="there is no file in"):
        corpus.documents([tmp_path / "empty"])
    rows = [{"text": f"row {i}"} for i in range(9)]
    streamed = SimpleNamespace(load_dataset=lambda name, split, streaming: iter(rows))
    monkeypatch.setitem(sys.modules, "datasets", streamed)
    assert corpus.documents(["hub:some/set"], 11) == ["row 0", "row 1", "row 2"]
    assert len(corpus.documents(["hub:some/set"])) == 9
    rows[:] = [{"content": "row"}]
    with pytest.raises(SourceError, match="hub:some/set has no column 'text'; it has content"):
        corpus.documents(["hub:some/set"])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SourceError, match="pip install datasets"):
        corpus.documents(["hub:some/set"])


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
