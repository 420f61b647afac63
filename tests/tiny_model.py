"""Makes the tiny random model of the tests, and rounds it into a `.sprat` without calibration."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

SENTENCES = "the cat sat on the mat and the dog ate the big fish while a small bird sang in the old tree"


def save_model(folder: Path, seed: int = 0) -> Path:
    """A random two-layer Llama with a byte-level tokenizer and a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<eos>", "<user>", "<bot>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([SENTENCES] * 20, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    fast.chat_template = "{% for m in messages %}<user>{{ m['content'] }}{% endfor %}<bot>"
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def write_file(
    folder: Path, path: Path, steps: int = 12, provenance: dict | None = None, recipe: dict | None = None
) -> Path:
    """Round each matrix of the model in `folder` to about 2·`steps` levels a row, as a `.sprat`."""
    from safetensors.numpy import load_file

    from sprat.coding import container
    from sprat.coding.tensors import Dense, Entry, Lattice, LogScale

    entries = {}
    for name, array in load_file(folder / "model.safetensors").items():
        array = array.astype(np.float32)
        if array.ndim == 1:
            entries[name] = Entry((name,), array.shape, Dense(array, "f32"))
            continue
        row = LogScale.nearest(np.abs(array).max(axis=1) / steps, 8)
        col = LogScale.nearest(np.ones(array.shape[1]), 8)
        q = np.rint(array / row.values()[:, None]).astype(np.int16)
        classes = np.full(q.shape[0], 76, np.uint8), np.full(q.shape[1], 86, np.uint8)
        entries[name] = Entry((name,), (q.shape[0],), Lattice(q, row, col, *classes))
    files = {
        f"tokenizer/{name}": (folder / name).read_bytes()
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    }
    container.write(
        path,
        config=json.loads((folder / "config.json").read_text()),
        entries=entries,
        recipe=recipe or {},
        provenance={"model": "tiny", "calibration": {"source": "self"}} if provenance is None else provenance,
        file_extra=files,
    )
    return path
