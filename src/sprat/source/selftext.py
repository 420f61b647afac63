"""Calibration text that the model writes itself: nothing to download, any domain and language that it knows.

Half of the sequences are documents, from the token that starts one. The other half are conversations in the
model's own chat format, in which it writes the user's turns as well: no list of prompts, in whatever
language, is built in. All sequences advance one token a step, in one batch behind a key-value cache; what the
format prescribes is put in place of a sampled token. Sampling at temperature 1 draws from the very
distribution that a fit must preserve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from sprat.progress import Progress, silent
from sprat.source.decode import buffered_cache, decoding
from sprat.source.maps import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from sprat.source.load import Source

#: A user's turn is cut here: long enough for a task with its material, and room is left for the answer.
_USER_TOKENS = 128
#: Bound on the key-value cache of one batch.
_CACHE_BYTES = 1 << 30
_MARKS = ("\u2039first\u203a", "\u2039second\u203a", "\u2039third\u203a")


@dataclass(frozen=True)
class Chat:
    """What the chat template writes around the turns, in tokens."""

    opening: list[int]
    """Up to the first user turn."""
    to_assistant: list[int]
    to_user: list[int]


@dataclass
class _Sequence:
    """One sequence under way: `forced` tokens come before anything is sampled."""

    chat: Chat | None
    start: list[int]
    ends: frozenset[int]
    user_turn: bool = True
    length: int = 0
    forced: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.forced = list(self.chat.opening if self.chat else self.start)

    def take(self, sampled: int) -> int:
        """The next token: a forced one, or `sampled`, after which the format may force more."""
        if self.forced:
            return self.forced.pop(0)
        self.length += 1
        if self.chat is None:
            if sampled in self.ends and sampled not in self.start:
                self.forced = list(self.start)
        elif sampled in self.ends:
            self._turn(sampled)
        elif self.user_turn and self.length >= _USER_TOKENS:
            self._turn(None)
        return sampled

    def _turn(self, ended_by: int | None) -> None:
        assert self.chat is not None
        close = self.chat.to_assistant if self.user_turn else self.chat.to_user
        self.forced = close[1:] if close[0] == ended_by else list(close)
        self.user_turn, self.length = not self.user_turn, 0


def write(
    source: Source,
    contexts: int,
    length: int,
    *,
    seed: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    progress: Progress = silent,
) -> torch.Tensor:
    """Let the model write: int64 (contexts, length), the same for the same seed on the same machine."""
    chat = chat_format(source.tokenizer) if source.is_instruct else None
    start = document_start(source.tokenizer)
    ends = frozenset(_ends(source) | ({chat.to_assistant[0], chat.to_user[0]} if chat else set()))
    made = [_Sequence(chat if chat is not None and i % 2 else None, start, ends) for i in range(contexts)]
    generator = torch.Generator().manual_seed(seed)
    choose = sampler(generator, temperature, top_p)
    batch = max(1, min(contexts, _CACHE_BYTES // max(1, _cache_bytes(source.model, length))))
    batch = -(-contexts // -(-contexts // batch))  # equal batches
    parts = []
    for first in range(0, contexts, batch):
        group = made[first : first + batch]
        done = first * length

        def report(step: int, done: int = done, size: int = len(group)) -> None:
            progress("writing calibration text", done + step * size, contexts * length)

        parts.append(continue_all(source.model, group, length, choose, report))
    return torch.cat(parts)


def continue_all(
    model: PreTrainedModel,
    sequences: Sequence[_Sequence],
    length: int,
    choose: Callable[[torch.Tensor], torch.Tensor],
    report: Callable[[int], None],
) -> torch.Tensor:
    """Advance the sequences in step to `length` tokens each: int64 (sequences, length)."""
    ids = torch.empty((len(sequences), length), dtype=torch.long)
    past = buffered_cache(model, length)
    sampled = [0] * len(sequences)
    with torch.inference_mode(), evaluating(model), decoding(model):
        for step in range(length):
            ids[:, step] = torch.tensor([s.take(t) for s, t in zip(sequences, sampled, strict=True)])
            if step + 1 < length:
                last = ids[:, step : step + 1].to(model.device)
                logits = model(input_ids=last, past_key_values=past, use_cache=True).logits
                sampled = choose(logits[:, -1].cpu()).tolist()
            report(step + 1)
    return ids


def sampler(
    generator: torch.Generator, temperature: float, top_p: float
) -> Callable[[torch.Tensor], torch.Tensor]:
    """logits (rows, vocabulary) -> a sampled token for each row, int64 (rows,)."""

    def choose(logits: torch.Tensor) -> torch.Tensor:
        logits = logits.float()
        p = torch.softmax(logits if temperature == 1 else logits / temperature, dim=-1)
        if top_p < 1:
            ranked, order = p.sort(dim=-1, descending=True)
            ranked[ranked.cumsum(-1) - ranked > top_p] = 0
            return order.gather(-1, _draw(ranked, generator)).squeeze(-1)
        return _draw(p, generator).squeeze(-1)

    return choose


def _draw(p: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """By the inverse of the cumulative distribution: one random number a row instead of one a token."""
    total = p.cumsum(-1)
    u = torch.rand((len(p), 1), generator=generator) * total[:, -1:]
    return torch.searchsorted(total, u, right=True).clamp_(max=p.shape[-1] - 1)


def document_start(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The token that a document begins with: BOS, unless BOS is what opens the turns of a chat.

    Then it is the separator that most such models were trained with, or stands in the unknown token's place.
    """
    turns = "".join(_render(tokenizer) or ())
    vocabulary = tokenizer.get_vocab()
    for token in (tokenizer.bos_token, "<|endoftext|>", tokenizer.unk_token, tokenizer.eos_token):
        if token and token in vocabulary and token not in turns:
            return [vocabulary[token]]
    usual = [t for t in (tokenizer.bos_token_id, tokenizer.eos_token_id) if isinstance(t, int)]
    return usual[:1] or [0]


def chat_format(tokenizer: PreTrainedTokenizerFast) -> Chat | None:
    """The chat template taken apart around three turns; None where it will not be."""
    parts = _render(tokenizer)
    if parts is None:
        return None
    opening, to_assistant, to_user = (tokenizer.encode(p, add_special_tokens=False) for p in parts)
    return Chat(opening, to_assistant, to_user) if opening and to_assistant and to_user else None


def _render(tokenizer: PreTrainedTokenizerFast) -> tuple[str, str, str] | None:
    if not tokenizer.chat_template:
        return None
    roles = ("user", "assistant", "user")
    turns = [{"role": role, "content": mark} for role, mark in zip(roles, _MARKS, strict=True)]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # a template is a program and may raise anything
        return None
    assert isinstance(text, str)
    places = [text.find(mark) for mark in _MARKS]
    if -1 in places or places != sorted(places):
        return None
    first, second, third = places
    return text[:first], text[first + len(_MARKS[0]) : second], text[second + len(_MARKS[1]) : third]


def _ends(source: Source) -> set[int]:
    """Ids that end a text or a turn."""
    found: set[int] = set()
    for holder in (source.model.config, source.model.generation_config, source.tokenizer):
        value = getattr(holder, "eos_token_id", None)
        found |= set(value) if isinstance(value, list) else {value} if isinstance(value, int) else set()
    return found


def _cache_bytes(model: PreTrainedModel, length: int) -> int:
    """Keys and values of one sequence, in bytes."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * length * model.dtype.itemsize
