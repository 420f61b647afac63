"""A network of equations run a token at a time by its fast products alone: no dense matrix is ever made.

The factors are read from the file one after another into the precision of the processor's matrix units; the keys and
values of what was read are kept.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sprat.coding import container
from sprat.coding.tensors import expand
from sprat.equations.maps import head
from sprat.errors import UnsupportedError
from sprat.golf import MODEL_TYPE
from sprat.golf.model import Attention, Decoder, Layer, rotate, rotations
from sprat.golf.pretrained import GolfConfig
from sprat.progress import Progress, silent
from sprat.run.measure import read_bandwidth, resident_bytes

#: The array whose reading tells the memory's bandwidth.
ARRAY = 1 << 28


def load(path: Path, dtype: torch.dtype, progress: Progress = silent) -> Decoder:
    """The decoder of a file whose recipe has an equation; peak memory is its factors and one more."""
    with container.open(path) as artifact:
        if artifact.config.get("model_type") != MODEL_TYPE or not (artifact.config["blocks"] or {}).get(
            "equation"
        ):
            raise UnsupportedError(f"{path} is no network of equations")
        values = {name: value for name, value in artifact.config.items() if name != "model_type"}
        config = GolfConfig(**values)
        with torch.device("meta"):
            model = Decoder(config.recipe(), config.vocab_size)
        for done, name in enumerate(artifact.names, 1):
            for parameter, array in expand({name: artifact.entry(name)}).items():
                _put(model, parameter, torch.from_numpy(array), dtype)
            progress("reading factors", done, len(artifact.names))
        artifact.release_pages()
    return model.eval()


def _put(model: nn.Module, name: str, value: Tensor, dtype: torch.dtype) -> None:
    """Norms and other vectors stay in float32, as in training."""
    owner, _, last = name.rpartition(".")
    module = model.get_submodule(owner)
    old = module.get_parameter(last)
    kind = dtype if old.ndim == 2 else torch.float32
    module.register_parameter(last, nn.Parameter(value.reshape(old.shape).to(kind), requires_grad=False))


class Text:
    """A text under way: keys and values of every layer, (1, kv_heads, tokens, size) each."""

    def __init__(self, model: Decoder):
        self.model = model
        self.past: list[tuple[Tensor, Tensor] | None] = [None] * len(model.model.layers)
        self.length = 0

    @torch.inference_mode()
    def append(self, ids: list[int]) -> Tensor:
        """Logits behind the last of `ids`: (vocabulary,)."""
        trunk = self.model.model
        h = trunk.embed_tokens(torch.tensor([ids])).float()
        whole = rotations(self.length + len(ids), trunk.size, h.device)
        rope = whole[0][self.length :], whole[1][self.length :]
        for i, layer in enumerate(trunk.layers):
            assert isinstance(layer, Layer) and isinstance(layer.self_attn, Attention)
            h = h + self._attention(i, layer.self_attn, layer.input_layernorm(h), rope)
            h = h + layer.mlp(layer.post_attention_layernorm(h).to(self._dtype)).float()
        self.length += len(ids)
        return head(trunk.embed_tokens, trunk.norm(h[:, -1:]).to(self._dtype))[0, 0].float()

    @property
    def _dtype(self) -> torch.dtype:
        return self.model.model.embed_tokens.weight.dtype  # type: ignore[return-value]

    def _attention(self, i: int, layer: Attention, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        x, tokens = x.to(self._dtype), x.shape[1]

        def split(y: Tensor, heads: int) -> Tensor:
            return y.view(1, tokens, heads, layer.size).transpose(1, 2).float()

        q = rotate(layer.q_norm(split(layer.q_proj(x), layer.heads)), rope)
        k = rotate(layer.k_norm(split(layer.k_proj(x), layer.kv_heads)), rope)
        v = split(layer.v_proj(x), layer.kv_heads)
        if (past := self.past[i]) is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        self.past[i] = k, v
        later = torch.ones(tokens, k.shape[2], dtype=torch.bool).tril(k.shape[2] - tokens)
        y = nn.functional.scaled_dot_product_attention(
            q, k, v, later, enable_gqa=layer.heads != layer.kv_heads
        )
        return layer.o_proj(y.transpose(1, 2).reshape(1, tokens, -1).to(self._dtype)).float()


@dataclass(frozen=True)
class Speed:
    """resident, process, peak: bytes of the factors, of the process, and its most so far."""

    resident: int
    process: int
    peak: int
    tokens_per_second: float
    open_seconds: float
    bandwidth: float
    ids: list[int]


def measure(path: Path, threads: int, tokens: int, dtype: str = "bfloat16") -> Speed:
    """Load `path` and write `tokens` tokens, the likeliest each time. To be called in a process of its own."""
    import resource

    torch.set_num_threads(threads)
    started = time.perf_counter()
    model = load(path, getattr(torch, dtype))
    opened = time.perf_counter() - started
    text, ids = Text(model), [0]
    token = int(text.append(ids).argmax())  # the first one warms up
    started = time.perf_counter()
    for _ in range(tokens):
        ids.append(token)
        token = int(text.append([token]).argmax())
    spent = time.perf_counter() - started
    return Speed(
        resident=sum(p.numel() * p.element_size() for p in model.parameters()),
        process=resident_bytes(),
        peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        tokens_per_second=tokens / spent,
        open_seconds=opened,
        bandwidth=read_bandwidth(threads, ARRAY),
        ids=ids[1:],
    )


def figures(path: Path, threads: int, tokens: int) -> dict[str, Any]:
    """`measure` as plain values."""
    return vars(measure(path, threads, tokens))
