"""What is read from task files, and what is refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from task_files import rows, write

from sprat.errors import ProofError
from sprat.prove.tasks.files import FORMATS, Item, read, spread

LINES = {
    "arc": {
        "id": 1,
        "question": "Why?",
        "choices": {"text": ["so", "thus"], "label": ["1", "2"]},
        "answerKey": "2",
    },
    "piqa": {"goal": "Wash", "sol1": "soap", "sol2": "sand", "label": 0},
    "blimp": {"sentence_good": "He runs.", "sentence_bad": "He run.", "UID": "x"},
    "lambada": {"text": "He looked for signs"},
    "cloze": {"context": "He looked for", "continuation": "signs"},
    "choice": {"query": "Q: 1+1?\nA:", "choices": ["2", "3", "4"], "gold": 0},
}
ITEMS = {
    "arc": Item("Question: Why?\nAnswer:", ("so", "thus"), 1),
    "piqa": Item("Question: Wash\nAnswer:", ("soap", "sand"), 0),
    "blimp": Item("", ("He runs.", "He run."), 0),
    "lambada": Item("He looked for", ("signs",), 0),
    "cloze": Item("He looked for", ("signs",), 0),
    "choice": Item("Q: 1+1?\nA:", ("2", "3", "4"), 0),
}


@pytest.mark.parametrize("form", FORMATS)
def test_every_format(form, tmp_path):
    task = read(write(tmp_path / "x.jsonl", [LINES[form]]))
    assert (task.name, task.format, task.items, task.found) == ("x", form, (ITEMS[form],), 1)
    assert task.cloze == (form in ("lambada", "cloze"))
    assert task.chance == {"choice": 1 / 3, "lambada": 0, "cloze": 0}.get(form, 0.5)
    assert len(read(write(tmp_path / "y.jsonl", rows(form))).items) == 30


def test_items_are_spread_over_the_file(tmp_path):
    path = write(tmp_path / "x.jsonl", rows("blimp"))
    whole = read(path)
    part = read(path, 4)
    assert (len(part.items), part.found) == (4, 30)
    assert [whole.items.index(item) for item in part.items] == [0, 10, 19, 29]
    assert read(path, 99) == whole
    assert part.sha256 == whole.sha256


@given(st.integers(1, 500), st.integers(1, 500))
def test_spread_never_takes_an_item_twice(count, items):
    chosen = spread(count, items)
    assert len(set(chosen)) == len(chosen) == min(count, items)
    assert chosen == sorted(chosen)
    assert 0 <= chosen[0] <= chosen[-1] < count


def test_blank_lines_bom_and_windows_line_ends(tmp_path):
    path = tmp_path / "x.jsonl"
    line = json.dumps(LINES["piqa"])
    path.write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n\r\n{line}\r\n".encode())
    assert len(read(path).items) == 2


def refused(tmp_path, content: bytes | str) -> str:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ProofError) as error:
        read(path)
    return str(error.value)


@pytest.mark.parametrize("content", ["", "\n \n\t\n", "\ufeff"])
def test_an_empty_file(content, tmp_path):
    assert "bad.jsonl is empty: a task needs at least one question" in refused(tmp_path, content)


def test_what_is_no_json_names_its_line(tmp_path):
    good = json.dumps(LINES["blimp"])
    said = refused(tmp_path, f"{good}\n\n{good}\n{{'goal': 1}}\n")
    assert "bad.jsonl, line 4: no JSON (Expecting property name" in said
    assert "line 1: no JSON" in refused(tmp_path, "[" * 100_000)
    assert "line 2: list, not a JSON object" in refused(tmp_path, f"{good}\n[1]\n")
    assert "line 2: byte 0xff is not UTF-8" in refused(tmp_path, good.encode() + b"\n\xff\n")


def test_missing_fields_are_named_with_what_is_expected(tmp_path):
    good = json.dumps(LINES["piqa"])
    partly = json.dumps({"goal": "x", "sol1": "y", "label": 0})
    expected = "no field 'sol2'; a line of piqa has goal, sol1, sol2, label"
    assert f"line 1: {expected}" in refused(tmp_path, partly)
    assert f"line 2: {expected}" in refused(tmp_path, f"{good}\n{partly}\n")
    said = refused(tmp_path, '{"prompt": "x"}')
    assert "its fields (prompt) are no known format's" in said
    assert all(form in said for form in FORMATS)
    assert "its fields (none)" in refused(tmp_path, "{}")


@pytest.mark.parametrize(
    ("form", "change", "message"),
    [
        ("arc", {"answerKey": "C"}, "'answerKey' is 'C', which is none of the labels '1', '2'"),
        ("arc", {"choices": ["so", "thus"]}, "'choices' must be an object with the lists 'text' and 'label'"),
        (
            "arc",
            {"choices": {"text": ["a", "b"], "label": ["1"]}},
            "'choices.label' must be a list as long as",
        ),
        (
            "arc",
            {"choices": {"text": ["a"], "label": ["1"]}},
            "'choices.text' must be a list of at least two",
        ),
        ("arc", {"choices": {"text": ["a", 2], "label": ["1", "2"]}}, "'choices.text' must be a text"),
        ("piqa", {"label": -1}, "'label' must be the number of the right answer, 0 to 1, not -1"),
        ("piqa", {"label": True}, "'label' must be the number of the right answer, 0 to 1, not True"),
        ("piqa", {"sol1": " "}, "'sol1' must be a text that is not empty, not ' '"),
        ("blimp", {"sentence_bad": None}, "'sentence_bad' must be a text"),
        ("lambada", {"text": "He looked for "}, "'text' ends with a space"),
        ("cloze", {"continuation": ""}, "'continuation' must be a text that is not empty"),
        ("choice", {"gold": 3}, "'gold' must be the number of the right answer, 0 to 2, not 3"),
        ("choice", {"choices": "abc"}, "'choices' must be a list of at least two texts"),
    ],
)
def test_values_that_cannot_be(form, change, message, tmp_path):
    lines = [LINES[form], LINES[form] | change]
    said = refused(tmp_path, "\n".join(json.dumps(line) for line in lines))
    assert f"line 2: {message}" in said


def test_a_file_that_is_not_there(tmp_path):
    write(tmp_path / "arc_easy.jsonl", [LINES["arc"]])
    with pytest.raises(
        ProofError, match=r"arc_easi.jsonl' \(did you mean 'arc_easy.jsonl'\?\): No such file"
    ):
        read(tmp_path / "arc_easi.jsonl")
    with pytest.raises(ProofError, match="cannot read the task file"):
        read(tmp_path)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(list(FORMATS)),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "label"]), inner)
        ),
        max_leaves=6,
    ),
    st.data(),
)
def test_any_value_is_read_or_refused(form, value, data):
    """Whatever stands in a field, there is an item whose answer exists or a `ProofError`."""
    import tempfile
    from pathlib import Path

    field = data.draw(st.sampled_from(FORMATS[form][0]))
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "x.jsonl", [LINES[form] | {field: value}])
        try:
            [item] = read(path).items
        except ProofError as error:
            assert "line 1" in str(error)
        else:
            assert all(isinstance(choice, str) and choice for choice in item.choices)
            assert 0 <= item.gold < len(item.choices)
