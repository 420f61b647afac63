"""The methods that sprat is measured beside, one file a peer.

Three kinds: rtn, gptq and hqq are functions from a weight matrix (and what they want to know of the inputs) to a
`Grouped` (bench/packed.py); autoround, torchao and llmcompressor save checkpoints of whole models
(bench/checkpoint.py); llamacpp.py is whole files and an engine of their own.
"""

from __future__ import annotations

import importlib
from typing import Any

from sprat.errors import SpratError


def package(name: str, extra: str) -> Any:
    """An optional package; `SpratError` that says how to get it. extra: of sprat, "" where the peer's file says how."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        how = f"pip install -c constraints.txt '.[{extra}]'" if extra else "see its file in bench/peers"
        raise SpratError(f"{name} is not installed ({error}): {how}") from error
