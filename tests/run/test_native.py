"""The native engine's logits against torch's, whole models of every family."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from native_models import CONFIGS, VOCABULARY, write_model

import sprat
from sprat import _core
from sprat.errors import SpratError
from sprat.run.model import to_torch
from sprat.run.native import NativeEngine

RNG = np.random.default_rng(5)
IDS = RNG.integers(0, VOCABULARY, 40)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Each family's file, written once."""
    root, made = tmp_path_factory.mktemp("native"), {}

    def get(family: str, **options):
        key = (family, *options.items())
        if key not in made:
            made[key] = sprat.open(write_model(family, root / f"{len(made)}.sprat", **options))
        return made[key]

    return get


def torch_logits(artifact, ids=IDS) -> np.ndarray:
    with torch.no_grad():
        return to_torch(artifact)(torch.tensor(ids)[None]).logits[0].numpy()


def spread(logits: np.ndarray) -> float:
    return float(logits.std())


@pytest.mark.parametrize("family", CONFIGS)
def test_exact_activations_give_torchs_logits(family, files):
    artifact = files(family)
    expected = torch_logits(artifact)
    found = NativeEngine(artifact, threads=2, activations="float").all_logits(IDS)
    assert np.abs(found - expected).max() < 2e-4 * spread(expected)


@pytest.mark.parametrize("family", CONFIGS)
def test_int8_activations_stay_near(family, files):
    artifact = files(family)
    expected = torch_logits(artifact)
    found = NativeEngine(artifact, threads=1).all_logits(IDS)
    # Int8 by panels rounds an input to about 0.5 %, which these random weights magnify; a wrong map or norm is
    # off by the whole spread.
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.15 * spread(expected)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_maps_that_are_not_stacked_give_the_same(family, files):
    """Each map its own entry, as other writers may store them."""
    found = NativeEngine(files(family, stacked=False), threads=1, activations="float").all_logits(IDS)
    expected = torch_logits(files(family, stacked=False))
    assert np.abs(found - expected).max() < 2e-4 * spread(expected)


def test_integers_beyond_16_bits(files):
    artifact = files("qwen3", steps=3e6)
    assert any(artifact.entry(n).tensor.q.dtype == np.int32 for n in artifact.names if "proj" in n)
    expected = torch_logits(artifact)
    found = NativeEngine(artifact, threads=1, activations="float").all_logits(IDS)
    assert np.abs(found - expected).max() < 2e-4 * spread(expected)


@pytest.mark.parametrize("kernel", _core.kernels())
def test_every_kernel_computes_the_same_model(kernel, files, monkeypatch):
    artifact = files("gemma3")
    expected = NativeEngine(artifact, threads=1).all_logits(IDS)
    monkeypatch.setenv("SPRAT_KERNEL", kernel)
    engine = NativeEngine(artifact, threads=3)
    assert engine.kernel == kernel
    assert np.array_equal(engine.all_logits(IDS), expected)


@pytest.mark.parametrize("family", ["llama, yarn", "mistral", "gemma3"])
def test_steps_of_any_length_give_what_one_gives(family, files):
    engine = NativeEngine(files(family), threads=2, activations="float")
    whole = engine.all_logits(IDS)
    session, at = engine.session(), 0
    for length in (1, 3, 17, 1, 1, 9, 8):
        row = engine.step([session], [IDS[at : at + length]])
        at += length
        assert session.length == at
        assert np.abs(row[0] - whole[at - 1]).max() < 1e-4 * spread(whole)


def test_sessions_share_a_step_and_nothing_else(files):
    engine = NativeEngine(files("mistral"), threads=2, activations="float")
    texts = [IDS[:5], IDS[7:30], IDS[11:12], IDS[3:21]]
    sessions = [engine.session(40) for _ in texts]
    first = engine.step(sessions, texts)
    second = engine.step(sessions[::-1], [[i + 1] for i in range(4)])[::-1]
    for i, text in enumerate(texts):
        alone = engine.all_logits([*text, 4 - i])
        assert np.abs(first[i] - alone[-2]).max() < 1e-4 * spread(alone)
        assert np.abs(second[i] - alone[-1]).max() < 1e-4 * spread(alone)


