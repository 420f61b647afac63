"""The reference engine: any architecture that transformers knows, through torch, one session after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sprat.errors import RequestError
from sprat.run.model import to_torch

if TYPE_CHECKING:
    from sprat.coding.container import Artifact

#: Longest text where the config names no limit.
UNLIMITED_CONTEXT = 8192


class TorchSession:
    """A text and its key-value cache."""

    def __init__(self, context: int):
        from transformers import DynamicCache

        self.context = context
        # Without the config every layer keeps all its tokens, sliding windows too: those of the window alone
        # could not be rewound. The window is then cut by the attention mask.
        self.cache: Any = DynamicCache()
        self.length = 0

    def rewind(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise RequestError(f"cannot rewind to {length} tokens: the session has {self.length}")
        if length < self.length:
            self.cache.crop(length - self.length)  # a negative number is how many to drop
            self.length = length

    def close(self) -> None:
        self.cache, self.length = None, 0


class TorchEngine:
    """`sprat.run.engine.Engine` through torch, in `dtype` on the CPU."""

    name = "torch"

    def __init__(
        self,
        artifact: Artifact,
        threads: int | None = None,
        context: int | None = None,
        dtype: str = "float32",
        why: str = "",
    ):
        """context: default and upper limit what the config names. why: see `sprat.run.engine.why`."""
        import torch

        config = artifact.config
        longest = config.get("max_position_embeddings") or config.get("n_positions") or UNLIMITED_CONTEXT
        self.context = check_context(context, int(longest))
        if threads is not None:
            torch.set_num_threads(threads)
        self.threads = torch.get_num_threads()
        self.model = to_torch(artifact, dtype)
        self._head: Any = self.model.get_output_embeddings()
        self.vocabulary: int = self._head.weight.shape[0]
        self.kernel = f"{dtype} dense"
        self.why = why

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that one decoded token reads: all but the rows of an untied embedding and other experts."""
        from sprat.source.experts import mixtures

        total = sum(p.numel() * p.element_size() for p in self.model.parameters())
        for mixture in mixtures(self.model).values():
            size = sum(p.numel() * p.element_size() for p in mixture.parameters())
            total -= size * (len(mixture) - mixture.chosen) // len(mixture)
        embedding: Any = self.model.get_input_embeddings()
        table = embedding.weight
        return total if table is self._head.weight else total - table.numel() * table.element_size()

    def session(self, context: int | None = None) -> TorchSession:
        return TorchSession(check_context(context, self.context))

    def step(self, sessions: Sequence[Any], ids: Sequence[Sequence[int]]) -> np.ndarray:
        self._check_open(sessions, ids)
        out = np.empty((len(sessions), self.vocabulary), np.float32)
        for row, session, new in zip(out, sessions, ids, strict=True):
            row[:] = self._append(session, new, last=True)[-1]
        return out

    def step_all(self, sessions: Sequence[Any], ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
        self._check_open(sessions, ids)
        return [self._append(session, new, last=False) for session, new in zip(sessions, ids, strict=True)]

    def _append(self, session: Any, ids: Sequence[int], last: bool) -> np.ndarray:
        """float32 (1 if last else len(ids), vocabulary)."""
        try:
            logits = self._forward(ids, session.cache, last)
        except BaseException:  # some layers may hold the new tokens and some not
            session.close()
            raise
        session.length += len(ids)
        return logits

    def all_logits(self, ids: Sequence[int]) -> np.ndarray:
        self._check(ids, 0, self.context)
        return self._forward(ids, None, last=False)

    def _forward(self, ids: Sequence[int], cache: Any, last: bool) -> np.ndarray:
        """float32 (1 if last else len(ids), vocabulary)."""
        import torch

        with torch.inference_mode():
            out = self.model(
                input_ids=torch.tensor([list(ids)]),
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=1 if last else 0,
            )
        return out.logits[0].float().numpy()

    def _check_open(self, sessions: Sequence[Any], ids: Sequence[Sequence[int]]) -> None:
        """All or none: no session moves before all are right."""
        if len(sessions) != len(ids):
            raise RequestError(f"{len(sessions)} sessions, but {len(ids)} lists of tokens")
        if len({id(session) for session in sessions}) != len(sessions):
            raise RequestError("a session stands twice in one step")
        for session, new in zip(sessions, ids, strict=True):
            self._check(new, session.length, session.context)
            if session.cache is None:
                raise RequestError("the session is closed")

    def _check(self, ids: Sequence[int], length: int, context: int) -> None:
        if not ids:
            raise RequestError("a step needs at least one token")
        if length + len(ids) > context:
            raise RequestError(f"{length} + {len(ids)} tokens do not fit into a context of {context}")
        if not 0 <= min(ids) <= max(ids) < self.vocabulary:
            raise RequestError(f"a token is outside the vocabulary of {self.vocabulary}")


def check_context(asked: int | None, longest: int) -> int:
    """`asked` where it is given and possible, else `longest`."""
    if asked is None:
        return longest
    if not 1 <= asked <= longest:
        raise RequestError(f"context must lie between 1 and {longest} tokens, not {asked}", "context")
    return asked
