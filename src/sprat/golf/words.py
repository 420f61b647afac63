"""The tokenizer of a golf: byte-level BPE trained on the training text, and documents as one stream of tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

#: Stands before every document, and so behind the one before: token 0.
MARK = "<|endoftext|>"
#: A conversation with a model that only continues text: what was said, one after the other.
CHAT = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
#: Characters that the trainer is given at once.
_PIECE = 1 << 16


def learn(documents: Sequence[str], vocabulary: int) -> Tokenizer:
    """A tokenizer of at most `vocabulary` tokens: MARK, 256 bytes, and merges (fewer where the text has no more)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[MARK],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_pieces(documents), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{MARK} $A", special_tokens=[(MARK, mark(tokenizer))]
    )
    return tokenizer


def files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """What a Hugging Face folder and a .sprat hold of it."""
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": MARK,
        "eos_token": MARK,
        "clean_up_tokenization_spaces": False,
    }
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
        "chat_template.jinja": CHAT.encode(),
    }


def mark(tokenizer: Tokenizer) -> int:
    """The id of MARK."""
    found = tokenizer.token_to_id(MARK)
    assert found is not None  # `learn` put it there
    return found


def stream(tokenizer: Tokenizer, documents: Sequence[str]) -> np.ndarray:
    """int32 (n,): every document behind its MARK, and one at the end.

    A MARK is a target as well: it ends the document before. What follows it is predicted from it on.
    """
    between = [mark(tokenizer)]
    parts = [[*between, *encode(tokenizer, document)] for document in documents]
    return np.concatenate([np.array(part, np.int32) for part in (*parts, between)])


def encode(tokenizer: Tokenizer, document: str) -> list[int]:
    """Tokens of a document, without marks: a MARK that the text spells out is text."""
    pieces = document.split(MARK)
    ids = tokenizer.encode(pieces[0], add_special_tokens=False).ids
    for piece in pieces[1:]:  # the library would take the spelling for the token
        for part in (MARK[:1], MARK[1:] + piece):
            ids += tokenizer.encode(part, add_special_tokens=False).ids
    return ids


def _pieces(documents: Sequence[str]) -> Iterator[str]:
    for document in documents:
        for start in range(0, len(document), _PIECE):
            yield document[start : start + _PIECE]
