"""What a fitted model must stay within: bytes on disk, bytes in memory, or both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sprat.coding.tensors import Entry
from sprat.errors import BudgetError
from sprat.run.price import weights_bytes
from sprat.sizes import format_bytes


@dataclass(frozen=True)
class Limits:
    """file, ram: bytes, one of them at least; cache: bytes of a key-value cache of `context` tokens, part of ram.

    first: which of the two is expected to be reached first, "file" or "ram".
    """

    file: int | None
    ram: int | None = None
    cache: int = 0
    context: int = 1
    first: str = "file"

    @property
    def target(self) -> int:
        """What `weight` is compared with."""
        found = self.ram if self.file is None or self.first == "ram" else self.file
        assert found is not None
        return found

    def memory(self, entries: Mapping[str, Entry], threads: int) -> int | None:
        """Bytes that running takes; None where that is not limited."""
        return None if self.ram is None else self.cache + weights_bytes(entries, threads)

    def weight(self, nbytes: int, memory: int | None) -> int:
        """The limit that is nearer to being reached, in bytes of `target`, by a file and what running it takes."""
        shares = [] if self.file is None else [nbytes / self.file]
        if self.ram is not None:
            assert memory is not None
            shares.append(memory / self.ram)
        return math.ceil(max(shares) * self.target)

    def refuse_memory(self, least: int, name: str, known: bool) -> None:
        """Raise BudgetError where the cache and `least` bytes of weights do not fit, saying what would.

        known: `least` is what the smallest fit takes, and not only less than that.
        """
        if self.ram is None or self.cache + least <= self.ram:
            return
        floor, tokens = self.cache + least, max(0, (self.ram - least) * self.context // self.cache)
        raise BudgetError(
            f"{name} with a context of {self.context:,} tokens ({format_bytes(self.cache)} of key-value cache) does "
            f"not fit into {self.ram:,} bytes of memory: the smallest budget that works is "
            f"{'' if known else 'above '}{floor:,} bytes ({format_bytes(floor)}); "
            + (
                f"beside hardly a weight, {'' if known else 'less than '}{tokens:,} tokens would fit"
                if tokens
                else "no context is short enough"
            )
        )
