"""Formulas: the text of an equation.

    network = part { ";" part }        part = [ group ":" ] sum
    sum     = product { "+" product }  product = factor { "@" factor }
    factor  = name [ "(" argument { "," argument } ")" ] | "(" sum ")"
    argument = whole number | sum

    dense                                            shared(dense) + lowrank(4)
    attention: monarch(8); ffn: polynomial(2, lowrank(16)); embedding: lowrank(64)

A sum stands for W = A + B, "@" for W = A B; names are those of terms/. What `str` prints of a term reads back as it.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, fields

from sprat.equations.term import Term, add, multiply
from sprat.equations.terms import TERMS
from sprat.errors import RecipeError, nearest

#: The largest number in a formula.
LARGEST = 65536
LONGEST, DEEPEST = 2000, 12
_TOKEN = re.compile(r"\s*(?:(?P<name>[A-Za-z_]\w*)|(?P<number>[0-9]+)|(?P<sign>[()+@,]))")


def parse(text: str) -> Term:
    """The term that a formula stands for; RecipeError says what is wrong, where, and the nearest name."""
    reader = _Reader(text)
    term = reader.sum()
    if reader.token is not None:
        reader.fail(f"{reader.token!r} where the formula should end")
    return term


class _Reader:
    """A formula under way: `token` is the next one, None at the end."""

    def __init__(self, text: str):
        if len(text) > LONGEST:
            raise RecipeError(f"an equation of {len(text)} characters is too long; at most {LONGEST}")
        self.text, self.at, self.token, self.depth = text, 0, "", 0
        self.start = 0
        self._next()

    def sum(self) -> Term:
        self.depth += 1
        if self.depth > DEEPEST:
            self.fail(f"more than {DEEPEST} parentheses inside each other")
        terms = [self._product()]
        while self._took("+"):
            terms.append(self._product())
        self.depth -= 1
        return add(terms)

    def fail(self, what: str) -> None:
        shown = self.text if len(self.text) <= 80 else f"{self.text[:77]}..."
        raise RecipeError(f"equation {shown!r}, character {self.start + 1}: {what}")

    def _product(self) -> Term:
        terms = [self._factor()]
        while self._took("@"):
            terms.append(self._factor())
        return multiply(terms)

    def _factor(self) -> Term:
        if self._took("("):
            term = self.sum()
            self._expect(")")
            return term
        name, start = self.token, self.start
        if name is None or not re.match(r"[A-Za-z_]", name):
            self.fail(f"a term should stand here, {'not ' + repr(name) if name else 'but the formula ends'}")
        assert name is not None
        if name not in TERMS:
            self.fail(f"unknown term {name!r}{nearest(name, TERMS)}: one of {', '.join(TERMS)}")
        self._next()
        given: list[int | Term] = []
        if self._took("("):
            given.append(self._argument())
            while self._took(","):
                given.append(self._argument())
            self._expect(")")
        self.start = start
        return self._made(TERMS[name], given)

    def _argument(self) -> int | Term:
        if self.token is None or not self.token.isdigit():
            return self.sum()
        value = int(self.token[:12])
        if not 1 <= value <= LARGEST:
            self.fail(f"{self.token} is not allowed: numbers are 1 to {LARGEST}")
        self._next()
        return value

    def _made(self, kind: type[Term], given: list[int | Term]) -> Term:
        wanted = fields(kind)  # type: ignore[arg-type]
        least = sum(f.default is MISSING for f in wanted)
        usage = f"{kind.name}({', '.join(f.name for f in wanted)})" if wanted else kind.name
        if not least <= len(given) <= len(wanted):
            self.fail(f"{kind.name} takes {least if least == len(wanted) else f'{least} to {len(wanted)}'} "
                      f"arguments, not {len(given)}: {usage}")  # fmt: skip
        for field, value in zip(wanted, given, strict=False):
            if isinstance(value, Term) != (field.type == "Term"):
                what = "a term" if field.type == "Term" else "a whole number"
                self.fail(f"{field.name} of {usage} is {what}, not {value}")
        return kind(*given)  # type: ignore[call-arg]

    def _took(self, sign: str) -> bool:
        if self.token != sign:
            return False
        self._next()
        return True

    def _expect(self, sign: str) -> None:
        if not self._took(sign):
            self.fail(f"{sign!r} is missing{f' before {self.token!r}' if self.token else ' at the end'}")

    def _next(self) -> None:
        match = _TOKEN.match(self.text, self.at)
        if match is None:
            rest = self.text[self.at :].lstrip()
            self.start = len(self.text) - len(rest)
            if rest:
                self.fail(f"{rest[0]!r} has no meaning here")
            self.token = None
            return
        self.token, self.at = match[match.lastgroup or 0], match.end()
        self.start = self.at - len(self.token)
