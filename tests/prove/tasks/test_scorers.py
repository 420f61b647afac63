"""Both scorers against one whole forward pass a request, with contexts that neighbours share or do not."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, MistralForCausalLM

import sprat
from sprat.errors import ProofError
from sprat.prove.tasks import engine_scorer, torch_scorer
from sprat.prove.tasks.engine_scorer import EngineScorer
from sprat.prove.tasks.requests import Request, Words, words, words_of_transformers
from sprat.prove.tasks.torch_scorer import TorchScorer
from sprat.run.model import to_torch
from sprat.run.native import NativeEngine
from sprat.run.tokenizer import open_tokenizer
from sprat.run.torch_engine import TorchEngine
from tiny_model import save_model, write_file
from toy_engine import VOCABULARY, ToyEngine

WORDS = Words(lambda text, special: [], str, 0, frozenset({1}))


def slow(logits_of, request):
    """The definition: log-softmax of whole logits, one request at a time."""
    rows = torch.tensor(np.asarray(logits_of(request.ids)), dtype=torch.float64)[request.start :].log_softmax(
        -1
    )
    picked = [float(rows[i, token]) for i, token in enumerate(request.continuation)]
    return sum(picked), all(int(rows[i].argmax()) == token for i, token in enumerate(request.continuation))


def assert_same(found, expected, tolerance=2e-3):
    assert [a.greedy for a in found] == [greedy for _, greedy in expected]
    assert [a.logprob for a in found] == pytest.approx([logprob for logprob, _ in expected], abs=tolerance)


def requests(rng, vocabulary):
    """Choices behind shared contexts, long and short, choices that begin alike, and requests of their own."""
    out = []
    for context, choices in [(20, 4), (1, 2), (40, 1), (16, 3), (17, 2), (3, 5), (1, 1), (30, 2)]:
        front = tuple(rng.integers(0, vocabulary, context).tolist())
        first = int(rng.integers(0, vocabulary))
        for length in rng.integers(1, 9, choices):
            out.append(Request(front, (first, *rng.integers(0, vocabulary, length - 1).tolist())))
    return out


@pytest.fixture(scope="module")
def mistral(tmp_path_factory):
    """Sliding windows of 5 tokens: what padding or a shared context could get wrong."""
    folder = save_model(tmp_path_factory.mktemp("mistral"))
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        sliding_window=5,
        initializer_range=0.3,
    )
    MistralForCausalLM(config).save_pretrained(folder)
    return sprat.open(write_file(folder, folder / "mistral.sprat"))


@pytest.fixture(scope="module")
def model(mistral):
    return to_torch(mistral)


def forward(model):
    return lambda ids: model(torch.tensor([ids])).logits[0].detach().numpy()


def with_greedy_answers(asked, logits_of):
    """Random tokens are hardly ever the likeliest: add requests that are."""
    for request in asked[::3]:
        ids = list(request.context)
        for _ in range(3):
            ids.append(int(np.argmax(logits_of(ids)[-1])))
        asked = [*asked, Request(request.context, tuple(ids[-3:]))]
    return asked


@pytest.mark.parametrize("batch", [512, 1])
def test_torch(model, batch, monkeypatch):
    asked = with_greedy_answers(requests(np.random.default_rng(0), VOCABULARY), forward(model))
    expected = [slow(forward(model), request) for request in asked]
    assert sum(greedy for _, greedy in expected) >= 5
    monkeypatch.setattr(torch_scorer, "_TOKENS", batch)
    assert_same(TorchScorer(model, WORDS).score(asked), expected)


@pytest.mark.parametrize(("tokens", "lanes"), [(256, 4), (5, 3), (1, 1)])
def test_native_engine(mistral, model, tokens, lanes, monkeypatch):
    asked = with_greedy_answers(requests(np.random.default_rng(1), VOCABULARY), forward(model))
    expected = [slow(forward(model), request) for request in asked]
    monkeypatch.setattr(engine_scorer, "_TOKENS", tokens)
    monkeypatch.setattr(engine_scorer, "_LANES", lanes)
    engine = NativeEngine(mistral, threads=1, activations="float")
    assert_same(EngineScorer(engine, WORDS).score(asked), expected, 5e-3)


def test_torch_engine(mistral, model):
    asked = requests(np.random.default_rng(2), VOCABULARY)
    expected = [slow(forward(model), request) for request in asked]
    assert_same(EngineScorer(TorchEngine(mistral), WORDS).score(asked), expected)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.lists(st.integers(0, 319), min_size=1, max_size=12)),
        min_size=1,
        max_size=14,
    ),
    st.integers(1, 20),
    st.integers(1, 5),
)
def test_any_order_of_requests_and_any_batch(pairs, tokens, lanes):
    """The toy engine's logits depend on the last 20 tokens, and it refuses what no session may do."""
    fronts = [(7,), tuple(range(9)), tuple(range(8)), tuple(range(30))]
    asked = [Request(fronts[front], tuple(behind)) for front, behind in pairs]
    engine = ToyEngine()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_scorer, "_TOKENS", tokens)
        patch.setattr(engine_scorer, "_LANES", lanes)
        found = EngineScorer(engine, WORDS).score(asked)
    assert_same(found, [slow(engine.all_logits, request) for request in asked], 1e-3)
    assert engine.open == 0


