"""The work list: every row that the benchmark measures, in the order in which it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SECTIONS = ("sprat", "peers", "ablations")
#: What each ablation changes in the recipe. All but the last are measured without healing, which would win a part of
#: each loss back and costs more time than the rounding; BASE is what they are compared with.
BASE = "healing off"
ABLATIONS: dict[str, dict[str, Any]] = {
    BASE: {},
    "column steps off": {"column_steps": False},
    "row steps off": {"row_steps": False},
    "feedback off": {"feedback": False},
    "feedback across rows off": {"row_feedback": False},
    "rate weight 0": {"rate_weight": 0.0},
    "rate weight 1": {"rate_weight": 1.0},
    "shrinkage 1": {"shrinkage": 1.0},
    "sequential on": {"sequential": True, "sequential_strength": 0.5},
    "trellis 8": {"trellis": 8},
    "no trellis": {"trellis": 0},
    "no trellis, descending order": {"trellis": 0, "order": "descending"},
    "50 % zeros": {"sparsity": "0.5"},
    "2:4": {"sparsity": "2:4"},
    "4:8": {"sparsity": "4:8"},
    "4k tokens": {"tokens": 4096},
    "16k tokens": {"tokens": 16384},
    "64k tokens": {"tokens": 65536},
    "sequences of 512": {"context": 512, "held_out": 4},
    "sequences of 512, healed": {"context": 512, "held_out": 4, "heal": 32},
}


@dataclass(frozen=True)
class Row:
    """One thing to measure. method: "sprat" or a peer; settings: what makes this row this row."""

    section: str
    method: str
    label: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The row's key in the record."""
        words = [f"{k}={v}" for k, v in self.settings.items() if k != "recipe"]
        return "-".join([self.method, *words]).replace(" ", "_")


def sprat_rows(budgets: Sequence[str], calibrations: Sequence[str]) -> list[Row]:
    return [
        Row("sprat", "sprat", f"sprat {b}, {c}", {"budget": b, "calibration": c})
        for c in calibrations
        for b in budgets
    ]


def base_name(budget: str) -> str:
    """The key of the row that the ablations at `budget` are compared with."""
    return ablation_rows(budget)[0].name


def ablation_rows(budget: str, tokens: int = 0) -> list[Row]:
    """All at one budget on `self` text; tokens: of those rows that do not set them."""
    return [
        Row(
            "ablations",
            "sprat",
            label,
            {
                "budget": budget,
                "calibration": "self",
                "ablation": label,
                "recipe": {"tokens": tokens, "heal": 0} | change,
            },
        )
        for label, change in ABLATIONS.items()
    ]


def peer_rows() -> list[Row]:
    """Group 64 with the head at the same and at 8 bits, group 128 with it at the same.

    What shares its layers, and what shares its calibration text, stands together: it is made once.
    """
    rows = []
    for group in (64, 128):
        heads = ("same", "8") if group == 64 else ("same",)
        for bits in (2, 3, 4, 8):
            for method in ("rtn", "hqq", "gptq") if bits < 8 else ("rtn",):
                given = {"act_order": True, "calibration": "self"} if method == "gptq" else {}
                for head in heads if bits < 8 else ("same",):
                    rows.append(_peer(method, {"bits": bits, "group": group, "head": head} | given))
    for given in (
        {"act_order": False, "calibration": "self"},
        {"act_order": True, "calibration": "in-domain"},
    ):
        rows += [_peer("gptq", {"bits": bits, "group": 64, "head": "8"} | given) for bits in (2, 3, 4)]
    return rows


#: Those of the design's table, and those that lie between the files that work and those that are too coarse.
LLAMACPP = (
    "Q8_0", "Q4_K_M", "Q3_K_M", "IQ4_NL", "Q4_0", "IQ4_NL+embedding", "Q4_0+embedding", "IQ2_XXS", "IQ1_S", "TQ2_0",
    "Q2_0",
)  # fmt: skip


def other_peer_rows() -> list[Row]:
    """Whole files of other tools: llama.cpp's, and checkpoints that leave embedding and head in bf16."""
    rows = [
        Row(
            "peers", "llamacpp", f"llama.cpp {kind}, importance matrix", {"type": kind, "calibration": "self"}
        )
        for kind in LLAMACPP
    ]
    checkpoints: list[tuple[str, str, tuple[int, ...], dict[str, Any]]] = [
        ("torchao", "torchao", (8, 4), {}),
        ("llmcompressor", "llm-compressor GPTQ", (4, 3, 2), {"calibration": "self"}),
        ("autoround", "AutoRound", (4, 3, 2), {"iters": 50, "calibration": "self"}),
    ]
    for method, name, widths, given in checkpoints:
        for bits in widths:
            group = 0 if method == "torchao" and bits == 8 else 64
            grain = f"group {group}" if group else "a scale a row"
            settings = {"bits": bits, "group": group, "head": "bf16"} | given
            rows.append(Row("peers", method, f"{name} {bits} bits, {grain}, head bf16", settings))
    return rows


def quick(rows: list[Row], base: str) -> list[Row]:
    """A row of every kind that is made quickly: two budgets, the first peers at 3 bits and a file of llama.cpp's, the
    row named `base` and two other ablations."""
    plain = {"bits": 3, "group": 64, "head": "8"}
    sprat = [r for r in rows if r.section == "sprat" and r.settings["calibration"] == "self"]
    chosen = sprat[:2]
    for method in ("rtn", "gptq", "hqq"):
        of_kind = [r for r in rows if r.method == method and plain.items() <= r.settings.items()]
        chosen += of_kind[:1]
    chosen += [r for r in rows if r.method == "llamacpp" and r.settings["type"] == "Q4_0"]
    labels = ("sequential on", "no trellis, descending order")
    return chosen + [r for r in rows if r.name == base or r.label in labels]


def _peer(method: str, settings: dict[str, Any]) -> Row:
    s = settings
    head = "8 bits" if s["head"] == "8" else "same"
    words = [f"{method.upper()} {s['bits']} bits, group {s['group']}, head {head}"]
    if "act_order" in s and not s["act_order"]:
        words.append("no act-order")
    if s.get("calibration") == "in-domain":
        words.append("in-domain")
    return Row("peers", method, ", ".join(words), settings)
