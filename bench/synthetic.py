"""A `.sprat` of any size without a model: how the engine grows.

    python -m bench.synthetic synthetic.sprat          # 1.24 B parameters, the shape of Llama 3.2 1B; 3 bits a weight
    sprat bench synthetic.sprat

Weights are Gaussian of variance 1 / inputs, their steps c / (row i) / (column j) as a level would set them: the
logarithms of row and column steps vary as in files that `sprat fit` makes (SmolLM2: by 0.7 and 0.5 octaves), and c is
what gives the integers the entropy that was asked for. It writes nonsense, as fast as a model of this size writes
sense. Every layer has the same integers, so that one layer's lie in memory; file and engine hold each layer's own.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sprat.coding import container, entropy
from sprat.coding.ledger import Ledger
from sprat.coding.tensors import Dense, Entry, Lattice, LogScale

ROW_OCTAVES, COLUMN_OCTAVES = 0.7, 0.5
RESOLUTION = 8


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama with tied ends; the defaults are those of Llama 3.2 1B."""

    layers: int = 16
    hidden: int = 2048
    inner: int = 8192
    heads: int = 32
    kv_heads: int = 8
    vocabulary: int = 128_256
    context: int = 4096

    def config(self) -> dict[str, object]:
        """As Hugging Face writes it."""
        return {
            "model_type": "llama",
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context,
            "tie_word_embeddings": True,
            "eos_token_id": 0,
        }


def write(path: Path, shape: Shape, bits: float, seed: int = 0, threads: int = 1) -> Ledger:
    """Make the file; peak memory is about twice the embedding's integers and the file."""
    dice = np.random.default_rng(seed)
    c = level(bits)
    h, kv = shape.hidden, shape.hidden // shape.heads * shape.kv_heads
    stacks = {
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"): ((h, kv, kv), h),
        ("self_attn.o_proj",): ((h,), h),
        ("mlp.gate_proj", "mlp.up_proj"): ((shape.inner, shape.inner), h),
        ("mlp.down_proj",): ((h,), shape.inner),
    }
    integers = {maps: _lattice(sum(rows), columns, c, dice) for maps, (rows, columns) in stacks.items()}
    embedding = _lattice(shape.vocabulary, h, c, dice)
    ones = Dense(np.ones(h, np.float32))
    entries = {
        "model.embed_tokens.weight": Entry(("model.embed_tokens.weight",), (shape.vocabulary,), embedding)
    }
    for layer in range(shape.layers):
        stem = f"model.layers.{layer}."
        for maps, (rows, _) in stacks.items():
            names = tuple(f"{stem}{name}.weight" for name in maps)
            entries[names[0]] = Entry(names, rows, integers[maps])
        for norm in ("input_layernorm", "post_attention_layernorm"):
            entries[f"{stem}{norm}.weight"] = Entry((f"{stem}{norm}.weight",), (h,), ones)
    entries["model.norm.weight"] = Entry(("model.norm.weight",), (h,), ones)
    return container.write(
        path,
        config=shape.config(),
        entries=entries,
        recipe={},
        provenance={"model": "synthetic", "bits": bits, "seed": seed},
        file_extra={"tokenizer/tokenizer.json": _tokenizer()},
        threads=threads,
    )


def level(bits: float) -> float:
    """c for which round(N(0, 1) / (c / row / column)) has `bits` bits of entropy in the mean over rows and columns.

    By bisection in log c, over the 19 even quantiles of the octaves of row · column.
    """
    octaves = np.quantile(
        np.random.default_rng(0).normal(0, np.hypot(ROW_OCTAVES, COLUMN_OCTAVES), 10_000),
        np.arange(1, 20) / 20,
    )
    low, high = 2.0**-10, 2.0**6
    while high / low > 1.001:
        c = (low * high) ** 0.5
        low, high = (c, high) if np.mean([rounded_entropy(2.0**o / c) for o in octaves]) > bits else (low, c)
    return low


def rounded_entropy(deviation: float) -> float:
    """Bits of round(N(0, deviation²)), from a Gaussian's probabilities cell by cell."""
    reach = int(np.ceil(8 * deviation)) + 1
    fine = 64
    points = (np.arange((2 * reach + 1) * fine) + 0.5) / fine - reach - 0.5
    p = np.exp(-0.5 * (points / deviation) ** 2).reshape(-1, fine).sum(1)
    p = p[p > 0] / p.sum()
    return float(-(p * np.log2(p)).sum())


def _lattice(rows: int, columns: int, c: float, dice: np.random.Generator) -> Lattice:
    row = LogScale.nearest(np.exp2(dice.normal(0, ROW_OCTAVES, rows)), RESOLUTION)
    col = LogScale.nearest(np.exp2(dice.normal(0, COLUMN_OCTAVES, columns)), RESOLUTION)
    r, k = row.values(), col.values()
    q = np.empty((rows, columns), np.int16)
    for start in range(0, rows, 1024):
        part = slice(start, min(start + 1024, rows))
        weights = dice.standard_normal((part.stop - part.start, columns), np.float32)
        q[part] = np.rint(weights / np.float32(c) * r[part, None] * k)
    # W = Q · step, of variance 1 / inputs.
    step = LogScale.nearest(c / np.sqrt(columns) / r, RESOLUTION), LogScale.nearest(1 / k, RESOLUTION)
    return Lattice(q, *step, *entropy.classes(r / c, k))


def _tokenizer() -> bytes:
    """Bytes as tokens: enough for a prompt."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return json.dumps(json.loads(tokenizer.to_str()), separators=(",", ":")).encode()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--bits", type=float, default=3.0, help="entropy of a weight (default %(default)s)")
    parser.add_argument("--layers", type=int, default=Shape.layers, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    shape = Shape(layers=options.layers)
    ledger = write(options.file, shape, options.bits, threads=options.threads)
    rate = 8 * ledger.total / ledger.weights
    print(f"{options.file}: {ledger.total:,} bytes, {ledger.weights:,} weights, {rate:.2f} bits a weight")


if __name__ == "__main__":
    main()
