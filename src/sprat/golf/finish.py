"""How a trained model ends inside the cap: as a Hugging Face folder that `sprat fit` rounds to just that many bytes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from sprat import recipe as fits
from sprat.coding import container
from sprat.coding.ledger import Ledger, Line
from sprat.coding.tensors import Dense, Entry
from sprat.coding.tokenizer import pack
from sprat.errors import BudgetError, SourceError
from sprat.fit import FitResult, fit
from sprat.golf import factors, int8, words
from sprat.golf.blocks import bitlinear
from sprat.golf.model import Decoder
from sprat.golf.pretrained import GolfConfig, GolfForCausalLM, config
from sprat.golf.recipe import Recipe
from sprat.job import calibration_tokens
from sprat.level.search import AIM
from sprat.level.targets import shapes
from sprat.progress import Progress, silent
from sprat.sizes import Budget, format_bytes
from sprat.source.maps import groups, head, layer_groups, tables

#: Bits a weight beyond which a finer level changes nothing that can be measured.
FINEST = 8
#: Bits a weight of the coarsest level that a fit takes, more rather than less: what is too small is refused at once.
COARSEST = 0.35
#: Bits a weight that maps take which were trained as integers, about.
TRAINED_BITS = {"ternary": 1.6, "binary": 1.02}
#: Bytes that the config as transformers writes it and the provenance take beyond the bare config.
PROVENANCE = 1600
#: Calibration reads at most so many characters of the training documents, evenly spread.
CALIBRATION = 1 << 21


@dataclass(frozen=True)
class Weighed:
    """Bytes of the file that training a recipe ends in: those that nothing changes, and what its weights need.

    fixed: config, tokenizer, norms, scales and tables; weights: how many there are; smallest: the least cap that works.
    """

    fixed: int
    weights: int
    smallest: int

    def bits(self, cap: int) -> float:
        """Bits that a cap leaves for each weight, at most FINEST."""
        return min(FINEST, 8 * max(AIM * cap - self.fixed, 0) / self.weights)


def weigh(model: Decoder, recipe: Recipe, tokenizer: Tokenizer) -> Weighed:
    """Before training: what the file of `model` will have to hold."""
    weights = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    if recipe.finish == "int8-zlib":
        size = len(int8.pack(model, recipe, tokenizer))
        return Weighed(size - weights, weights, size)
    if recipe.equation:
        said = config(recipe, tokenizer.get_vocab_size(), words.mark(tokenizer))
        fixed = factors.fixed_bytes(model, said, recipe.fit_recipe(), pack(words.files(tokenizer)))
        weights = sum(target.w.numel() for target in factors.targets(model))
        return Weighed(fixed, weights, round(1.01 * (fixed + weights * 0.02 / 8)))
    vectors = {
        name: Entry((name,), tuple(p.shape), Dense(p.detach().numpy()))
        for name, p in model.named_parameters()
        if p.ndim == 1
    }
    fixed = container.size(
        config=config(recipe, tokenizer.get_vocab_size(), words.mark(tokenizer)),
        entries=vectors,
        recipe=recipe.fit_recipe().to_dict(),
        provenance={},
        file_extra={"tokenizer/packed": pack(words.files(tokenizer))},
    )
    # As sprat.job counts them: seven bits for each scale and class, tables; what transformers adds to a config, and
    # where the file says it comes from.
    scales = _scales(recipe, tokenizer.get_vocab_size())
    fixed += scales * 7 // 8 + 4096 + scales // 32 + PROVENANCE
    if recipe.weights == "real":
        return Weighed(fixed, weights, round(1.01 * (fixed + weights * COARSEST / 8)))
    # Integers that are trained take their bits at every level.
    settled = sum(m.weight.numel() for m in model.modules() if isinstance(m, bitlinear.BitLinear))
    fixed += round(settled * TRAINED_BITS[recipe.weights] / 8)
    return Weighed(fixed, weights - settled, round(1.01 * (fixed + (weights - settled) * COARSEST / 8)))


def _scales(recipe: Recipe, vocabulary: int) -> int:
    """Row and column scales of everything that will be rounded."""
    whole = GolfForCausalLM(GolfConfig(**config(recipe, vocabulary, 0))).eval()
    ends = [tuple(table.weight.shape) for table in tables(whole).values()]
    return sum(map(sum, [*shapes(layer_groups(groups(whole)), head(whole)), *ends]))


def refuse_impossible(cap: int, weighed: Weighed, recipe: Recipe, tokens: int) -> None:
    """Before any training: BudgetError for a cap below what the recipe can end in, SourceError for a text of too few
    `tokens` to calibrate the rounding on."""
    if recipe.finish == "waterlevel" and _calibration(recipe, tokens).tokens < recipe.fit_recipe().context:
        raise SourceError(
            f"the training text has {tokens:,} tokens: too few to calibrate the rounding on; give more text"
        )
    if cap < weighed.smallest:
        needed = (
            f"this recipe's tokenizer, config and tables need about {weighed.fixed:,}"
            if recipe.finish == "waterlevel"
            else f"this recipe stores {weighed.weights:,} weights in 8 bits each and zlib"
        )
        raise BudgetError(
            f"a cap of {cap:,} bytes is too small: {needed}, and the smallest cap that works is about "
            f"{weighed.smallest:,} bytes ({format_bytes(weighed.smallest)}); lower vocabulary, width or layers"
        )


def into_cap(
    model: Decoder,
    recipe: Recipe,
    tokenizer: Tokenizer,
    cap: int,
    out: Path,
    documents: Sequence[str],
    seed: int,
    progress: Progress = silent,
    unhealed: Path | None = None,
) -> FitResult | None:
    """Write `out` in at most `cap` bytes; `documents`, of the training text, are what rounding is calibrated on.
    unhealed: where what rounding alone gave is left too, where healing changed it.

    None where the recipe ends in "int8-zlib". A cap that needs more than FINEST bits a weight is not filled.
    """
    if recipe.finish == "int8-zlib":
        data = int8.pack(model, recipe, tokenizer)
        if len(data) > cap:
            raise BudgetError(
                f"the file has {len(data):,} bytes, the cap is {cap:,}: lower vocabulary, width or layers"
            )
        container.Assembled((data,), Ledger((Line(out.name, "file", len(data)),))).save(out)
        return None
    weighed = weigh(model, recipe, tokenizer)
    finest = weighed.fixed + weighed.weights * FINEST // 8
    original = 2 * sum(p.numel() for p in model.parameters())
    budget = min(cap, finest, original)
    if recipe.equation:
        return factors.into_cap(
            model,
            config(recipe, tokenizer.get_vocab_size(), words.mark(tokenizer)),
            recipe.fit_recipe(),
            pack(words.files(tokenizer)),
            _contexts(words.stream(tokenizer, _sample(documents)), recipe.context, seed),
            budget,
            out,
            seed,
            progress,
        )
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / out.stem
        save_folder(model, recipe, tokenizer, folder)
        text = Path(root) / "training-text"
        sample = _sample(documents)
        text.write_text("\n\n".join(sample), encoding="utf-8")
        tokens = sum(len(words.encode(tokenizer, document)) for document in sample)
        return fit(
            folder,
            Budget(budget, "bytes", f"{budget:,} bytes"),
            out,
            str(text),
            seed,
            _calibration(recipe, tokens),
            progress,
            unhealed=unhealed,
        )


def save_folder(model: Decoder, recipe: Recipe, tokenizer: Tokenizer, folder: Path) -> None:
    """A Hugging Face folder: config.json, model.safetensors, the tokenizer."""
    folder.mkdir()
    settings: dict[str, Any] = config(recipe, tokenizer.get_vocab_size(), words.mark(tokenizer))
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(
        {name: w.contiguous() for name, w in bitlinear.stored(model).items()}, folder / "model.safetensors"
    )
    for name, data in words.files(tokenizer).items():
        (folder / name).write_bytes(data)


def _contexts(ids: np.ndarray, context: int, seed: int) -> torch.Tensor:
    """(contexts, context) of a stream, in a random order."""
    rows = ids[: len(ids) // context * context].reshape(-1, context).astype(np.int64)
    return torch.from_numpy(np.random.default_rng(seed).permutation(rows))


def _calibration(recipe: Recipe, available: int) -> fits.Recipe:
    """The recipe's fit, with as many tokens of calibration as it asks for or the text has."""
    chosen = recipe.fit_recipe()
    wanted = chosen.tokens or calibration_tokens(max(recipe.width, recipe.inner))
    # Held-out contexts are the text's too; one more for what cutting it into contexts leaves over.
    return replace(chosen, tokens=max(1, min(wanted, available - (chosen.held_out + 1) * chosen.context)))


def _sample(documents: Sequence[str]) -> list[str]:
    """Whole documents, evenly spread, of about CALIBRATION characters together."""
    total = sum(map(len, documents))
    count = max(1, min(len(documents), round(len(documents) * CALIBRATION / max(total, 1))))
    places = np.linspace(0, len(documents) - 1, count).round().astype(int)
    return [documents[int(i)] for i in np.unique(places)]
