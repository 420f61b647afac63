"""The rows of bench.techniques: each technique at a size that suits it, and the water level at many."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

LEVEL = "water level"
#: Contexts that a healed row learns from, and the least tokens of the text that they are taken of.
HEAL_CONTEXTS, HEAL_TOKENS = 128, 65536
#: Of every fit: the default when the record was begun, so that rows that join it stand beside the others.
CALIBRATION = {"context": 512, "held_out": 4}


@dataclass(frozen=True)
class Row:
    """A technique. budget: of the whole file; recipe: what differs from the default; published: what others say."""

    name: str
    budget: str
    recipe: dict[str, Any] = field(default_factory=dict)
    published: str = ""
    bits: int = 0
    """Of what is rounded to nearest; 0 for what sprat makes."""
    peer: str = "rtn"
    """What rounds it: a module of bench/peers/."""
    group: int = 64
    """Weights that share a scale there."""
    head: str = "same"
    """The embedding's bits there, "same" for the layers'."""
    of: str = ""
    """The row whose file is healed; else a fit makes it."""
    contexts: int = HEAL_CONTEXTS
    """Of 512 tokens, that a healed row learns from."""
    rank: int = 0
    """Of the products beside the maps that a healed row trains too."""

    @property
    def file(self) -> str:
        """The name of the file that is made."""
        return file_of(self.name)


def file_of(name: str) -> str:
    """The name of a row's file."""
    words = name.replace("%", "percent").replace(":", "of").replace(",", "").replace("+", "and")
    return words.replace(" ", "-") + ".sprat"


def _bare(name: str, budget: str, published: str = "", **recipe: Any) -> Row:
    """Without healing."""
    return Row(name, budget, {"heal": 0} | CALIBRATION | recipe, published)


def _healed(
    name: str, budget: str, of: str, published: str = "", contexts: int = HEAL_CONTEXTS, rank: int = 0
) -> Row:
    return Row(name, budget, published=published, of=of, contexts=contexts, rank=rank)


def _signs(name: str, bits: int) -> Row:
    """Beside an embedding of 8 bits."""
    return Row(name, "", published="as above", bits=bits, peer="signs", group=128, head="8")


_CUT: dict[str, Any] = {"remove_layers": 5, "ffn": 0.85}
_BUDGETS = (134, 100, 85, 67, 55, 50, 45, 40, 34, 30, 20, 16)
ROWS = [
    Row("INT8", "", bits=8, published="no loss to speak of (LLM.int8(), 2208.07339)"),
    Row("INT4", "", bits=4, published="a few percent of perplexity from 7 B on (GPTQ, 2210.17323)"),
    _bare(
        "unstructured 50 %",
        "85MB",
        "LLaMA-7B: perplexity 5.7 to 7.2 (SparseGPT in 2306.11695)",
        sparsity="0.5",
    ),
    _bare("2:4", "85MB", "LLaMA-7B: perplexity 5.7 to 11.0 (SparseGPT in 2306.11695)", sparsity="2:4"),
    _bare("2:4 + 4 bits", "55MB", "press: half the size again", sparsity="2:4"),
    _bare(
        "structural",
        "85MB",
        "99 % of zero-shot accuracy at 70 B, 90 % at 3 B (SliceGPT, 2401.15024)",
        **_CUT,
    ),
    _healed(
        "structural, distilled",
        "85MB",
        "structural",
        "40 times fewer tokens than anew (Minitron, 2407.14679)",
    ),
    _bare("ternary", "45MB", "no loss from 3 B on, when trained so (BitNet, 2402.17764)", method="ternary"),
    _signs("ternary, groups of 128", bits=2),
    _bare("binary", "40MB", "81 % of the accuracy, after training (OneBit, 2402.11295)", method="binary"),
    _signs("binary, groups of 128", bits=1),
    _bare(
        "low rank 128",
        "55MB",
        "20 % smaller at little loss (SVD-LLM, 2403.07378)",
        method="lowrank",
        rank=128,
    ),
    _bare("lattice + rank 4", "50MB", "LQER, 2402.02446", method="waterlevel+lowrank", rank=4),
    *(_bare(f"{LEVEL}, {b}MB", f"{b}MB") for b in _BUDGETS),
    *(_healed(f"{LEVEL} + heal, {b}MB", f"{b}MB", f"{LEVEL}, {b}MB") for b in (40, 34, 30, 20, 16)),
    _healed(f"{LEVEL} + heal on 32, 16MB", "16MB", f"{LEVEL}, 16MB", contexts=32),
    _healed(f"{LEVEL} + heal on 384, 34MB", "34MB", f"{LEVEL}, 34MB", contexts=384),
    # Room for the products: what is healed weighs less than what comes of it.
    _bare(f"{LEVEL}, 39.45MB", "39.45MB"),
    _healed(f"{LEVEL} + heal with rank 4, 40MB", "40MB", f"{LEVEL}, 39.45MB", rank=4),
    _bare("planner, 30MB", "30MB", method="auto"),
    _bare("planner, 20MB", "20MB", method="auto"),
    *(
        _healed(f"planner + heal on {c}, {b}MB", f"{b}MB", f"planner, {b}MB", contexts=c)
        for b in (30, 20)
        for c in (32, 128)
    ),
]
