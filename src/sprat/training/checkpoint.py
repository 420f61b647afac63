"""A training run on disk: written whole or not at all, and refused by a run that it does not belong to."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sprat.errors import SpratError


@dataclass(frozen=True)
class Checkpoint:
    """Where a run is kept, and what it depends on."""

    path: Path
    key: Mapping[str, str]
    """What must be the same for a run to go on: inputs by their hash, settings as text."""
    every: float
    """Seconds between two of them."""

    def save(self, state: Mapping[str, Any]) -> None:
        """Write `state` (tensors, numbers and texts, nested) beside `path` and rename it."""
        handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", suffix=".part", dir=self.path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                torch.save({"key": dict(self.key), "state": dict(state)}, file)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self.path)
        except (OSError, RuntimeError) as error:  # torch.save wraps a full disk
            raise SpratError(f"cannot write the checkpoint {self.path}: {error}") from error
        finally:
            Path(name).unlink(missing_ok=True)

    def load(self) -> dict[str, Any]:
        """What was saved; SpratError where there is none, it is damaged, or another run's."""
        if not self.path.is_file():
            raise SpratError(f"there is no checkpoint {self.path} to go on from: start without --resume")
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)
            key, state = found["key"], found["state"]
        except Exception as error:  # torch, zipfile and pickle raise many types for a damaged file
            raise SpratError(f"the checkpoint {self.path} is damaged: {type(error).__name__}") from error
        if other := [name for name in {**key, **self.key} if key.get(name) != self.key.get(name)]:
            name = other[0]
            raise SpratError(
                f"the checkpoint {self.path} is of another run: its {name} is {key.get(name, 'not said')}, this "
                f"one's {self.key.get(name, 'not said')}. Start without --resume, or with the same arguments"
            )
        return state

    def remove(self) -> None:
        """The run is over."""
        self.path.unlink(missing_ok=True)
