"""`run_tasks`: the entries of a proof, from files, and what is refused before a model is asked."""

import json
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bench.techniques import _asking
from task_files import rows, write
from transformers import AutoModelForCausalLM, AutoTokenizer

import sprat
from sprat.errors import ProofError
from sprat.prove.tasks.local import Outcome
from sprat.prove.tasks.run import _perplexities, read_tasks, run_tasks
from sprat.run.model import to_torch
from sprat.source.load import load
from tiny_model import write_file


@pytest.fixture(scope="module")
def source(tiny):
    model = AutoModelForCausalLM.from_pretrained(tiny.folder, dtype=torch.float32).eval()
    return SimpleNamespace(model=model, tokenizer=AutoTokenizer.from_pretrained(tiny.folder))


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    return [
        str(write(folder / f"{form}.jsonl", rows(form, 40))) for form in ("arc", "piqa", "blimp", "lambada")
    ]


@pytest.fixture(scope="module")
def entries(tiny, source, names):
    return run_tasks(source, sprat.open(tiny.file), names)


def test_an_entry_a_task_in_order(entries, names):
    assert json.loads(json.dumps(entries, allow_nan=False)) == entries
    assert [entry["name"] for entry in entries] == ["arc", "piqa", "blimp", "lambada"]
    for entry, name in zip(entries, names, strict=True):
        assert entry["items"] == entry["source"]["items"] == 40
        assert entry["source"]["path"] == name
        assert entry["difference"]["value"] == pytest.approx(
            entry["accuracy_compressed"]["value"] - entry["accuracy_original"]["value"]
        )
        flips = entry["flips"]
        assert entry["difference"]["value"] == pytest.approx((flips["won"] - flips["lost"]) / 40)
        assert ("acc_norm" in entry) == (entry["name"] in ("arc", "piqa"))
        assert ("perplexity_ratio" in entry) == (entry["name"] == "lambada")
    assert entries[0]["chance"] == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert sum(e["flips"]["lost"] + e["flips"]["won"] for e in entries) > 0


def nll(source, context, whole):
    """Nats: −log p(what `whole` has behind `context`), from whole logits."""
    ids = source.tokenizer(whole, add_special_tokens=False)["input_ids"]
    start = len(source.tokenizer(context, add_special_tokens=False)["input_ids"]) if context else 0
    ids, start = ([0, *ids], 1) if not context else (ids, start)
    with torch.no_grad():
        rows = source.model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
    return -sum(float(rows[i - 1, ids[i]]) for i in range(start, len(ids)))


def test_figures_against_whole_forward_passes(source, entries):
    """LAMBADA's perplexity and BLiMP's accuracy, by hand, of the original."""
    last = [nll(source, row["text"].rpartition(" ")[0], row["text"]) for row in rows("lambada", 40)]
    assert entries[3]["perplexity_original"]["value"] == pytest.approx(np.exp(np.mean(last)), rel=1e-4)
    ratio = entries[3]["perplexity_compressed"]["value"] / entries[3]["perplexity_original"]["value"]
    assert entries[3]["perplexity_ratio"]["value"] == pytest.approx(ratio)
    right = [
        nll(source, "", " " + row["sentence_good"]) < nll(source, "", " " + row["sentence_bad"])
        for row in rows("blimp", 40)
    ]
    assert entries[2]["accuracy_original"]["value"] == pytest.approx(np.mean(right))


