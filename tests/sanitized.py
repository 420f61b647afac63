"""A pytest plugin (`-p sanitized`): the tests run on the native module that $SPRAT_CORE names, built with sanitizers.

`make test-native` sets it up. The module takes the place of `sprat._core` before anything imports that.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import sprat

_path = Path(os.environ["SPRAT_CORE"])
if not all(name in _path.read_bytes() for name in (b"__asan_init", b"__ubsan_handle")):
    raise RuntimeError(f"{_path} is not built with AddressSanitizer and UBSan")
if "sprat._core" in sys.modules:
    raise RuntimeError("sprat._core was imported before the plugin: give -p sanitized on the command line")
_spec = importlib.util.spec_from_file_location("sprat._core", _path)
assert _spec is not None and _spec.loader is not None
sys.modules["sprat._core"] = sprat._core = importlib.util.module_from_spec(_spec)  # type: ignore[attr-defined]
_spec.loader.exec_module(sprat._core)  # type: ignore[attr-defined]


def pytest_report_header() -> str:
    return f"sprat._core: {_path}, with AddressSanitizer and UBSan"
