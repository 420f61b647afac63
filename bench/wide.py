"""The wide-model check: Qwen2.5-Coder-1.5B (inputs up to 8,960 wide) at 3 bits a weight: quality, time, memory.

    python -m bench.wide --record records/DATE-wide

The model is Qwen2.5-Coder-1.5B-Instruct as Q4_K_M, by its name among sprat.source.packages; --model takes another.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import sprat
from bench import texts
from bench.judge import Judge
from bench.record import commit, save_json
from sprat.cli.arguments import recipe
from sprat.cli.terminal import bars
from sprat.coding.ledger import Ledger
from sprat.errors import SpratError
from sprat.prove.proof import machine, sha256, versions
from sprat.prove.text import cut, read
from sprat.run.model import to_torch
from sprat.run.tokenizer import from_files
from sprat.source.load import Source, load

MODEL = "qwen2.5-coder-1.5b"
#: llama.cpp on this model, linear layers alone, 6 contexts of WikiText-2 (another text: indicative):
#: type -> (bits a weight, KL).
LLAMACPP = {"Q3_K_M": (3.82, 0.063), "IQ3_XXS": (3.06, 0.241), "Q2_K": (2.92, 0.240), "IQ2_M": (2.65, 0.344)}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        _measure(options)
    except SpratError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.wide", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default=MODEL, help="what sprat.load takes (default %(default)s)")
    add("--record", type=Path, help="folder for result.json (default: print only)")
    add("--budget", default="3bpw", help="of the whole file (default %(default)s)")
    add("--calibrate", choices=texts.KINDS, default="self", help="(default %(default)s)")
    add("--recipe", type=Path, metavar="FILE", help="a recipe as TOML, as in sprat fit")
    add(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a recipe setting, as in sprat fit",
    )
    add("--contexts", type=int, default=12, help="evaluation contexts of 512 (default %(default)s)")
    add(
        "--file", type=Path, help="keep the fitted file here; one that is there is measured, not fitted again"
    )
    add("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def _measure(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as temporary, bars() as progress:
        paths = texts.write(Path(temporary))
        file = options.file or Path(temporary) / "wide.sprat"
        result: dict[str, Any] = {"schema": "sprat.wide/1"}
        if not file.exists():
            started = time.monotonic()
            fitted = sprat.fit(
                options.model,
                options.budget,
                file,
                calibrate="self" if options.calibrate == "self" else str(paths[options.calibrate]),
                seed=options.seed,
                recipe=recipe(options),
                progress=progress,
            )
            result["fit"] = {
                "seconds": round(time.monotonic() - started, 1),
                "stages": {k: round(v, 1) for k, v in fitted.seconds.items()},
                "peak_rss_bytes": _peak(),
                "level": fitted.level,
                "predicted_kl": fitted.predicted_kl,
                "held_out_kl": fitted.measured_kl,
                "warnings": fitted.warnings,
            }
        artifact = sprat.open(file)
        result |= {
            "command": shlex.join(
                ["python", "-m", "bench.wide", "--budget", options.budget, *_settings(options)]
            ),
            "commit": commit(),
            "file": _sizes(artifact.ledger(), file),
            "recipe": artifact.recipe,
            "text_sha256": {name: hashlib.sha256(p.read_bytes()).hexdigest() for name, p in paths.items()},
        }
        # bf16 on both sides: the float32 original alone would take 6 GB more. Its noise is a KL of about 0.001.
        source = load(options.model, dtype=torch.bfloat16)
        result["original"] = {"name": source.name, "sha256": source.hash, "bytes": source.original_bytes}
        judge = Judge(
            source.model, _contexts(source, paths["evaluation"], options.contexts), options.seed, progress
        )
        del source
        result["quality"] = judge.score(to_torch(artifact, "bfloat16"), progress)
        result |= {
            "peak_rss_bytes_with_evaluation": _peak(),
            "llamacpp_linear_layers": {name: {"bits": b, "kl": kl} for name, (b, kl) in LLAMACPP.items()},
            "versions": versions(),
            "machine": machine(),
        }
    if options.record:
        save_json(options.record / "result.json", result)
    sizes, kl = result["file"], result["quality"]["kl"]
    print(
        f"{sizes['bytes']:,} bytes, {sizes['bits_per_weight']:.3f} bits a weight (linear layers of the decoder "
        f"{sizes['linear_bits_per_weight']:.3f}); KL {kl['value']:.4f} ({kl['low']}–{kl['high']}), same top "
        f"{result['quality']['same_top']['value']:.1%}; peak memory {result.get('fit', {}).get('peak_rss_bytes', 0):,}"
    )


def _sizes(ledger: Ledger, file: Path) -> dict[str, Any]:
    """Bits a weight of the whole file and of the decoder's linear layers alone, which llama.cpp's figures count."""
    lattices = [line for line in ledger.lines if line.kind == "lattice"]
    linear = [line for line in lattices if ".layers." in line.name or ".h." in line.name]
    ends = [line for line in lattices if line not in linear]
    return {
        "bytes": file.stat().st_size,
        "sha256": sha256(file),
        "bits_per_weight": 8 * ledger.total / ledger.weights,
        "linear_bits_per_weight": 8 * sum(x.nbytes for x in linear) / sum(x.weights for x in linear),
        "embedding_bits_per_weight": {x.name: x.bits_per_weight for x in ends},
        "zero_share": sum(x.zeros for x in lattices) / sum(x.weights for x in lattices),
    }


def _contexts(source: Source, text: Path, count: int) -> Any:
    tokenizer = from_files(source.tokenizer_files, source.config)
    return cut(
        tokenizer.backend, read(text), length=512, skip=256, tokens=512 * count, prefix=tokenizer.prefix()
    )


def _settings(options: argparse.Namespace) -> list[str]:
    given = [
        "--calibrate",
        options.calibrate,
        "--contexts",
        str(options.contexts),
        "--seed",
        str(options.seed),
    ]
    return given + [word for setting in options.settings for word in ("--set", setting)]


def _peak() -> int:
    """Peak resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    raise SystemExit(main())