def test_a_model_that_is_no_file_is_asked_the_same(tiny, source, names, tmp_path, monkeypatch):
    """What bench.techniques asks of other tools' models: through torch, beside the original's remembered answers."""
    monkeypatch.setenv("SPRAT_CACHE", str(tmp_path))
    artifact = sprat.open(tiny.file)
    known = load(tiny.folder, dtype=torch.float32)
    found = _asking(known, read_tasks(names))(to_torch(artifact, "float32"))["tasks"]
    wanted = run_tasks(source, artifact, names, engine="torch")
    for entry, same in zip(found, wanted, strict=True):
        for figure in ("accuracy_original", "accuracy_compressed", "flips", "mcnemar_p"):
            assert entry[figure] == same[figure]
    again = _asking(known, read_tasks(names))(known.model)["tasks"]
    assert all(entry["remembered"] and entry["flips"] == {"lost": 0, "won": 0} for entry in again)
    assert _asking(known, read_tasks([]))(known.model) == {}


def test_the_files_own_model_flips_nothing(tiny, names):
    artifact = sprat.open(tiny.file)
    same = SimpleNamespace(model=to_torch(artifact), tokenizer=AutoTokenizer.from_pretrained(tiny.folder))
    for entry in run_tasks(same, artifact, names, items=25, engine="torch"):
        assert entry["items"] == 25
        assert entry["flips"] == {"lost": 0, "won": 0}
        assert entry["mcnemar_p"] == 1
        assert entry["difference"]["low"] < 0 == entry["difference"]["value"] < entry["difference"]["high"]


def test_a_coarse_file_loses_answers(tiny, source, tmp_path):
    """Questions that the original answers right, every one: a file of few levels must lose some."""
    lines = []
    for row in rows("blimp", 40):
        good, bad = sorted(row.values(), key=lambda sentence: nll(source, "", " " + sentence))
        lines.append({"sentence_good": good, "sentence_bad": bad})
    coarse = sprat.open(write_file(tiny.folder, tmp_path / "coarse.sprat", steps=2))
    [entry] = run_tasks(source, coarse, [str(write(tmp_path / "sure.jsonl", lines))])
    assert entry["accuracy_original"]["value"] == 1
    assert entry["flips"]["lost"] > 0 == entry["flips"]["won"]
    assert entry["accuracy_compressed"]["value"] == 1 - entry["flips"]["lost"] / 40


def test_one_question_has_no_interval_of_perplexity(tiny, source, tmp_path):
    path = write(tmp_path / "one.jsonl", rows("cloze", 1))
    [entry] = run_tasks(source, sprat.open(tiny.file), [str(path)])
    assert json.dumps(entry, allow_nan=False)
    assert entry["perplexity_ratio"]["low"] is entry["perplexity_ratio"]["high"] is None
    assert entry["accuracy_original"]["high"] > entry["accuracy_original"]["low"]


def test_progress_names_task_and_side(tiny, source, names):
    seen = []
    run_tasks(source, sprat.open(tiny.file), names[:1], 5, progress=lambda *said: seen.append(said))
    assert list(dict.fromkeys(stage for stage, _, _ in seen)) == ["arc: original", "arc: compressed"]
    assert seen[-1][1] == seen[-1][2]


def test_bad_input_is_refused_before_any_model_is_asked(names, tmp_path, monkeypatch):
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ProofError, match=r"empty\.jsonl is empty"):
        run_tasks(None, None, [names[0], str(tmp_path / "empty.jsonl")])
    with pytest.raises(ProofError, match="at least one item, not 0"):
        run_tasks(None, None, names, 0)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "sprat.prove.tasks.harness", raising=False)
    with pytest.raises(ProofError, match=r"need lm-evaluation-harness .*sprat\[eval\]"):
        run_tasks(None, None, [names[0], "arc_easy"])


def test_a_perplexity_that_no_number_holds_is_left_out():
    """A continuation of hundreds of tokens: JSON has no infinity, and the proof would be lost with it."""
    right = np.array([False, True])
    usual, long = (Outcome(right, right, np.array(nats)) for nats in ([3.0, 5.0], [700.0, 900.0]))
    assert _perplexities(usual, usual, 0)["perplexity_original"]["value"] == pytest.approx(np.exp(4))
    with warnings.catch_warnings(action="error"):
        assert _perplexities(usual, long, 0) == {}
