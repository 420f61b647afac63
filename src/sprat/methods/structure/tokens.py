"""A model without some of its tokens, and the calibration text in those that stay."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sprat.level.check import Passage, bits_per_byte
from sprat.methods.structure import vocabulary
from sprat.methods.structure.model import Kept, smaller
from sprat.recipe import Recipe
from sprat.sense.cache import Cache
from sprat.sense.statistics import HeadStatistics
from sprat.source.load import Source, config_of, tokenizer_of
from sprat.source.maps import decoder_layers
from sprat.source.text import Calibration


def fewer_tokens(
    source: Source, text: Calibration, statistics: Cache, recipe: Recipe
) -> tuple[Source, Calibration, list[Passage], dict[str, Any]]:
    """The original without the rows of the tokens that go, and the text in those that stay."""
    tokenizer = vocabulary.read(source.tokenizer_files["tokenizer.json"], source.name)
    found: HeadStatistics = statistics.get("head", HeadStatistics)["head"]
    learning = text.ids[: -recipe.held_out]
    counts = np.bincount(learning.flatten(), minlength=len(found.frequency))
    score = found.frequency.double().numpy() + counts / learning.size
    kept = vocabulary.kept_tokens(tokenizer, score, recipe.vocabulary, always(source, tokenizer))
    spelling = vocabulary.spelling(tokenizer, kept, len(found.frequency))
    files = vocabulary.files(source.tokenizer_files, vocabulary.trimmed(tokenizer, kept), kept)
    model = smaller(
        source.model, Kept(range(len(decoder_layers(source.model)[1])), tokens=torch.from_numpy(kept))
    )
    new = {old: index for index, old in enumerate(kept.tolist())}
    for config in (model.config, model.config.get_text_config(), model.generation_config):
        for name, value in vocabulary.renumbered(vars(config), new).items():
            setattr(config, name, value)
    rows = [[part for token in row for part in spelling[token]] for row in text.ids.tolist()]
    ids = np.array([row[: text.ids.shape[1]] for row in rows], np.int64)
    before, after = [], []
    for row, spelled in zip(text.ids[-recipe.held_out :].tolist(), rows[-recipe.held_out :], strict=True):
        half = len(row) // 2
        size = len(str(source.tokenizer.decode(row[half:])).encode())
        before.append(Passage(torch.tensor(row), half, size))
        after.append(Passage(torch.tensor(spelled), sum(len(spelling[t]) for t in row[:half]), size))
    said = {
        "of": len(score),
        "kept": len(kept),
        "tokens": sum(map(len, rows)) / text.ids.size,
        "bits_per_byte": bits_per_byte(source.model, before),
    }
    small = replace(
        source, model=model, tokenizer=tokenizer_of(files), config=config_of(model), tokenizer_files=files
    )
    changed = replace(text, ids=ids, hash=hashlib.sha256(ids.tobytes()).hexdigest())
    return small, changed, after, {"vocabulary": said}


def always(source: Source, tokenizer: dict[str, Any]) -> set[int]:
    """The tokens that stay in any case: bytes, special and added ones, those that a config names."""
    config = source.model.config
    named = [vars(config), vars(config.get_text_config())]
    if "generation_config.json" in source.tokenizer_files:
        named.append(json.loads(source.tokenizer_files["generation_config.json"]))
    return vocabulary.needed(tokenizer, vocabulary.token_ids(*named))
