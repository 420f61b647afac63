"""Our scoring against lm-evaluation-harness's own: its task definitions and its own adapter, on a tiny model."""

import json

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="needs the eval extra")

import torch
from lm_eval import simple_evaluate, tasks
from lm_eval.models.huggingface import HFLM
from task_files import rows, write
from transformers import AutoModelForCausalLM, AutoTokenizer

import sprat
from sprat.errors import ProofError
from sprat.prove.tasks import files, harness
from sprat.prove.tasks.engine_scorer import EngineScorer
from sprat.prove.tasks.harness import Harness, HarnessModel
from sprat.prove.tasks.local import answer
from sprat.prove.tasks.requests import words, words_of_transformers
from sprat.prove.tasks.run import run_tasks
from sprat.prove.tasks.torch_scorer import TorchScorer
from sprat.run.native import NativeEngine
from sprat.run.tokenizer import open_tokenizer
from tiny_model import write_file

HERE = tasks.__path__[0]
#: format -> lm-eval's own definition of the task
DEFINITIONS = {
    "arc": "arc/arc_easy.yaml",
    "piqa": "piqa/piqa.yaml",
    "blimp": "blimp/_template_yaml",
    "lambada": "lambada/lambada_openai.yaml",
}


def definition(folder, form, name=None, **more):
    """lm-eval's task on a local file of ours: (its .yaml, the file)."""
    name = name or f"tiny_{form}"
    data = str(write(folder / f"{name}.jsonl", rows(form)))
    metrics = [{"metric": m, "aggregation": "mean"} for m in ("acc", "acc_norm", "acc_bytes")]
    settings = {
        "include": f"{HERE}/{DEFINITIONS[form]}",
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": dict.fromkeys(("train", "validation", "test"), data)},
    }
    if form in ("arc", "piqa"):
        settings["metric_list"] = metrics
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(settings | more))  # JSON is YAML
    return path, data


@pytest.fixture(scope="module")
def definitions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("definitions")
    return {form: definition(folder, form) for form in DEFINITIONS}


