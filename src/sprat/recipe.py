"""A recipe: every choice of a fit as a strict, frozen record that reads from TOML and is written into the file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from sprat import sparsity
from sprat.errors import RecipeError, nearest


@dataclass(frozen=True)
class Recipe:
    """How a model is fitted. Unknown keys and values outside their range are refused."""

    method: str = "waterlevel"
    """The row of sprat.methods.METHODS that chooses the values of the layers' maps; embedding and head are always
    rounded to the water level."""
    rank: int = 0
    """Rank of the product that the methods with "lowrank" in their name store; 0 for all others."""
    sparsity: str = ""
    """Zeros forced in the layers' maps: "0.5", at least that share of each; "2:4", at most 2 non-zeros of every 4
    consecutive inputs, any N:M; "" none."""
    context: int = 256
    """Tokens in a calibration context."""
    tokens: int = 0
    """Calibration tokens; 0 chooses by the widest input (8 x, at least 16,384, at most 65,536)."""
    held_out: int = 8
    """Contexts kept back from the statistics, to check predicted against real damage."""
    shrinkage: float = 3.0
    """Strength of the shrinkage of H towards its diagonal (sense/shrink.py)."""
    row_floor: float = 0.05
    """Row weights are at least this share of their mean: few tokens say little of rarely active outputs."""
    vocabulary_floor: float = 0.1
    """Share of the token probability that is spread evenly over the vocabulary."""
    column_steps: bool = True
    """Steps by the conditional variance of each input; off: their geometric mean."""
    row_steps: bool = True
    """Steps by the Fisher weight of each output; off: their geometric mean."""
    feedback: bool = True
    """Feed each column's error into the columns not yet rounded (GPTQ); off: plain rounding."""
    row_feedback: bool = True
    """Feed rows' errors into the rows not yet rounded too, where G of the outputs was measured (methods/metric.py)."""
    order: str = "natural"
    """Order of the columns: "natural", or "descending" by variance (GPTQ's act-order; only without a trellis)."""
    rate_weight: float = 0.2
    """Weight of the bits in the rounding decision; 1 is the slope of the rate-distortion curve, 0 plain nearest."""
    trellis: int = 4
    """States of the trellis (dependent quantization): 4 or 8; 0 for a plain lattice."""
    block: int = 64
    """Columns that are rounded before their error reaches the rest, at most 128."""
    scale_resolution: int = 32
    """Steps an octave of the row and column scales: healing moves them by a few percent; 8 are enough without it."""
    sequential: bool = False
    """Correct each layer for the error of the layers already rounded, on the inputs that those leave it."""
    sequential_tokens: int = 8192
    """Tokens for that correction."""
    sequential_strength: float = 1.0
    """Share of the least-squares correction that is applied."""
    heal: int = 64
    """Contexts from which the scales learn the original's distribution after rounding (methods/heal.py); 0: none.

    Of more than the text has, the model writes itself more, unless `tokens` says how long it is."""
    heal_minutes: float = 0.0
    """Minutes of that, in place of a number of contexts; 0: as many as `heal` says."""
    heal_deep: bool = False
    """The integers too (methods/deep.py); only without a trellis and without products."""
    heal_rank: int = 0
    """Rank of the products beside the layers' maps that healing trains too (methods/adapter.py); 0 for none."""
    heal_rate: float = 0.002
    """Rate of Adam in healing, in nats of a scale a step."""
    remove_layers: int = 0
    """Decoder layers that are removed before anything is rounded (docs/structure.md)."""
    ffn: float = 1.0
    """Share of the neurons that each layer's feed-forward part keeps."""
    kv_heads: int = 0
    """Key-value heads that each layer keeps, each with its query heads; 0: all."""
    experts: int = 0
    """Experts that each layer of a mixture keeps; 0: all."""
    vocabulary: int = 0
    """Tokens that are kept, of a byte-level BPE tokenizer; 0: all."""
    dense_type: str = "bf16"
    """How norms and biases are stored: "bf16", "f16" or "f32"."""

    def __post_init__(self) -> None:
        pattern = sparsity.parse(self.sparsity)
        rules: list[tuple[str, bool, str]] = [
            ("context", 16 <= self.context <= 65536, "16 to 65536"),
            ("rank", (self.rank > 0) == ("lowrank" in self.method), "above 0 for a low-rank method, else 0"),
            ("sparsity", not (self.rank and self.sparsity), "empty for a low-rank method"),
            ("tokens", self.tokens >= 0, "0 or more"),
            ("held_out", 1 <= self.held_out <= 1024, "1 to 1024"),
            ("shrinkage", 0 < self.shrinkage <= 1e6, "above 0"),
            ("row_floor", 0 < self.row_floor <= 1, "above 0, at most 1"),
            ("vocabulary_floor", 0 < self.vocabulary_floor <= 1, "above 0, at most 1"),
            ("order", self.order in ("natural", "descending"), '"natural" or "descending"'),
            (
                "order",
                self.order == "natural" or not self.trellis,
                '"natural" with a trellis (set trellis = 0)',
            ),
            (
                "order",
                self.order == "natural" or not pattern.group,
                f'"natural" with a pattern of consecutive inputs (sparsity = "{self.sparsity}")',
            ),
            (
                "sparsity",
                self.method != "binary" or not pattern,
                '"" with the method "binary", which has no zeros',
            ),
            (
                "sequential",
                self.method == "waterlevel" or not self.sequential,
                'false where the method is not "waterlevel"',
            ),
            ("rate_weight", 0 <= self.rate_weight <= 10, "0 to 10"),
            ("trellis", self.trellis in (0, 4, 8), "0, 4 or 8"),
            ("block", 1 <= self.block <= 128, "1 to 128"),
            ("scale_resolution", 1 <= self.scale_resolution <= 256, "1 to 256"),
            ("sequential_tokens", self.sequential_tokens >= 0, "0 or more"),
            ("sequential_strength", 0 <= self.sequential_strength <= 1, "0 to 1"),
            ("heal", 0 <= self.heal <= 10**6, "0 to 1000000"),
            ("heal_minutes", 0 <= self.heal_minutes <= 10**5, "0 to 100000"),
            ("heal_deep", not (self.heal_deep and self.trellis), "false with a trellis (set trellis = 0)"),
            ("heal_deep", not (self.heal_deep and self.rank), "false for a low-rank method"),
            ("heal_rank", 0 <= self.heal_rank <= 64, "0 to 64"),
            (
                "heal_rank",
                not (self.heal_rank and self.heal_deep),
                "0 where the integers are healed (heal_deep)",
            ),
            (
                "heal_rank",
                not (self.heal_rank and self.rank),
                "0 for a low-rank method, whose own products are healed",
            ),
            ("heal_rate", 0 < self.heal_rate <= 0.1, "above 0, at most 0.1"),
            ("remove_layers", self.remove_layers >= 0, "0 or more"),
            ("ffn", 0 < self.ffn <= 1, "above 0, at most 1"),
            ("kv_heads", self.kv_heads >= 0, "0 (all) or more"),
            ("experts", self.experts >= 0, "0 (all) or more"),
            ("vocabulary", self.vocabulary >= 0, "0 (all) or more"),
            ("dense_type", self.dense_type in ("bf16", "f16", "f32"), '"bf16", "f16" or "f32"'),
        ]
        for name, fine, allowed in rules:
            if not fine:
                raise RecipeError(
                    f"recipe: {name} = {getattr(self, name)!r} is not allowed; it must be {allowed}"
                )

    def unconstrained(self) -> Recipe:
        """As it is for what is no layer: rounded to the water level, no zeros forced."""
        return replace(self, method="waterlevel", sparsity="", rank=0)

    @property
    def heals(self) -> bool:
        """Whether anything is trained after rounding."""
        return bool(self.heal or self.heal_minutes)

    def refuse_idle(self) -> None:
        """RecipeError where a fit would be told what healing trains, and that there is none."""
        for name in ("heal_deep", "heal_rank"):
            if getattr(self, name) and not self.heals:
                raise RecipeError(
                    f"recipe: {name} says what healing trains, but heal = 0 and heal_minutes = 0 leave it out: give it "
                    "contexts (heal) or minutes (heal_minutes)"
                )

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Recipe:
        """A recipe from plain values; integers are taken for floats, a share of zeros may be a number."""
        share = values.get("sparsity")
        if type(share) in (int, float):
            values = {**values, "sparsity": str(share)}
        return Recipe(**checked(Recipe, values))

    @staticmethod
    def read(
        path: str | Path | None,
        settings: Mapping[str, Any] | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> Recipe:
        """A TOML file (or none) with `settings` on top, and `defaults` for what neither names."""
        values = {} if path is None else read_toml(path)
        return Recipe.from_dict({**(defaults or {}), **values, **(settings or {})})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def checked(kind: Any, values: Mapping[str, Any], name: str = "recipe") -> dict[str, Any]:
    """`values` as fields of the dataclass `kind`: no key unknown, every value of its default's type.

    Integers are taken for floats, and a text, or a list of texts, for a tuple of them. RecipeError calls the recipe
    `name`.
    """
    types = {f.name: dict if f.default is MISSING else type(f.default) for f in fields(kind)}
    out: dict[str, Any] = {}
    for key, value in values.items():
        if key not in types:
            raise RecipeError(f"{name}: unknown key {key!r}{nearest(key, types)}; known: {', '.join(types)}")
        if types[key] is float and type(value) is int:
            value = float(value)
        if types[key] is tuple:
            value = _texts(value)
        if type(value) is not types[key]:
            wanted = "a list of texts" if types[key] is tuple else types[key].__name__
            raise RecipeError(f"{name}: {key} must be {wanted}, not {value!r}")
        out[key] = value
    return out


def _texts(value: Any) -> Any:
    """A tuple of texts, or `value` where it is none."""
    several = [value] if isinstance(value, str) else value
    fine = isinstance(several, list | tuple) and all(isinstance(text, str) and text for text in several)
    return tuple(several) if fine else value


def read_toml(path: str | Path) -> dict[str, Any]:
    """A recipe file's values; RecipeError where it cannot be read."""
    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        beside = [other.name for other in path.parent.glob("*.toml")]
        raise RecipeError(f"there is no recipe {path}{nearest(path.name, beside)}") from None
    except OSError as error:
        raise RecipeError(f"recipe {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path}: not TOML: {error}") from None
