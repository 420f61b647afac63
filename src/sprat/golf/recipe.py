"""A golf recipe: every choice of a training from nothing, as a strict, frozen record that reads from TOML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from sprat import recipe as fits
from sprat.equations.network import parse
from sprat.equations.term import Space
from sprat.errors import RecipeError
from sprat.golf.limits import VOCABULARY, combinations, ranges

#: Keys that say where text lies, and nothing of what is trained.
PLACES = ("text", "validation_text")


@dataclass(frozen=True)
class Recipe:
    """What is trained, how, and how it ends inside the cap. Unknown keys and values outside their range are refused."""

    vocabulary: int = 1024
    """Tokens of the byte-level BPE that is trained on the training text: 257 (bytes and the document mark) to 16384."""
    validation: float = 0.05
    """Share of the documents, chosen by their hash, that is held out and scored."""
    stream: int = 100_000_000
    """Characters that are read of each data set of the hub."""
    text: tuple[str, ...] = ()
    """Where no text is named beside the recipe: files, folders, patterns or hub:NAME, from the working folder."""
    validation_text: tuple[str, ...] = ()
    """Likewise what is scored, in the place of a share of the documents."""

    layers: int = 4
    """Decoder layers that are stored."""
    width: int = 128
    """Of the hidden state; a multiple of 2 x heads."""
    heads: int = 4
    """Query heads."""
    kv_heads: int = 2
    """Key-value heads, a divisor of heads."""
    inner: int = 384
    """Width inside the feed-forward."""
    activation: str = "swiglu"
    """Feed-forward: "swiglu" (three maps), or "relu2", squared ReLU (two maps)."""
    context: int = 256
    """Tokens that a position sees, in training and afterwards."""

    # Building blocks (golf/blocks/).
    shared: str = "none"
    """Stored layers that are run through `loops` times: "none", "all", or "middle", all but the first and the last."""
    loops: int = 1
    """How often shared layers are run through, each time behind norms of their own."""
    ngrams: int = 0
    """Rows of a table of hashed n-gram embeddings, added to the token's; 0 for none."""
    ngram_width: int = 0
    """Columns of that table, added to the first of the width; 0 for all."""
    ngram_order: int = 2
    """2 for pairs of tokens, 3 for pairs and triples."""
    weights: str = "real"
    """Of the layers' maps: "real", or "ternary" or "binary", trained and stored as such."""
    memory: str = "none"
    """In the place of attention: "delta", the gated delta rule, in every `memory_every`-th stored layer from the
    first on; "none" for attention everywhere."""
    memory_every: int = 2
    """1 for all layers."""
    experts: int = 0
    """Feed-forwards a layer, each `inner` wide, among which a router chooses; 0 for a single one."""
    chosen: int = 1
    """Experts that a token goes through."""
    balance: float = 0.001
    """By how much a batch moves the bias of an expert that has more or less than its share of tokens."""
    equation: str = ""
    """How the maps get their weights from fewer numbers: a formula of equations/grammar.py, such as "monarch(8)"; empty
    for dense maps, which are stored as they are."""

    batch: int = 8
    """Contexts in a micro-batch."""
    accumulate: int = 1
    """Micro-batches whose gradients make one step."""
    matrix_rate: float = 0.02
    """Rate of Muon, for the layers' matrices (golf/muon.py)."""
    embedding_rate: float = 0.01
    """Rate of Adam for the embedding, which is the head too."""
    vector_rate: float = 0.01
    """Rate of Adam for the norms."""
    momentum: float = 0.95
    """Of Muon."""
    weight_decay: float = 0.0
    """Decoupled, on matrices and embedding, times their rate: smaller weights code in fewer bits."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 for none."""
    warm_up: float = 0.02
    """Share of the training in which the rates rise from 0."""
    cool_down: float = 0.5
    """Share of the training, its last, in which they fall linearly to 0."""
    ema: float = 0.0
    """Decay a step of an exponential mean of the weights, which then ends in the file; 0 for the weights themselves."""
    noise: float = 0.0
    """Share of the training, its last, in which matrices carry the noise of the rounding to come (golf/noise.py)."""
    # What the training has beside the text, and what it reads of it.
    rate_term: float = 0.0
    """Share of the training, its last, in which the loss has the bits that weights will take (golf/rate_term.py)."""
    rate_weight: float = 0.03
    """Of that term: nats a token that a bit a weight is worth."""
    prune_from: int = 0
    """Neurons that each feed-forward begins with, `inner` of which stay (golf/prune.py); 0 for `inner`."""
    prune_at: float = 0.25
    """Share of the training after which the others are taken out."""
    easy: float = 0.0
    """Share of the windows, those that a bigram model predicts best, that the first pass reads; later ones read all
    (golf/curriculum.py). 0 for a first pass as any other."""
    drop: float = 0.0
    """Share of the windows, those that it predicts worst, that are never read."""
    teacher: str = ""
    """A model to learn from as well, with the tokenizer that this text gives (golf/teacher.py): a .sprat, or what
    `sprat fit` opens."""
    teach: Mapping[str, Any] = field(default_factory=dict)
    """The table [teach]: the keys in which a teacher differs that is trained first, in place of such a file."""
    teach_share: float = 0.4
    """Share of the training's length that this teacher takes."""
    distill: float = 0.5
    """How much of the loss is what the teacher says, and not the text."""
    compile: bool = False
    """torch.compile the model: some 13 s of compiling, which count, for steps that are 3 to 6 % faster on a CPU."""
    precision: str = "auto"
    """"float32", "bf16" (autocast), or "auto": bf16 where the processor multiplies it natively."""

    finish: str = "waterlevel"
    """"waterlevel": rounded and coded to the cap as `sprat fit` does; "int8-zlib": 8-bit rows and zlib, whatever that
    weighs (golf/int8.py)."""
    fit: Mapping[str, Any] = field(default_factory=dict)
    """The table [fit]: keys of sprat's fit recipe, for the water level."""

    def __post_init__(self) -> None:
        for name, fine, allowed in chain(ranges(self), combinations(self)):
            if not fine:
                raise RecipeError(
                    f"golf recipe: {name} = {getattr(self, name)!r} is not allowed; it must be {allowed}"
                )
        self.fit_recipe()
        if self.equation:
            self._check_equation()
        if self.teach:
            self.teacher_recipe()

    def teacher_recipe(self) -> Recipe:
        """Of the teacher that [teach] describes: nothing is rounded in it, pruned or taught."""
        own = {"teach": {}, "teacher": "", "prune_from": 0, "rate_term": 0.0, "noise": 0.0}
        for key in ("vocabulary", "validation", "stream", "context", *PLACES):
            if self.teach.get(key, getattr(self, key)) != getattr(self, key):
                raise RecipeError(f"golf recipe: [teach] {key} = {self.teach[key]!r}: it is the student's")
        return Recipe.from_dict({**self.to_dict(), **own, **self.teach})

    def _check_equation(self) -> None:
        kv = self.kv_heads * self.width // self.heads
        sides = {"q": (self.width, self.width), "k": (kv, self.width), "up": (self.inner, self.width),
                 "down": (self.width, self.inner)}  # fmt: skip
        equation = parse(self.equation)
        for name, (rows, columns) in sides.items():
            equation.term(name).check(Space(rows, columns, self.layers))
        equation.embedding.check(Space(VOCABULARY[1], self.width))

    def fit_recipe(self) -> fits.Recipe:
        """How the trained model is rounded: contexts no longer than it knows, and its own [fit] on top."""
        # held_out and heal are what the records were measured with; a fit's own defaults have moved since.
        own = {"context": min(256, self.context), "held_out": 4, "heal": 32}
        kept = {} if self.weights == "real" else {"method": "kept"}
        return fits.Recipe.from_dict({**own, **kept, **self.fit})

    @property
    def step_tokens(self) -> int:
        """Tokens a step."""
        return self.batch * self.accumulate * self.context

    @staticmethod
    def read(path: str | Path | None, settings: Mapping[str, Any] | None = None) -> Recipe:
        """A TOML file (or none) with `settings` on top."""
        values = {} if path is None else fits.read_toml(path)
        return Recipe.from_dict({**values, **(settings or {})})

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Recipe:
        return Recipe(**fits.checked(Recipe, values, "golf recipe"))

    def to_dict(self) -> dict[str, Any]:
        """Its values without PLACES: results, files and checkpoints name their texts by hash, wherever they lay."""
        return {name: value for name, value in asdict(self).items() if name not in PLACES}
