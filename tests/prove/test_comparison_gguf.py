"""GGUF files in a comparison: llama.cpp's logits at the same places, and what is said where it is not installed."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

from sprat.errors import ProofError
from sprat.prove import llamacpp
from sprat.prove.comparison import compare_files
from sprat.prove.metrics import compare
from sprat.prove.text import Contexts
from sprat.source.load import load
from tiny_gguf import write_gguf

SETTINGS = {"tokens": 640, "context": 64}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SPRAT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def ggufs(tiny, tmp_path_factory):
    root = tmp_path_factory.mktemp("gguf")
    return {kind: write_gguf(tiny.folder, root / f"{kind}.gguf", kind) for kind in ("F32", "Q4_0")}


class Fake:
    """An engine that answers with a transformers model, and keeps what it was asked."""

    def __init__(self, model):
        self.model, self.asked = model, []

    def logits(self, ids, keep):
        self.asked.append((len(ids), keep))
        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0, -keep:].numpy()


def test_an_engine_is_asked_for_the_places_that_are_scored(tiny):
    original, other = load(tiny.folder, torch.float32).model, load(tiny.folder, torch.float32).model
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    ids = np.random.default_rng(0).integers(3, 300, (3, 20))
    contexts = Contexts(ids, np.full(3, 40), skip=8, lengths=np.array([20, 20, 13]))
    fake = Fake(other)
    found, wanted = compare(original, llamacpp.Model(fake), contexts), compare(original, other, contexts)
    assert fake.asked == [(20, 12), (20, 12), (13, 5)]
    assert wanted.kl.sum() > 0.1
    for name in ("kl", "nll_compressed", "same_top", "shift"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), atol=1e-6)


def test_all_places_without_a_wish():
    class Counting:
        def logits(self, ids, keep):
            return np.arange(keep * 2, dtype=np.float32).reshape(keep, 2)

    logits = llamacpp.Model(Counting())(torch.tensor([[5, 6, 7]])).logits
    assert logits.shape == (1, 3, 2)


def test_without_the_package_a_gguf_is_dequantized_and_the_row_says_so(tiny, ggufs, monkeypatch):
    monkeypatch.setattr(llamacpp, "package", lambda: None)
    row = compare_files([ggufs["F32"]], tiny.folder, tiny.text, **SETTINGS).rows[0]
    assert row.engine == "PyTorch, dequantized (llama-cpp-python is not installed)"
    assert row.metrics.kl is not None and abs(row.metrics.kl.value) < 1e-6
    with pytest.raises(ProofError, match=r"not installed: pip install 'sprat\[llamacpp\]'"):
        llamacpp.LlamaCpp(ggufs["F32"])


def test_a_package_that_does_not_load_is_said(monkeypatch):
    def fail(name):
        raise OSError("libllama.so: wrong ELF class")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ProofError, match=r"installed but does not load: libllama\.so: wrong ELF"):
        llamacpp.package()


class TestInstalled:
    @pytest.fixture(autouse=True)
    def installed(self):
        pytest.importorskip("llama_cpp", reason="needs the llamacpp extra")

    def test_its_logits_are_the_models(self, tiny, ggufs, capfd):
        engine, model = llamacpp.LlamaCpp(ggufs["F32"], threads=1), load(tiny.folder, torch.float32).model
        # A shorter text, a longer one and the first again: nothing is left of the one before.
        for ids in ([5, 9, 200], list(range(100, 150)), [5, 9, 200]):
            with torch.no_grad():
                wanted = model(torch.tensor([ids])).logits[0, -2:].numpy()
            np.testing.assert_allclose(engine.logits(ids, 2), wanted, atol=0.05)
        with pytest.raises(ProofError, match="there is no token 999: the GGUF has 320"):
            engine.logits([1, 999], 1)
        captured = capfd.readouterr()
        assert captured.out == captured.err == ""

    def test_rows_are_its_own(self, tiny, ggufs, monkeypatch):
        found = compare_files([tiny.file, *ggufs.values()], tiny.folder, tiny.text, **SETTINGS)
        ours, plain, coarse = found.rows
        assert ours.engine == "PyTorch" and plain.engine == coarse.engine == llamacpp.version()
        assert plain.metrics.kl.value < 1e-4 < 1e-3 < coarse.metrics.kl.value
        assert coarse.bytes == ggufs["Q4_0"].stat().st_size
        monkeypatch.setattr(llamacpp, "package", lambda: None)
        dense = compare_files([ggufs["Q4_0"]], tiny.folder, tiny.text, **SETTINGS).rows[0]
        # The same weights: llama.cpp's activations of 8 bits are the difference.
        assert dense.sha256 == coarse.sha256
        assert dense.metrics.kl.value != coarse.metrics.kl.value
        assert dense.metrics.kl.value == pytest.approx(coarse.metrics.kl.value, rel=0.2)

    def test_what_it_cannot_open_is_refused_in_its_words(self, tmp_path, capfd):
        (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(40))
        with pytest.raises(ProofError, match=r"llama\.cpp cannot open .*broken\.gguf: \w"):
            llamacpp.LlamaCpp(tmp_path / "broken.gguf")
        captured = capfd.readouterr()
        assert captured.out == captured.err == ""
