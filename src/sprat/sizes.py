"""Budgets as people write them (`50MB`, `5.5GiB`, `40%`, `3.2bpw`) and sizes as people read them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sprat.errors import BudgetError, nearest

#: Bytes in each unit. Decimal units are powers of ten and binary units powers of two: `16MB` is 16,000,000.
UNITS = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
#: Tokens whose key-value cache a budget for memory covers by default.
CONTEXT = 2048
_BY_LOWER = {unit.lower(): unit for unit in UNITS} | {"": "B"}
_EXAMPLES = "50MB, 5.5GiB, 250kB, 500000, 40% or 3.2bpw"
#: A comma groups thousands and nothing else: `1,5MB` is not 15 MB. No size needs more than 32 digits.
_NUMBER = re.compile(
    r"\s*((?:[0-9]{1,3}(?:,[0-9]{3}){1,10}|[0-9](?:[0-9_]{0,30}[0-9])?)(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Za-z%]*)\s*"
)


@dataclass(frozen=True)
class Budget:
    """How large a whole file may be, in one of three kinds.

    kind "bytes": `value` bytes; "fraction": `value` of the original's size; "rate": `value` bits per weight.
    """

    value: float
    kind: str
    text: str

    def bytes(self, original_bytes: int, weights: int) -> int:
        """The budget in bytes for a model that weighs `original_bytes` and has `weights` parameters."""
        scale = {"bytes": 1.0, "fraction": float(original_bytes), "rate": weights / 8}[self.kind]
        return int(self.value * scale)

    def __str__(self) -> str:
        return self.text


def parse_budget(text: str) -> Budget:
    """Read a budget; raises `BudgetError` naming the nearest unit."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        point = " (a point stands before a fraction, commas between thousands)" if "," in text else ""
        raise BudgetError(f"{text!r} is no size{point}: write a number and a unit, such as {_EXAMPLES}")
    number, unit = float(re.sub("[,_]", "", match[1])), match[2]
    if number <= 0:
        raise BudgetError(f"a budget must be more than zero, not {text!r}")
    clean = text.strip()
    if unit == "%":
        if number > 100:
            raise BudgetError(f"{clean} is more than the original: a percentage lies between 0 and 100")
        return Budget(number / 100, "fraction", clean)
    if unit.lower() == "bpw":
        return Budget(number, "rate", clean)
    if unit.lower() not in _BY_LOWER:
        guess = nearest(unit.lower(), [*_BY_LOWER, "bpw"])
        for lower, proper in _BY_LOWER.items():
            guess = guess.replace(f"{lower!r}", f"{proper!r}") if lower else guess
        raise BudgetError(f"unknown unit {unit!r} in {clean!r}{guess}: write {_EXAMPLES}")
    value = number * UNITS[_BY_LOWER[unit.lower()]]
    if value < 1:
        raise BudgetError(f"{clean!r} is less than one byte")
    return Budget(float(int(value)), "bytes", clean)


def format_bytes(count: float) -> str:
    """`47.4 MB`, `250 kB`, `812 B`: three or four figures in decimal units."""
    size = abs(count)
    for unit in ("TB", "GB", "MB", "kB"):
        if size >= UNITS[unit]:
            scaled = count / UNITS[unit]
            return (
                f"{scaled:.0f} {unit}"
                if scaled == int(scaled)
                else f"{scaled:.{2 if abs(scaled) < 10 else 1}f} {unit}"
            )
    return f"{count:.0f} B"
