"""A transformers model that answers requests: batched, and with a context that several share read once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from sprat.errors import ProofError
from sprat.progress import Progress, silent
from sprat.prove.tasks.requests import Answer, Request, Words

if TYPE_CHECKING:
    import torch

#: Tokens of a batch, padding included; fewer where their logits would take more numbers than `_LOGITS`.
_TOKENS, _LOGITS = 512, 1 << 25
#: A shared context shorter than this is read again for each of its continuations, in a batch with others.
_SHARED = 16
#: Rows of logits in full precision at once.
_ROWS = 64


class TorchScorer:
    """`sprat.prove.tasks.requests.Scorer` through torch. `name` is what errors call the model."""

    def __init__(self, model: torch.nn.Module, words: Words, name: str = "original"):
        self._model: Any = model
        self.words, self._name = words, name
        config = self._model.config
        self.context = int(getattr(config, "max_position_embeddings", 0) or 8192)
        self._few = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        # A recurrent model's state cannot be repeated as keys and values can.
        self._shares = not getattr(model, "_is_stateful", False)
        self._batch = max(1, min(_TOKENS, _LOGITS // config.get_text_config().vocab_size))

    def score(
        self, requests: Sequence[Request], stage: str = "reading questions", progress: Progress = silent
    ) -> list[Answer]:
        import torch

        answers: dict[int, Answer] = {}
        total = sum(len(request.ids) for request in requests)
        done = 0
        progress(stage, 0, total)
        with torch.inference_mode():
            for shared, batch in self._batches(requests):
                rows = [requests[i] for i in batch]
                answers.update(zip(batch, self._together(rows, shared), strict=True))
                done += sum(len(row.ids) for row in rows)
                progress(stage, done, total)
        return [answers[i] for i in range(len(requests))]

    def _batches(self, requests: Sequence[Request]) -> list[tuple[int, list[int]]]:
        """(tokens of the context to read once, numbers of the requests): neighbours that share a context stay
        together where that saves work, all others are sorted by length."""
        batches: list[tuple[int, list[int]]] = []
        alone: list[int] = []
        for context, group in groupby(range(len(requests)), lambda i: requests[i].context):
            numbers, shared = list(group), len(context) - 1
            if self._shares and shared >= _SHARED and len(numbers) > 1:
                behind = max(len(requests[i].ids) for i in numbers) - shared
                size = max(1, self._batch // behind)
                batches += [(shared, numbers[at : at + size]) for at in range(0, len(numbers), size)]
            else:
                alone += numbers
        alone.sort(key=lambda i: -len(requests[i].ids))
        while alone:
            size = max(1, self._batch // len(requests[alone[0]].ids))
            batches.append((0, alone[:size]))
            del alone[:size]
        return batches

    def _together(self, requests: Sequence[Request], shared: int) -> list[Answer]:
        """Read `requests`, the first `shared` tokens of all of them once, the rest padded at the right, where
        causal attention does not look."""
        import torch

        cache = None
        if shared:
            from transformers import DynamicCache

            # Without the config every layer keeps all its tokens; windows are then cut by the attention mask.
            cache = DynamicCache()
            self._forward(torch.tensor([requests[0].ids[:shared]]), cache, 1)
            cache.batch_repeat_interleave(len(requests))
        rows = [request.ids[shared:] for request in requests]
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
        first = min(request.start - shared for request in requests)
        logits = self._forward(ids, cache, width - first)
        return [
            self._answer(logits[i, request.start - shared - first :], request.continuation)
            for i, request in enumerate(requests)
        ]

    def _forward(self, ids: torch.Tensor, cache: Any, keep: int) -> torch.Tensor:
        """ids (batch, length) behind `cache` -> logits (batch, keep, vocabulary) of the last `keep`."""
        options = {"logits_to_keep": keep} if self._few else {}
        out = self._model(input_ids=ids, past_key_values=cache, use_cache=cache is not None, **options)
        return out.logits[:, -keep:]

    def _answer(self, logits: torch.Tensor, continuation: Sequence[int]) -> Answer:
        """From logits (at least len(continuation), vocabulary)."""
        import torch

        total, greedy = 0.0, True
        targets = torch.tensor(continuation)
        for rows, right in zip(logits[: len(targets)].split(_ROWS), targets.split(_ROWS), strict=True):
            logprobs = rows.float().log_softmax(-1).gather(1, right[:, None])
            if not logprobs.isfinite().all():
                raise ProofError(
                    f"the {self._name} model gave logits that are not finite: nothing was measured"
                )
            total += float(logprobs.double().sum())
            greedy = greedy and bool((rows.argmax(-1) == right).all())
        return Answer(total, greedy)

    def write(self, ids: Sequence[int], most: int, stop: Callable[[list[int]], bool]) -> list[int]:
        import torch
        from transformers import DynamicCache

        cache, given, written = DynamicCache(), list(ids), []
        with torch.inference_mode():
            while len(written) < min(most, self.context - len(ids)) and not (written and stop(written)):
                token = int(self._forward(torch.tensor([given]), cache, 1)[0, -1].argmax())
                if token in self.words.ends:
                    break
                written.append(token)
                given = [token]
        return written
