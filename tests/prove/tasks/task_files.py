"""Tiny task files in the fields that the tasks are published with, in words that the tiny model's tokenizer knows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tiny_model import SENTENCES

WORDS = SENTENCES.split()


def rows(form: str, count: int = 30, seed: int = 0) -> list[dict]:
    """`count` questions of a format, of random words; some are not ASCII, some have three choices."""
    rng = np.random.default_rng(seed)

    def text(low: int = 2, high: int = 7) -> str:
        words = [WORDS[i] for i in rng.integers(0, len(WORDS), rng.integers(low, high))]
        return " ".join([*words, "café 🐟"] if rng.random() < 0.1 else words)

    out = []
    for i in range(count):
        if form == "arc":
            choices = [text() for _ in range(3 + i % 2)]
            labels = ["A", "B", "C", "D"] if i % 3 else ["1", "2", "3", "4"]
            labels = labels[: len(choices)]
            key = labels[int(rng.integers(0, len(choices)))]
            out.append(
                {"question": text(3, 25), "choices": {"text": choices, "label": labels}, "answerKey": key}
            )
        elif form == "piqa":
            out.append({"goal": text(), "sol1": text(), "sol2": text(), "label": int(rng.integers(0, 2))})
        elif form == "blimp":
            out.append({"sentence_good": text() + ".", "sentence_bad": text() + "."})
        elif form == "lambada":
            out.append({"text": text(5, 12)})
        elif form == "cloze":
            out.append({"context": text(5, 12), "continuation": WORDS[i % len(WORDS)]})
        elif form == "choice":
            out.append(
                {"query": text(), "choices": [text() for _ in range(4)], "gold": int(rng.integers(0, 4))}
            )
    return out


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