def test_step_all_gives_what_all_logits_gives(mistral):
    rng = np.random.default_rng(3)
    texts = [rng.integers(0, VOCABULARY, n).tolist() for n in (9, 1, 14)]
    for engine in (NativeEngine(mistral, threads=1), TorchEngine(mistral)):
        sessions = [engine.session() for _ in texts]
        engine.step(sessions[:1], [texts[0][:4]])
        rows = engine.step_all(sessions, [texts[0][4:], *texts[1:]])
        expected = [engine.all_logits(text) for text in texts]
        assert [s.length for s in sessions] == [9, 1, 14]
        for found, all_rows in zip(rows, [expected[0][4:], *expected[1:]], strict=True):
            np.testing.assert_allclose(found, all_rows, atol=1e-3 * all_rows.std())


def test_progress_counts_tokens_to_the_end(model, mistral):
    asked = requests(np.random.default_rng(4), VOCABULARY)
    total = sum(len(request.ids) for request in asked)
    for scorer in (TorchScorer(model, WORDS), EngineScorer(TorchEngine(mistral), WORDS)):
        seen = []
        scorer.score(asked, "stage", lambda *said, seen=seen: seen.append(said))
        assert seen[0] == ("stage", 0, total)
        assert seen[-1] == ("stage", total, total)
        assert all(a[1] <= b[1] for a, b in pairwise(seen))


def test_logits_that_are_not_finite_are_refused(mistral):
    broken = to_torch(mistral)
    broken.model.norm.weight.data[:] = float("nan")
    asked = [Request((1, 2), (3,))]
    with pytest.raises(ProofError, match="the original model gave logits that are not finite"):
        TorchScorer(broken, WORDS).score(asked)
    engine = ToyEngine()
    engine.table[:] = np.nan
    with pytest.raises(ProofError, match="the compressed model gave logits that are not finite"):
        EngineScorer(engine, WORDS).score(asked)
    assert engine.open == 0


def test_nothing_asked_nothing_answered(model):
    assert TorchScorer(model, WORDS).score([]) == EngineScorer(ToyEngine(), WORDS).score([]) == []


def test_both_write_the_likeliest_text(mistral, model):
    start = [5, 6, 7]
    ids = list(start)
    for _ in range(6):
        ids.append(int(forward(model)(ids)[-1].argmax()))
    ends = Words(lambda text, special: [], str, 0, frozenset({ids[-1]}) - frozenset(ids[:-1]))
    engine = NativeEngine(mistral, threads=1, activations="float")
    for scorer, stop in product((TorchScorer(model, ends), EngineScorer(engine, ends)), (9, 2)):
        most = 5 if ids[-1] in ids[:-1] else 9
        found = scorer.write(start, most, lambda written, stop=stop: len(written) == stop)
        assert found == ids[3:8][:stop]


def test_requests_are_cut_between_context_and_continuation(tiny):
    mine = words(open_tokenizer(sprat.open(tiny.file)))
    theirs = words_of_transformers(AutoTokenizer.from_pretrained(tiny.folder))
    for w in (mine, theirs):
        assert w.opening == 0
        assert 0 in w.ends
        request = w.request("the cat sat", " on the mat", 100)
        assert request == w.request("the cat sat ", "on the mat", 100)
        assert w.decode(request.context) == "the cat sat"
        assert w.decode(request.continuation) == " on the mat"
        assert w.request("", " on the mat", 100) == Request((0,), request.continuation)
        short = w.request("the cat sat", " on the mat", len(request.continuation) + 1)
        assert short == Request(request.context[-2:], request.continuation)
        with pytest.raises(ProofError, match="does not fit into the model's context of 1"):
            w.request("the cat sat", " on the mat", 1)
        with pytest.raises(ProofError, match="is no token of its own"):
            w.request("the cat", "", 100)
    assert mine.request("ä the", " 🐟 cat", 99) == theirs.request("ä the", " 🐟 cat", 99)


def test_a_tokenizer_without_special_tokens_needs_a_context(tiny):
    w = words(open_tokenizer(sprat.open(tiny.file)))
    bare = Words(w.encode, w.decode, None, frozenset())
    assert bare.request("the", " cat", 9) == w.request("the", " cat", 9)
    with pytest.raises(ProofError, match="give every question a context"):
        bare.request("", " cat", 9)


def test_the_tiny_model_through_its_own_context(tiny):
    """A whole-way check on the real classes: a folder's model and its file's engine see the same tokens."""
    model = AutoModelForCausalLM.from_pretrained(tiny.folder, dtype=torch.float32).eval()
    scorer = TorchScorer(model, words_of_transformers(AutoTokenizer.from_pretrained(tiny.folder)))
    assert scorer.context == 256
    request = scorer.words.request("the cat", " sat", scorer.context)
    assert_same(scorer.score([request]), [slow(forward(model), request)])
