"""A synthetic file holds what was asked for, and the engine computes it as torch does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from bench.synthetic import Shape, rounded_entropy, write

import sprat
from sprat.coding import entropy
from sprat.coding.tensors import Lattice
from sprat.run.model import to_torch
from sprat.run.native import NativeEngine
from sprat.run.tokenizer import open_tokenizer

TINY = Shape(layers=2, hidden=64, inner=160, heads=4, kv_heads=2, vocabulary=300, context=64)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    path = tmp_path_factory.mktemp("synthetic") / "tiny.sprat"
    assert write(path, TINY, bits=3.0).total == path.stat().st_size
    return sprat.open(path)


def test_the_entropy_of_a_rounded_gaussian():
    assert rounded_entropy(20.0) == pytest.approx(math.log2(20 * math.sqrt(2 * math.pi * math.e)), abs=1e-3)
    zero = math.erf(0.5 / 0.1 / math.sqrt(2))  # its other cells hold nothing
    assert rounded_entropy(0.1) == pytest.approx(-math.log2(zero) * zero, abs=1e-4)


@pytest.mark.parametrize("bits", [1.0, 3.0, 5.0])
def test_the_integers_have_the_entropy_asked_for(bits, tmp_path):
    write(tmp_path / "x.sprat", TINY, bits)
    with sprat.open(tmp_path / "x.sprat") as artifact:
        found = [e.tensor for e in artifact.entries().values() if isinstance(e.tensor, Lattice)]
    weights = sum(lattice.q.size for lattice in found)
    assert entropy.count(found).entropy() / weights == pytest.approx(bits, abs=0.25)
    assert np.std(found[1].dense()) * 8 == pytest.approx(1, rel=0.1)  # 64 inputs


def test_the_engine_computes_what_torch_does(artifact):
    ids = np.random.default_rng(1).integers(0, TINY.vocabulary, 40)
    with torch.no_grad():
        expected = to_torch(artifact)(torch.tensor(ids)[None]).logits[0].numpy()
    found = NativeEngine(artifact, threads=1, activations="float").all_logits(ids)
    assert np.abs(found - expected).max() < 2e-4 * expected.std()
    assert open_tokenizer(artifact).encode("Once upon a time")
