"""Models and texts come in: `load` reads a model, `calibration_ids` the text to measure it on.

Nothing here is imported before it is used: torch and transformers belong to the `fit` extra.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sprat.source.load import Source as Source
    from sprat.source.load import load as load
    from sprat.source.maps import decoder_layers as decoder_layers
    from sprat.source.maps import groups as groups
    from sprat.source.maps import head as head
    from sprat.source.maps import linear_maps as linear_maps
    from sprat.source.text import Calibration as Calibration
    from sprat.source.text import calibration_ids as calibration_ids

_WHERE = {
    "Source": "load",
    "load": "load",
    "decoder_layers": "maps",
    "groups": "maps",
    "head": "maps",
    "linear_maps": "maps",
    "Calibration": "text",
    "calibration_ids": "text",
}

__all__ = [
    "Calibration",
    "Source",
    "calibration_ids",
    "decoder_layers",
    "groups",
    "head",
    "linear_maps",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'sprat.source' has no attribute {name!r}")
    # Functions of submodules, `load` among them: the import binds the submodule here first, so bind over it.
    value = getattr(importlib.import_module(f"sprat.source.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
