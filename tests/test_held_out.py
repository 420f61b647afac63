"""What is held out judges a fit: nothing that changes the file ever sees it."""

from __future__ import annotations

import pytest
import torch

import sprat
from sprat import assembly, reduce, trial
from sprat import heal as healing
from sprat.recipe import Recipe

BASE = {"context": 64, "tokens": 1024, "held_out": 8}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPRAT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def seen(monkeypatch):
    """Contexts that were learnt from, and those that were judged on, each as a set of texts."""
    learnt, judged = set[bytes](), set[bytes]()

    def spied(module, name, place, into):
        real = getattr(module, name)

        def spy(*args, **kwargs):
            into.update(row.tobytes() for row in torch.as_tensor(args[place]).numpy())
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, spy)

    for module in (assembly, healing):
        spied(module, "train", 1, learnt)
    spied(assembly, "round_sequentially", 4, learnt)
    spied(reduce, "refitted", 3, learnt)
    for module in (trial, reduce):
        spied(module, "held_out_kl", 2, judged)
    spied(healing, "kl_between", 2, judged)
    return learnt, judged


SETTINGS = [
    {"heal": 24},
    {"heal": 0, "sequential": True, "sequential_tokens": 8192, "sequential_strength": 0.5},
    {"heal": 0, "remove_layers": 1},
    {"heal": 0, "ffn": 0.75},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: ",".join(s))
def test_of_a_fit(tiny, tmp_path, seen, settings):
    sprat.fit(tiny.folder, "60%", tmp_path / "f.sprat", recipe=Recipe.from_dict(BASE | settings))
    learnt, judged = seen
    assert len(learnt) >= 16
    assert len(judged) == 8
    assert not learnt & judged


def test_of_a_healing(tiny, tmp_path, seen):
    file = tmp_path / "f.sprat"
    sprat.fit(tiny.folder, "60%", file, recipe=Recipe.from_dict(BASE | {"heal": 0}))
    learnt, judged = seen
    judged.clear()
    healing.heal(file, tiny.folder, tmp_path / "healed.sprat", contexts=4, tokens=1024)
    assert len(learnt) == 16
    assert len(judged) == 8
    assert not learnt & judged
