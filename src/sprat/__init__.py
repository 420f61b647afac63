"""sprat fits a language model into the bytes you have, proves what that cost, and runs the result.

The verbs of the command line are the functions of this module: `load`, `fit`, `plan`, `open`, `prove`,
`sweep`, `export`. They are imported when first used, so that `import sprat` needs neither torch nor time.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sprat.errors import SpratError

if TYPE_CHECKING:
    from sprat.coding.container import open as open
    from sprat.fit import fit as fit
    from sprat.plan import plan as plan
    from sprat.prove.proof import prove as prove
    from sprat.run.export import export as export
    from sprat.source.load import load as load
    from sprat.sweep import sweep as sweep

__version__ = "0.1.0"

#: verb -> the module that holds the function of that name
_VERBS = {
    "load": "sprat.source.load",
    "fit": "sprat.fit",
    "plan": "sprat.plan",
    "open": "sprat.coding.container",
    "prove": "sprat.prove.proof",
    "sweep": "sprat.sweep",
    "export": "sprat.run.export",
}
#: what `pip install 'sprat[fit]'` brings
_FIT_EXTRA = {"torch", "transformers", "safetensors", "gguf", "huggingface_hub"}

__all__ = ["SpratError", "__version__", "export", "fit", "load", "open", "plan", "prove", "sweep"]


def __getattr__(name: str) -> Any:
    if name not in _VERBS:
        raise AttributeError(f"module 'sprat' has no attribute {name!r}")
    try:
        function = getattr(importlib.import_module(_VERBS[name]), name)
    except ModuleNotFoundError as error:
        raise missing(error) from error
    globals()[name] = function
    return function


def __dir__() -> list[str]:
    return sorted(__all__)


def missing(error: ModuleNotFoundError) -> ImportError:
    """The same import failure, saying which install mends it."""
    name = (error.name or "").partition(".")[0]
    if name not in _FIT_EXTRA:
        return error
    return ModuleNotFoundError(f"this needs {name}: pip install 'sprat[fit]'", name=error.name)


class _Sprat(ModuleType):
    """Some verbs share their name with a folder or file of the package (`fit`, `prove`). Importing such a
    submodule would bind the module over the function; here the function stays."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _VERBS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Sprat
