"""The naive artifact, for comparison: every matrix in 8-bit rows, the rest in f16, all of it through zlib.

    file = "SPG8" zlib( length(4) JSON(recipe, bytes of the tokenizer) tokenizer tensors )
    matrix (m, n): m scales f16, then m x n int8, w = scale * q, scale = max |row| / 127; vector: f16

Tensors lie in the order of the model's parameters. The scheme of the naive baseline of OpenAI's Parameter Golf
(github.com/openai/parameter-golf). The engine does not read it: torch does, and `sprat golf score`.
"""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from sprat.coding import records
from sprat.coding.tokenizer import pack as pack_tokenizer
from sprat.coding.tokenizer import unpack as unpack_tokenizer
from sprat.errors import FormatError, SpratError
from sprat.golf import words
from sprat.golf.model import Decoder
from sprat.golf.recipe import Recipe

MAGIC = b"SPG8"
#: What a file may unpack to.
LIMIT = 1 << 30


def written(path: Path, role: str = "") -> bool:
    """Whether the file at `path` is one of these, by its first bytes. SpratError, naming its role, where it cannot be
    opened."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise SpratError(f"cannot open {role}{path}: {error.strerror}") from None


def pack(model: Decoder, recipe: Recipe, tokenizer: Tokenizer) -> bytes:
    """The whole file."""
    packed = pack_tokenizer(words.files(tokenizer))
    head = json.dumps({"recipe": recipe.to_dict(), "tokenizer": len(packed)}, separators=(",", ":")).encode()
    parts = [struct.pack("<I", len(head)), head, packed]
    for parameter in model.parameters():
        w = parameter.detach().float().numpy()
        if w.ndim == 1:
            parts.append(w.astype("<f2").tobytes())
            continue
        scale = (np.abs(w).max(1) / 127).astype("<f2")
        rows = scale.astype(np.float32)[:, None]
        q = np.divide(w, rows, out=np.zeros_like(w), where=rows > 0)
        parts += [scale.tobytes(), np.rint(q).clip(-127, 127).astype(np.int8).tobytes()]
    return MAGIC + zlib.compress(b"".join(parts), 9)


def unpack(data: bytes) -> tuple[Decoder, Recipe, Tokenizer]:
    """The model that the file stands for, in eval mode. FormatError for one that is damaged."""
    if data[: len(MAGIC)] != MAGIC:
        raise FormatError(f"not a golf file of 8 bits and zlib (it starts with {data[:4]!r}, not {MAGIC!r})")
    try:
        body = records.inflate_at_most(data[len(MAGIC) :], LIMIT)
        (length,) = struct.unpack_from("<I", body)
        head = json.loads(body[4 : 4 + length])
        recipe, size = Recipe.from_dict(head["recipe"]), head["tokenizer"]
        at = 4 + length + size
        tokenizer = Tokenizer.from_str(unpack_tokenizer(body[4 + length : at])["tokenizer.json"].decode())
        model = Decoder(recipe, tokenizer.get_vocab_size())
        with torch.no_grad():
            for parameter in model.parameters():
                values = np.frombuffer(body, "<f2", parameter.shape[0], at).astype(np.float32)
                at += 2 * len(values)
                if parameter.ndim == 2:
                    q = np.frombuffer(body, np.int8, parameter.numel(), at).reshape(parameter.shape)
                    at += q.size
                    values = q * values[:, None]
                parameter.copy_(torch.from_numpy(values))
    except (FormatError, SpratError) as error:
        raise FormatError(f"a damaged golf file: {error}") from None
    except Exception as error:  # struct, JSON, numpy and tokenizers raise many types for a broken file
        raise FormatError(f"a damaged golf file: {type(error).__name__}: {error}") from None
    if at != len(body):
        raise FormatError(f"a damaged golf file: {len(body) - at} bytes follow the last tensor")
    return model.eval(), recipe, tokenizer