def test_int8_steps_do_not_depend_on_their_neighbours(files):
    """A session's logits are the same bits alone and in a batch: what a server answers must not vary with load."""
    engine = NativeEngine(files("qwen2"), threads=2)
    alone = engine.step([engine.session()], [IDS[:9]])
    sessions = [engine.session() for _ in range(6)]
    together = engine.step(sessions, [IDS[i : i + 9] for i in range(6)])
    assert np.array_equal(together[0], alone[0])


def test_rewinding_forgets(files):
    engine = NativeEngine(files("llama, llama3"), threads=1)
    session = engine.session()
    engine.step([session], [IDS[:20]])
    expected = engine.step([session], [[7]])
    engine.step([session], [IDS[20:30]])
    session.rewind(20)
    assert session.length == 20
    assert np.array_equal(engine.step([session], [[7]]), expected)
    with pytest.raises(SpratError, match="cannot rewind a text of 21 tokens to 22"):
        session.rewind(22)


def test_long_texts_go_in_pieces(tmp_path):
    """More tokens than pass through the layers together, with windows that reach across."""
    artifact = sprat.open(write_model("mistral", tmp_path / "long.sprat", context=700))
    ids = np.random.default_rng(0).integers(0, VOCABULARY, 600)
    engine = NativeEngine(artifact, threads=2, activations="float")
    expected = torch_logits(artifact, ids)
    assert np.abs(engine.all_logits(ids) - expected).max() < 5e-4 * spread(expected)
    last = engine.step([engine.session()], [ids])
    assert np.abs(last[0] - expected[-1]).max() < 5e-4 * spread(expected)


def test_errors_leave_sessions_as_they_were(files):
    engine = NativeEngine(files("llama"), threads=1, context=12)
    session = engine.session(10)
    engine.step([session], [IDS[:6]])
    cases = [
        ([session], [IDS[:5]], "6 tokens and 5 more, 10 fit"),
        ([session], [[VOCABULARY]], "token 131 is outside the vocabulary of 131"),
        ([session], [[-1]], "outside the vocabulary"),
        ([session], [[]], "given no token"),
        ([session, session], [[1], [2]], "twice"),
        ([session], [[1], [2]], "1 sessions, 2 lists"),
        ([session], [[2**40]], "cannot compute"),
    ]
    for sessions, ids, message in cases:
        with pytest.raises(SpratError, match=message):
            engine.step(sessions, ids)
        assert session.length == 6
    with pytest.raises(SpratError, match="1 to 12 tokens, not 13"):
        engine.session(13)
    session.close()
    with pytest.raises(SpratError, match="closed"):
        engine.step([session], [[1]])
    other = NativeEngine(files("qwen3"), threads=1).session()
    with pytest.raises(SpratError, match="another model"):
        engine.step([other], [[1]])


def test_what_it_weighs(files):
    engine = NativeEngine(files("llama"), threads=1)
    assert engine.resident["cache"] == 0
    session = engine.session()
    engine.step([session], [IDS[:7]])
    assert engine.resident["cache"] == 7 * engine.cache_bytes_per_token == 7 * 2 * 3 * 2 * (32 + 4)
    assert engine.resident["layout"] < engine.bytes_per_token
    assert engine.resident["vocabulary"] > 0
    session.close()
    assert engine.resident["cache"] == 0


def test_a_forked_process_computes(files):
    engine = NativeEngine(files("llama"), threads=3)
    expected = engine.all_logits(IDS)
    child = os.fork()
    if child == 0:
        same = np.array_equal(engine.all_logits(IDS), expected)
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(engine.all_logits(IDS), expected)


def test_steps_from_several_threads_take_turns(files):
    engine = NativeEngine(files("qwen2"), threads=2)
    expected = engine.all_logits(IDS)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: engine.all_logits(IDS), range(12)):
            assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads must be 1 to 1024"),
        ({"context": 97}, "1 to 96 tokens"),
        ({"activations": "int9"}, r"unknown activations 'int9' \(did you mean 'int8'\?\)"),
    ],
)
def test_options_out_of_range(options, message, files):
    with pytest.raises(SpratError, match=message):
        NativeEngine(files("llama"), **options)


def test_an_unknown_kernel_is_named(files, monkeypatch):
    monkeypatch.setenv("SPRAT_KERNEL", "avx9")
    with pytest.raises(
        SpratError, match=r"SPRAT_KERNEL: no kernel 'avx9' on this processor: auto, .*portable"
    ):
        NativeEngine(files("llama"))
