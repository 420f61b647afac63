"""`RememberedScorer`: what was asked once is not asked again, and nothing else is taken for it."""

import numpy as np
import pytest
from task_files import rows, write

import sprat
from sprat.prove.replay import replay
from sprat.prove.tasks import remembered
from sprat.prove.tasks.remembered import RememberedScorer, was_remembered
from sprat.prove.tasks.requests import Answer, Request
from sprat.prove.tasks.torch_scorer import TorchScorer
from tiny_model import write_file

ASKED = [Request((1, 2), (3,)), Request((1,), (2, 3)), Request((4, 5, 6), (7, 8))]


class Oracle:
    """Answers that depend on the tokens alone; counts how often it is asked."""

    context, words, calls = 64, None, 0

    def score(self, requests, stage="", progress=None):
        self.calls += 1
        return [Answer(-sum(r.ids) / 7 - len(r.continuation), sum(r.ids) % 2 == 0) for r in requests]

    def write(self, ids, most, stop):
        self.calls += 1
        return [1]


def scorer(oracle, root, model="m", dtype="torch.float32"):
    return RememberedScorer(oracle, model, dtype, root)


def test_the_second_time_is_from_disk_and_the_same_bit_for_bit(tmp_path):
    oracle = Oracle()
    first, second = scorer(oracle, tmp_path), scorer(oracle, tmp_path)
    assert first.score(ASKED) == second.score(ASKED) == Oracle().score(ASKED)
    assert oracle.calls == 1
    assert not was_remembered(first) and was_remembered(second) and not was_remembered(oracle)
    assert all(type(a.logprob) is float and type(a.greedy) is bool for a in second.score(ASKED))
    second.write([1], 1, lambda written: True)
    assert not was_remembered(second)


def test_other_questions_models_types_and_versions_are_asked_anew(tmp_path, monkeypatch):
    oracle = Oracle()
    scorer(oracle, tmp_path).score(ASKED)
    cut = [Request((1,), (2, 3)), Request((1, 2), (3,)), ASKED[2]]
    moved = [Request((1, 2, 3), (3,)), *ASKED[1:]]
    for questions in (ASKED[:2], cut, moved, [], [Request((12,), (3,)), *ASKED[1:]]):
        before = oracle.calls
        assert scorer(oracle, tmp_path).score(questions) == Oracle().score(questions)
        assert oracle.calls == before + 1
    for other in ({"model": "n"}, {"dtype": "torch.bfloat16"}):
        before = oracle.calls
        scorer(oracle, tmp_path, **other).score(ASKED)
        assert oracle.calls == before + 1
    monkeypatch.setattr(remembered, "VERSION", 2)
    before = oracle.calls
    scorer(oracle, tmp_path).score(ASKED)
    assert oracle.calls == before + 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "longer"])
def test_a_damaged_file_is_made_again(tmp_path, damage):
    oracle = Oracle()
    scorer(oracle, tmp_path).score(ASKED)
    [path] = tmp_path.glob("*.answers")
    raw = bytearray(path.read_bytes())
    flipped = raw.copy()
    flipped[40] ^= 1
    path.write_bytes({"cut": raw[:-1], "flipped": flipped, "empty": b"", "longer": raw + b"\0" * 9}[damage])
    assert scorer(oracle, tmp_path).score(ASKED) == Oracle().score(ASKED)
    assert oracle.calls == 2
    assert path.read_bytes() == raw
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_second_file_and_a_replay_do_not_ask_the_original_again(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("SPRAT_CACHE", str(tmp_path / "cache"))
    asked = []
    score = TorchScorer.score

    def counted(self, requests, *args):
        asked.append(len(requests))
        return score(self, requests, *args)

    monkeypatch.setattr(TorchScorer, "score", counted)
    names = [str(write(tmp_path / f"{form}.jsonl", rows(form, 20))) for form in ("piqa", "lambada")]
    other = write_file(tiny.folder, tmp_path / "other.sprat", steps=3)

    def prove(file, against=tiny.folder):
        return sprat.prove(file, against, tiny.text, 640, 32, tasks=names)

    first, second = prove(tiny.file), prove(other)
    assert asked == [40, 20]
    assert [task["remembered"] for task in [*first.tasks, *second.tasks]] == [False, False, True, True]
    for a, b in zip(first.tasks, second.tasks, strict=True):
        assert a["accuracy_original"] == b["accuracy_original"]
    first.save(tmp_path / "proof")
    again = replay(tmp_path / "proof")
    assert again.holds and len(asked) == 2
    assert all(task["remembered"] for task in again.proof.tasks)
    # A model that is handed in may hold other weights than its hash says.
    assert not any(task["remembered"] for task in prove(tiny.file, sprat.load(tiny.folder)).tasks)
    assert len(asked) == 4


def test_answers_survive_numbers_of_every_size(tmp_path):
    class Extreme(Oracle):
        def score(self, requests, stage="", progress=None):
            return [Answer(x, True) for x in (-1e-300, float(np.nextafter(-1.0, 0)), -1e30)]

    first, second = scorer(Extreme(), tmp_path), scorer(Extreme(), tmp_path)
    assert first.score(ASKED) == second.score(ASKED)
    assert was_remembered(second)