@pytest.fixture(scope="module")
def original(tiny):
    return AutoModelForCausalLM.from_pretrained(tiny.folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return AutoTokenizer.from_pretrained(tiny.folder)


@pytest.fixture(scope="module")
def scorer(original, tokenizer):
    return TorchScorer(original, words_of_transformers(tokenizer))


@pytest.fixture(scope="module")
def theirs(definitions, original, tokenizer):
    """What lm-eval says with its own model class, by task."""
    manager = tasks.TaskManager(include_defaults=False)
    return simple_evaluate(
        model=HFLM(pretrained=original, tokenizer=tokenizer, batch_size=3),
        tasks=[str(path) for path, _ in definitions.values()],
        task_manager=manager,
        bootstrap_iters=0,
    )


@pytest.mark.parametrize("form", DEFINITIONS)
def test_local_scoring_gives_their_numbers(form, definitions, theirs, scorer):
    task = files.read(definitions[form][1])
    outcome = answer(scorer, task, "")
    samples, results = theirs["samples"][f"tiny_{form}"], theirs["results"][f"tiny_{form}"]
    assert len(samples) == len(task.items) == 30
    assert [s["acc"] for s in samples] == outcome.right.tolist()
    assert outcome.right.mean() == pytest.approx(results["acc,none"])
    if form in ("arc", "piqa"):
        assert [s["acc_bytes"] for s in samples] == outcome.right_by_bytes.tolist()
        assert 0 < outcome.right_by_bytes.sum() < 30
        gold = [s["filtered_resps"][item.gold][0] for s, item in zip(samples, task.items, strict=True)]
        assert outcome.nll == pytest.approx(-np.array(gold), abs=1e-3)
    if form == "lambada":
        assert np.exp(outcome.nll.mean()) == pytest.approx(results["perplexity,none"], rel=1e-4)


@pytest.mark.parametrize("form", DEFINITIONS)
def test_our_adapter_gives_their_numbers(form, definitions, theirs, scorer):
    ours = simple_evaluate(
        model=HarnessModel(scorer),
        tasks=[str(definitions[form][0])],
        task_manager=tasks.TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )
    name = f"tiny_{form}"
    for mine, other in zip(ours["samples"][name], theirs["samples"][name], strict=True):
        assert mine["doc_hash"] == other["doc_hash"]
        assert str(mine["filtered_resps"][0][1]) == str(other["filtered_resps"][0][1])
    for metric, value in theirs["results"][name].items():
        if isinstance(value, float):
            assert ours["results"][name][metric] == pytest.approx(value, rel=1e-4)


def test_a_task_by_name_and_its_file_agree(definitions, tiny, original, tokenizer, tmp_path):
    """The harness's way and the local way, both models, the `.sprat` through the native engine."""
    source = type("Source", (), {"model": original, "tokenizer": tokenizer})
    artifact = sprat.open(write_file(tiny.folder, tmp_path / "coarse.sprat", steps=2))
    seen = []
    paths = [str(part) for pair in (definitions["arc"], definitions["piqa"]) for part in pair]
    entries = run_tasks(source, artifact, paths, items=20, progress=lambda *said: seen.append(said))
    local, named = entries[:2], entries[2:]
    for mine, other in zip(local, named, strict=True):
        assert json.loads(json.dumps(other, allow_nan=False)) == other
        for key in (
            "name",
            "metric",
            "items",
            "accuracy_original",
            "accuracy_compressed",
            "difference",
            "flips",
            "mcnemar_p",
        ):
            assert mine[key] == other[key], key
        assert mine["items"] == 20
        assert other["source"]["items"] == mine["source"]["items"] == 30
        assert mine["chance"] == pytest.approx(other["chance"])
        # Theirs counts characters, ours bytes: the same but for the few texts that are not ASCII.
        assert mine["acc_norm"]["items"] == other["acc_norm"]["items"]
    assert local[0]["flips"]["lost"] + local[0]["flips"]["won"] > 0
    assert tuple(dict.fromkeys(s for s, _, _ in seen if s.startswith("tasks:"))) == (
        "tasks: original",
        "tasks: compressed",
    )


def test_rolling_and_generation_give_their_answers(original, tokenizer, scorer, tiny, monkeypatch):
    from lm_eval.api.instance import Instance

    def ask(kind, *arguments):
        return [Instance(kind, {}, argument, i) for i, argument in enumerate(arguments)]

    theirs = HFLM(pretrained=original, tokenizer=tokenizer, batch_size=2, max_length=40)
    monkeypatch.setattr(harness, "_WINDOW", 40)
    text = tiny.text.read_text("utf-8")
    rolling = ask("loglikelihood_rolling", (text[:900],), ("the cat",), (text[900:1200],))
    expected = theirs.loglikelihood_rolling(rolling)
    engine = NativeEngine(sprat.open(tiny.file), threads=1)
    for one in (scorer, EngineScorer(engine, words(open_tokenizer(sprat.open(tiny.file))))):
        found = HarnessModel(one).loglikelihood_rolling(rolling)
        assert found == pytest.approx(expected, rel=1e-4 if one is scorer else 0.2)
    first = HarnessModel(scorer).generate_until(
        ask("generate_until", ("the cat sat on", {"until": [], "max_gen_toks": 12}))
    )
    stop = first[0][4:6]
    questions = ask(
        "generate_until",
        ("the cat sat on", {"until": [stop], "max_gen_toks": 12}),
        ("a small bird", {"until": ["\n\n"], "max_gen_toks": 7}),
    )
    assert HarnessModel(scorer).generate_until(questions) == theirs.generate_until(questions)
    with pytest.raises(ProofError, match="draws its answers at random"):
        HarnessModel(scorer).generate_until(
            ask("generate_until", ("a", {"do_sample": True, "temperature": 1.0}))
        )
    with pytest.raises(ProofError, match="answers of 256 tokens; the model's context is 256"):
        HarnessModel(scorer).generate_until(ask("generate_until", ("a", {"max_gen_toks": 256})))


def test_a_generative_task_is_paired_by_exact_match(tmp_path, scorer):
    data = write(
        tmp_path / "copy.jsonl", [{"q": f"the {w} sat on", "a": "the"} for w in ("cat", "dog", "bird")]
    )
    settings = {
        "task": "copy",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean"}],
    }
    path = tmp_path / "copy.yaml"
    path.write_text(json.dumps(settings))
    [entry] = Harness([str(path)]).run((scorer, scorer))
    assert entry["metric"] == "exact_match"
    assert entry["chance"] is None
    assert entry["flips"] == {"lost": 0, "won": 0}
    path.write_text(
        json.dumps(
            settings
            | {
                "output_type": "loglikelihood_rolling",
                "doc_to_text": "",
                "doc_to_target": "{{q}}",
                "metric_list": [{"metric": "word_perplexity"}],
            }
        )
    )
    with pytest.raises(
        ProofError, match=r"copy has no metric by which an item is right or wrong \(it has word_perplexity"
    ):
        Harness([str(path)]).run((scorer, scorer))


def test_names_that_cannot_be_had(tmp_path, monkeypatch):
    class Few(tasks.TaskManager):
        """Without the thousands of definitions, which take long to read."""

        def __init__(self, **options):
            super().__init__(include_path=HERE + "/piqa", include_defaults=False)

    monkeypatch.setattr(harness, "TaskManager", Few)
    with pytest.raises(
        ProofError, match=r"no file and no task .* is called 'pika' \(did you mean 'piqa'\?\)"
    ):
        Harness(["pika"])
    missing = tmp_path / "gone.yaml"
    missing.write_text(
        json.dumps(
            {"task": "gone", "dataset_path": str(tmp_path / "nowhere"), "output_type": "multiple_choice"}
        )
    )
    with pytest.raises(ProofError, match=r"cannot load .*gone.yaml.*needs no network"):
        Harness([str(missing)])
