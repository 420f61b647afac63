"""Arguments that several verbs share."""

from __future__ import annotations

import argparse
import math
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprat.errors import BudgetError, RecipeError
from sprat.sizes import CONTEXT, Budget, parse_budget

if TYPE_CHECKING:
    from sprat.recipe import Recipe


#: Flags that each set the field of the recipe of their name.
FLAGS = (
    *("method", "sparsity", "remove_layers", "ffn", "kv_heads", "experts", "vocabulary"),
    *("heal_minutes", "heal_deep"),
)


def budget(text: str) -> Budget:
    """An argparse type."""
    try:
        return parse_budget(text)
    except BudgetError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def budgets(text: str) -> list[Budget]:
    """An argparse type: budgets with commas between them."""
    found = [budget(part) for part in text.split(",") if part.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} names no size")
    return found


def whole(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def seed(text: str) -> int:
    """An argparse type: a whole number that every random generator takes."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to 2**63 - 1")
    return int(text)


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model to start from."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a Hugging Face folder or hub id, a GGUF file, or the name of an installed model "
        "package (smollm2-135m, gemma3-270m)",
    )


def add_file(parser: argparse.ArgumentParser) -> None:
    """The file to look at or use."""
    parser.add_argument("file", metavar="FILE", type=Path, help="a .sprat file")


def minutes(text: str) -> float:
    """An argparse type: a time above nothing."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of minutes above 0")
    return value


def add_text(parser: argparse.ArgumentParser) -> None:
    """Which text a model is calibrated on, and the seed."""
    parser.add_argument(
        "--calibrate",
        metavar="TEXT",
        action="append",
        help="calibration text: a UTF-8 file (may be given several times), '-' for standard input, "
        "'hub:NAME', or "
        "'self': the model writes it (default)",
    )
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="seed of everything random (default 0)"
    )


def add_device(parser: argparse.ArgumentParser, what: str) -> None:
    """Where models compute."""
    parser.add_argument(
        "--device",
        default="cpu",
        metavar="D",
        help=f"{what}: cpu (default), cuda, or one GPU of several, as cuda:1",
    )


def add_calibration(parser: argparse.ArgumentParser) -> None:
    """How the statistics are had: the same for `fit` and `plan`."""
    add_text(parser)
    parser.add_argument(
        "--recipe", type=Path, metavar="TOML", help="a recipe file, for settings other than the defaults"
    )
    add_settings(parser)
    add_device(parser, "where the model writes its text, is measured, compared and healed")


def add_structure(parser: argparse.ArgumentParser) -> None:
    """What is removed before anything is rounded: the same for `fit` and `plan`. Each sets a field of the recipe."""
    group = parser.add_argument_group("structural pruning: a smaller model of the same family")
    group.add_argument(
        "--remove-layers", type=whole, metavar="N", help="remove the N layers that matter least"
    )
    group.add_argument("--ffn", type=float, metavar="SHARE", help="share of the feed-forward neurons to keep")
    group.add_argument(
        "--kv-heads", type=whole, metavar="N", help="key-value heads a layer keeps, with their queries"
    )
    group.add_argument("--experts", type=whole, metavar="N", help="experts a layer of a mixture keeps")
    group.add_argument(
        "--vocabulary", type=whole, metavar="N", help="tokens to keep (byte-level BPE tokenizers)"
    )


def add_methods(parser: argparse.ArgumentParser) -> None:
    """How values are chosen: each sets a field of the recipe."""
    parser.add_argument(
        "--method",
        metavar="NAME",
        help="how the layers' maps get their values: waterlevel (default), ternary, binary, lowrank "
        "(--set rank=N), or auto: combinations tried on held-out text, and the best kept",
    )
    parser.add_argument(
        "--sparsity",
        metavar="P",
        help="zeros forced in the layers' maps: 0.5 (that share of each), 2:4 (2 non-zeros of 4 inputs), any N:M",
    )


def add_cache(parser: argparse.ArgumentParser, what: str = "what keys and values are kept in") -> None:
    """How the native engine keeps keys and values."""
    parser.add_argument(
        "--cache",
        metavar="KIND",
        help=f"{what}: int8 (default), or bf16, twice as large and a little nearer",
    )


