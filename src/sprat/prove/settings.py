"""How a proof is measured: what a record keeps so that it can be measured again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprat.errors import ProofError
from sprat.prove import text as texts

if TYPE_CHECKING:
    from sprat.run.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Settings:
    """See `sprat.prove.proof.prove`."""

    tokens: int
    context: int
    skip: int
    dtype: str = "float32"
    seed: int = 0
    resamples: int = 2000
    layers: bool = False
    generations: int = 0
    speed: bool = False
    tasks: tuple[str, ...] = ()
    items: int | None = None

    def __post_init__(self) -> None:
        if self.context < 4:
            raise ProofError(f"a context must be at least 4 tokens, not {self.context}")
        if not 0 <= self.skip <= self.context - 2:
            raise ProofError(f"skip must lie between 0 and context − 2 = {self.context - 2}, not {self.skip}")
        if self.generations < 0:
            raise ProofError(f"generations must be 0 or more, not {self.generations}")
        if self.tokens < self.context:
            raise ProofError(f"tokens must be at least one context ({self.context}), not {self.tokens}")

    def contexts(self, tokenizer: TextTokenizer, sample: Sequence[texts.Text]) -> texts.Contexts:
        """The contexts of the texts that both models are run on."""
        prefix = tokenizer.prefix()
        if len(prefix) > self.skip:
            raise ProofError(
                f"skip must be at least {len(prefix)}: this model opens every text with that many tokens"
            )
        return texts.cut(
            tokenizer.backend, sample, length=self.context, skip=self.skip, tokens=self.tokens, prefix=prefix
        )

    def command(self, file: str | Path, against: str, text: Sequence[str | Path]) -> str:
        """The command line that measures the same."""
        words = ["sprat", "prove", str(file), "--against", against]
        for one in text:
            words += ["--text", str(one)]
        for name in ("tokens", "context", "skip", "dtype", "seed", "resamples", "generations"):
            words += [f"--{name}", str(getattr(self, name))]
        words += ["--layers"] if self.layers else []
        for task in self.tasks:
            words += ["--tasks", task]
        words += [] if self.items is None else ["--items", str(self.items)]
        words += [] if self.speed else ["--no-speed"]
        return shlex.join(words)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
