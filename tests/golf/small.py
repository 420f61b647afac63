"""A small generated corpus and recipe, for tests of golf/."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sprat.golf.recipe import Recipe

NOUNS = ["cat", "dog", "bird", "fish", "tree", "house", "river", "stone", "cloud", "ship", "king", "child"]
VERBS = ["sees", "likes", "follows", "finds", "leaves", "hears", "wants", "knows"]

#: 37,000 weights, which train in a second.
RECIPE = {
    "vocabulary": 320,
    "layers": 2,
    "width": 32,
    "heads": 2,
    "kv_heads": 1,
    "inner": 64,
    "context": 64,
    "batch": 4,
    "validation": 0.2,
    "precision": "float32",
    "fit": {"tokens": 1024, "heal": 4},
}


def recipe(**settings: object) -> Recipe:
    return Recipe.from_dict({**RECIPE, **settings})


def documents(count: int = 40, sentences: int = 60, seed: int = 0) -> list[str]:
    """Texts of a small language, all different."""
    random = np.random.default_rng(seed)

    def sentence() -> str:
        a, b = random.choice(NOUNS, 2)
        return f"The {a} {random.choice(VERBS)} the {b}."

    return [f"Story {i}. " + " ".join(sentence() for _ in range(sentences)) for i in range(count)]


def write(folder: Path, texts: list[str], name: str = "story") -> list[Path]:
    """A file a document."""
    paths = [folder / f"{name}-{i}.txt" for i in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    return paths