def add_ram(parser: argparse.ArgumentParser) -> None:
    """A budget for memory: the same for `fit` and `plan`."""
    parser.add_argument(
        "--ram",
        type=budget,
        metavar="B",
        help="what running it may take: weights as the native engine holds them and the key-value cache; alone or "
        "beside sizes of the file",
    )
    parser.add_argument(
        "--context",
        type=whole,
        metavar="N",
        help=f"tokens of key-value cache that --ram covers (default {CONTEXT}); those of a calibration context are a "
        "setting: --set context=N",
    )
    add_cache(parser, "what keys and values that --ram covers are kept in")


def limited(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_ram` asked for, as `sprat.fit` and `sprat.plan` take it: ram, context and cache."""
    ram, context, cache = arguments.ram, arguments.context, arguments.cache
    for name, value in {"--context": context, "--cache": cache}.items():
        if ram is None and value is not None:
            raise BudgetError(f"{name} says what --ram covers, and no --ram was given")
    return {"ram": ram, "context": context or CONTEXT, "cache": cache}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Single settings of a recipe; `settings` reads them."""
    parser.add_argument(
        "--set",
        dest="settings",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="one setting of the recipe",
    )


def add_corpus(parser: argparse.ArgumentParser) -> None:
    """What is learnt from and what is scored: the same for `golf train` and `search`."""
    parser.add_argument(
        "--text",
        nargs="+",
        action="extend",
        metavar="TEXT",
        help="what to learn from: UTF-8 files, folders of them, patterns, package:NAME (the *.txt files of an "
        "installed Python package) or hub:NAME[:SPLIT] (default: the recipe's `text`)",
    )
    parser.add_argument(
        "--validation",
        nargs="+",
        action="extend",
        metavar="TEXT",
        help="what is scored (default: the recipe's `validation_text`, or a share of the documents, by their hash)",
    )


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    """How much of a text is read, and how: the same for `prove`, `sweep` and `compare`."""
    parser.add_argument(
        "--tokens",
        type=whole,
        metavar="N",
        help="tokens of text to read, spread evenly (default 40 contexts)",
    )
    parser.add_argument(
        "--context", type=whole, default=512, metavar="N", help="tokens a context (default 512)"
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        help="compute the models in float32 (default) or bfloat16: about twice as fast, adds a KL of about 0.001",
    )


def calibrated_text(arguments: argparse.Namespace) -> str | list[str]:
    """The text that `add_text` asked for, as the library takes it."""
    given: list[str] = arguments.calibrate or ["self"]
    if "self" in given and len(given) > 1:
        raise RecipeError("--calibrate self stands alone: give the model's own text, or files")
    return "self" if "self" in given else given


def calibrated(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_calibration` asked for, as `sprat.fit` and `sprat.plan` take it: calibrate, seed, recipe and device."""
    return {
        "calibrate": calibrated_text(arguments),
        "seed": arguments.seed,
        "recipe": recipe(arguments),
        "device": arguments.device,
    }


def recipe(arguments: argparse.Namespace) -> Recipe | None:
    """What --recipe, --set and flags of its fields name, the later winning; None for the defaults."""
    flags = {name: value for name in FLAGS if (value := getattr(arguments, name, None)) is not None}
    given = settings(arguments.settings) | flags
    if arguments.recipe is None and not given:
        return None
    from sprat.recipe import Recipe

    # A trellis doubles the integers, which a budget for memory pays for, and lets none move alone, as deep healing
    # has to: off there unless it is asked for.
    plain = given.get("heal_deep") or getattr(arguments, "ram", None)
    return Recipe.read(arguments.recipe, given, {"trellis": 0} if plain else None)


def settings(pairs: list[str]) -> dict[str, Any]:
    """`--set trellis=4`: values as TOML has them, and words without quotes as text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not name:
            raise RecipeError(f"--set wants KEY=VALUE, not {pair!r}")
        try:
            found[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[name] = value
    return found
