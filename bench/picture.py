"""quality.svg: KL against bytes on disk, sprat's curves and every peer's points."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.curve import curves
from bench.plots import pyplot

#: Peers by colour and mark.
PEERS = {
    "rtn": ("round to nearest", "#7f7f7f", "s"),
    "gptq": ("GPTQ", "#d9822b", "^"),
    "hqq": ("HQQ", "#8a5fbf", "D"),
    "autoround": ("AutoRound", "#2e8b57", "v"),
    "torchao": ("torchao", "#8b6f47", "P"),
    "llmcompressor": ("llm-compressor, GPTQ", "#c2a000", "<"),
    "llamacpp": ("llama.cpp, importance matrix", "#b03060", "X"),
}
#: Filled where the head has the layers' bits, open where it has more; llama.cpp's types choose their own.
HEADS = {"same": ", head at the same bits", "8": ", head 8 bits", "bf16": ", head bf16", None: ""}
#: Points above this KL are left out: nothing is left of a model there, and the others would be squeezed.
WORST = 4.0
SPRAT = {
    "self": ("sprat, text that the model wrote", "-", "#005f9e"),
    "in-domain": ("sprat, text of the evaluation's kind", "--", "#0090c4"),
    "other": ("sprat, other text", ":", "#005f9e"),
}


def draw(rows: Mapping[str, dict[str, Any]], path: Path, title: str) -> None:
    """Write the picture; the format follows the name (.svg, .png)."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(8.4, 5.2))
    for calibration, points in curves(rows).items():
        label, line, colour = SPRAT[calibration]
        x, y = [b / 1e6 for b, _ in points], [kl for _, kl in points]
        axes.plot(x, y, line, color=colour, lw=2.2, marker="o", ms=5, label=label, zorder=4)
    for method, (label, colour, mark) in PEERS.items():
        found = [r for r in rows.values() if r["method"] == method and "failed" not in r]
        found = [r for r in found if r["kl"]["value"] <= WORST]
        for head, words in HEADS.items():
            some = [r for r in found if r["settings"].get("head") == head]
            face = colour if head in ("same", None) else "white"
            if some:
                axes.plot(
                    [r["bytes"] / 1e6 for r in some],
                    [r["kl"]["value"] for r in some],
                    mark,
                    color=colour,
                    mfc=face,
                    ms=7,
                    label=f"{label}{words}",
                    zorder=3,
                )
                _name(axes, some, colour)
    axes.margins(x=0.08)  # room for the names
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("whole file, MB on disk")
    axes.set_ylabel("KL to the original, nats a token")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(True, which="major", color="#dddddd")
    axes.grid(True, which="minor", axis="y", color="#f0f0f0")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper right", fontsize=8, framealpha=0.95)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def _name(axes: Any, rows: list[dict[str, Any]], colour: str) -> None:
    """The type, or the bits beside the best row of each width."""
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        s = row["settings"]
        name = s["type"].replace("+embedding", "+emb.") if "type" in s else f"{s['bits']}b"
        if name not in best or row["kl"]["value"] < best[name]["kl"]["value"]:
            best[name] = row
    for name, row in best.items():
        at = (row["bytes"] / 1e6, row["kl"]["value"])
        axes.annotate(name, at, (6, 3), textcoords="offset points", fontsize=7.5, color=colour)
