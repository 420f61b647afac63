"""matplotlib, as every picture of a record wants it."""

from __future__ import annotations

from typing import Any

from sprat.errors import SpratError


def pyplot() -> Any:
    """matplotlib.pyplot without a screen, with SVG of the same bytes for the same figures.

    SpratError where it is not installed.
    """
    try:
        import matplotlib  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise SpratError("the picture was not drawn: pip install 'sprat[bench]' brings matplotlib") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt  # pyright: ignore[reportMissingImports]

    plt.rcParams.update({"svg.hashsalt": "sprat", "font.size": 10, "svg.fonttype": "none"})
    return plt
