"""Errors that a user can act on: each names what failed, what is allowed, and the nearest match."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SpratError(Exception):
    """Base of every error that sprat raises on purpose."""


class SourceError(SpratError):
    """A model or a text cannot be read (missing, unsupported, broken, too short)."""


class BudgetError(SpratError):
    """A budget cannot be parsed or cannot be met."""


class FormatError(SpratError):
    """A `.sprat` file is not what it claims to be; the message names the section."""


class StatisticsError(SpratError):
    """The calibration statistics do not deserve trust (see docs/design.md, "A trap, measured")."""


class RecipeError(SpratError):
    """A recipe has an unknown key or a value outside its range."""


class TrainingError(SpratError):
    """A training cannot go on (its loss diverged)."""


class ProofError(SpratError):
    """Two models cannot be compared in the way that was asked."""


class UnsupportedError(SpratError):
    """An engine cannot compute this model; another one may."""


class RequestError(SpratError):
    """What is asked of a running model is outside what it allows; `setting` names the part that is wrong."""

    def __init__(self, message: str, setting: str | None = None):
        super().__init__(message)
        self.setting = setting


def nearest(name: str, allowed: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the closest allowed name, or an empty string."""
    match = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""
