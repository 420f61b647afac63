"""An original's predictions on disk, so that several files are proven against one run of it.

What is kept is not the logits (at 49,152 tokens 200 kB a position) but what the head makes them of: the last hidden
state, 2.3 kB a position at a width of 576. The head is applied again to the same numbers, so nothing is lost;
whether that gives the model's own logits is checked when they are first had. A model of which it is not true (one
that scales or caps its logits behind the head) is simply run each time.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sprat.folders import cache_root
from sprat.progress import Progress, silent
from sprat.prove.metrics import keeps_few
from sprat.prove.text import Contexts

#: The largest difference from the model's own logits, in nats.
TOLERANCE = 1e-4
_DIGEST = hashlib.sha256().digest_size


def remember(
    model: nn.Module, digest: str, contexts: Contexts, progress: Progress = silent, root: Path | None = None
) -> nn.Module:
    """A module that predicts what `model` predicts on `contexts`, from disk; `model` itself where that cannot be.

    digest: the hash of the model's weights. root: where it is kept, default the cache folder. A file that is
    damaged or of another size is made again.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if not isinstance(head, nn.Module) or not keeps_few(model):
        return model
    kept = _Kept(model, head, contexts)
    path = (root or cache_root() / "predictions") / f"{_key(model, digest, contexts)}.hidden"
    if not kept.opens(path):
        if not kept.agrees():
            return model
        try:
            kept.make(path, progress)
        except OSError:  # a full disk: nothing is remembered
            return model
    return kept


class _Kept(nn.Module):
    """Answers for a model on the contexts that it has seen."""

    def __init__(self, model: nn.Module, head: nn.Module, contexts: Contexts):
        super().__init__()
        self.model, self.head = [model], head  # in a list: not a part of this module
        rows = contexts.mask.sum(axis=1) + 1
        self.ids = [row[: contexts.skip + n] for row, n in zip(contexts.ids, rows, strict=True)]
        self.places = {row.tobytes(): i for i, row in enumerate(self.ids)}
        self.ends = np.cumsum(rows).tolist()
        weight: Any = head.weight
        self.dtype: torch.dtype = weight.dtype
        self.width = int(weight.shape[1])
        self.data = np.zeros(0, np.uint8)

    def forward(self, input_ids: Tensor, logits_to_keep: int = 0, use_cache: bool = False) -> Any:
        """The logits of the last `logits_to_keep` positions of one context, as a transformers model gives them."""
        place = self.places[input_ids[0].numpy().tobytes()]
        rows = slice(self.ends[place - 1] if place else 0, self.ends[place])
        item = self.width * self.dtype.itemsize
        raw = torch.from_numpy(np.array(self.data[rows.start * item : rows.stop * item]))
        hidden = raw.view(self.dtype).reshape(-1, self.width)
        return SimpleNamespace(logits=self.head(hidden[None, -logits_to_keep:]))

    @torch.inference_mode()
    def agrees(self) -> bool:
        """Whether the head's logits are the model's, on the first context."""
        hidden = self._hidden(0)
        if hidden is None or hidden.dtype != self.dtype or hidden.shape[1] != self.width:
            return False
        ids = torch.from_numpy(self.ids[0])[None]
        logits = self.model[0](input_ids=ids, use_cache=False, logits_to_keep=len(hidden)).logits[0].float()
        return torch.allclose(self.head(hidden).float(), logits, rtol=0, atol=TOLERANCE)

    def make(self, path: Path, progress: Progress) -> None:
        """Run the model on every context and keep what the head is given; written whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            total = hashlib.sha256()
            with os.fdopen(handle, "wb") as file:
                for i in range(len(self.ids)):
                    data = self._hidden(i).contiguous().view(torch.uint8).numpy().tobytes()
                    total.update(data)
                    file.write(data)
                    progress("the original's predictions", i + 1, len(self.ids))
                file.write(total.digest())
            Path(partial).replace(path)
        finally:
            Path(partial).unlink(missing_ok=True)
        self.data = np.memmap(path, np.uint8, "r")

    def opens(self, path: Path) -> bool:
        """Whether `path` holds them in full; then they are used."""
        size = self.ends[-1] * self.width * self.dtype.itemsize
        if not path.is_file() or path.stat().st_size != size + _DIGEST:
            return False
        data = np.memmap(path, np.uint8, "r")
        if hashlib.sha256(data[:size].tobytes()).digest() != data[size:].tobytes():
            return False
        self.data = data
        return True

    @torch.inference_mode()
    def _hidden(self, place: int) -> Any:
        """(rows, width): what the head is given for one context; None where the model does not tell."""
        rows = self.ends[place] - (self.ends[place - 1] if place else 0)
        body = getattr(self.model[0], "base_model", self.model[0])
        out = body(input_ids=torch.from_numpy(self.ids[place])[None], use_cache=False)
        hidden = getattr(out, "last_hidden_state", None)
        return None if hidden is None else hidden[0, -rows:]


def _key(model: nn.Module, digest: str, contexts: Contexts) -> str:
    """A name for all that the hidden states depend on."""
    on = {
        "model": digest,
        "ids": hashlib.sha256(contexts.ids.tobytes() + contexts.mask.tobytes()).hexdigest(),
        "skip": contexts.skip,
        "dtype": str(next(model.parameters()).dtype),
        "versions": [importlib.metadata.version(name) for name in ("torch", "transformers")],
    }
    return hashlib.sha256(json.dumps(on, sort_keys=True).encode()).hexdigest()[:32]
