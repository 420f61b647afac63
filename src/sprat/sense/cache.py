"""Statistics on disk, a file a layer, so that a fit can be resumed and a second budget costs no second pass."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sprat.errors import SpratError
from sprat.folders import cache_root


class Cache:
    """A folder named after the hash of all that its content depends on."""

    def __init__(self, key: dict[str, Any], root: Path | None = None):
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        self.folder = (root or cache_root()) / digest

    def __contains__(self, name: str) -> bool:
        """Whether it is there in full length; a damaged file is removed."""
        path = self._path(name)
        if not path.is_file():
            return False
        try:
            with safe_open(path, framework="pt"):
                return True
        except (SafetensorError, OSError):
            path.unlink(missing_ok=True)
            return False

    def put(self, name: str, records: dict[str, Any]) -> None:
        """Store dataclasses of tensors and integers by name, atomically; SpratError where there is no room."""
        tensors, numbers = {}, {}
        for key, record in records.items():
            assert is_dataclass(record) and not isinstance(record, type)
            for field in (f.name for f in fields(record)):
                value = getattr(record, field)
                if isinstance(value, int):
                    numbers[f"{key}|{field}"] = str(value)
                else:
                    tensors[f"{key}|{field}"] = value.contiguous()
        path, temporary = self._path(name), None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
            os.close(handle)
            # Of no tensors and no numbers, safetensors writes what it cannot read, unless it is given None.
            save_file(tensors, temporary, metadata=numbers or None)
            Path(temporary).replace(path)
        except (SafetensorError, OSError) as error:
            raise SpratError(
                f"cannot write into the cache {path.parent}: {error}; SPRAT_CACHE names another folder"
            ) from error
        finally:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)

    def get(self, name: str, kind: type) -> dict[str, Any]:
        """What `put` stored, as instances of the dataclass `kind`. A damaged file is removed and is a KeyError."""
        path = self._path(name)
        found: dict[str, dict[str, Any]] = {}
        try:
            with safe_open(path, framework="pt") as file:
                for full in file.keys():  # noqa: SIM118 (no mapping)
                    key, field = full.split("|")
                    found.setdefault(key, {})[field] = file.get_tensor(full)
                for full, value in (file.metadata() or {}).items():
                    key, field = full.split("|")
                    found[key][field] = int(value)
        except (SafetensorError, OSError, KeyError, ValueError):
            path.unlink(missing_ok=True)
            raise KeyError(name) from None
        names = {f.name for f in fields(kind)}
        return {key: kind(**{k: v for k, v in values.items() if k in names}) for key, values in found.items()}

    def numbers(self, name: str, field: str) -> dict[str, int]:
        """The integer `field` of each of the records that `put` stored, none of their tensors read."""
        with safe_open(self._path(name), framework="pt") as file:
            found = {
                full.split("|")[0]: value
                for full, value in (file.metadata() or {}).items()
                if full.endswith(f"|{field}")
            }
        return {key: int(value) for key, value in found.items()}

    def _path(self, name: str) -> Path:
        return self.folder / f"{name.replace('/', '-')}.safetensors"
