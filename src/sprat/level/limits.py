"""What a fitted model must stay within: bytes on disk, bytes in memory, or both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sprat.coding.container import Assembled
from sprat.coding.tensors import Entry
from sprat.errors import BudgetError
from sprat.level.rounding import Rounded
from sprat.run.price import weights_bytes
from sprat.sizes import format_bytes

#: Bits a weight that the run layout takes beyond the coded integers, without a trellis (docs/engine.md): only where the
#: search begins.
LAYOUT_BITS = 0.6
#: Bits a weight of a layout whose weights are all zero: its tags.
TAG_BITS = 0.05


@dataclass(frozen=True)
class Limits:
    """file, ram: bytes, one of them at least; cache: bytes of a key-value cache of `context` tokens, part of ram."""

    file: int | None
    ram: int | None = None
    cache: int = 0
    context: int = 1

    @property
    def target(self) -> int:
        """What `weight` is compared with."""
        found = self.file if self.file is not None else self.ram
        assert found is not None
        return found

    def memory(self, entries: Mapping[str, Entry], threads: int) -> int | None:
        """Bytes that running takes; None where that is not limited."""
        return None if self.ram is None else self.cache + weights_bytes(entries, threads)

    def weight(self, rounded: Rounded, file: Assembled, dense: Mapping[str, Entry], threads: int) -> int:
        """The limit that is nearer to being reached, in bytes of `target`."""
        shares = [] if self.file is None else [file.nbytes / self.file]
        if self.ram is not None:
            memory = self.memory({**dense, **rounded.entries}, threads)
            assert memory is not None
            shares.append(memory / self.ram)
        return math.ceil(max(shares) * self.target)

    def refuse_impossible_memory(self, weights: int) -> None:
        """Raise BudgetError where the cache and an empty layout do not fit, saying which context would."""
        if self.ram is None:
            return
        least = round(weights * TAG_BITS / 8)
        if self.cache + least > self.ram:
            tokens = max(0, (self.ram - least) * self.context // self.cache)
            raise BudgetError(
                f"{format_bytes(self.ram)} of memory do not hold a context of {self.context:,} tokens "
                f"({format_bytes(self.cache)} of key-value cache) and the model: at most {tokens:,} tokens would fit, "
                "with hardly a weight left; give more memory or a smaller context"
            )
