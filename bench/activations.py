"""How many activations can be dropped a token, and at what KL: the inputs of a map below the largest k set to zero.

Of each token and map, the share of inputs that is kept are those largest in |x_j| · ‖W_·j‖ (what an engine that reads
only the columns in use could skip); the others are zero. Nothing is calibrated. Sources: TEAL (arXiv 2408.14690) and
CATS (2404.08763) drop by magnitude; Wanda (2306.11695) for the norm beside it.

    python -m bench.activations --json activations.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import texts
from bench.judge import Judge, contexts
from sprat.cli.terminal import bars
from sprat.source.load import load
from sprat.source.maps import Group, groups

#: What is thinned out: inputs of the last map of a layer (neurons), or of all maps.
WHERE = ("neurons", "all inputs")


def thinned(x: Tensor, norms: Tensor, share: float) -> Tensor:
    """x: (..., n) with all but the round(share · n) entries largest in |x| · norms at zero, token by token."""
    count = max(1, round(share * x.shape[-1]))
    kept = (x.abs() * norms).topk(count, dim=-1).indices
    return torch.zeros_like(x).scatter(-1, kept, x.gather(-1, kept))


@contextmanager
def thinning(chosen: Sequence[Group], share: float) -> Iterator[None]:
    """The model of these groups with thinned inputs."""
    hooks = []
    for group in chosen:
        stacked = torch.cat([m.weight().float() for m in group.maps])
        norms = stacked.square().sum(0).sqrt()

        def before(_: nn.Module, args: tuple[Tensor, ...], norms: Tensor = norms) -> tuple[Tensor, ...]:
            return (thinned(args[0], norms.to(args[0].dtype), share), *args[1:])

        hooks += [m.module.register_forward_pre_hook(before) for m in group.maps]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def choose(found: Sequence[Group], where: str) -> list[Group]:
    """The groups of the layers that are thinned out."""
    layers = [g for g in found if g.layer is not None]
    last = {g.layer: g for g in layers}  # in forward order: the last one stays
    return list(last.values()) if where == "neurons" else layers


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.activations", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--contexts", type=int, default=20)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--shares", default="0.75,0.5,0.25,0.1", help="of the inputs kept, by commas")
    parser.add_argument("--where", default=",".join(WHERE), help="what is thinned out, by commas")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args(arguments)
    source = load(options.model, dtype=getattr(torch, options.dtype))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, bars() as progress:
        evaluation = texts.write(Path(folder))["evaluation"]
        judge = Judge(
            source.model, contexts(source, evaluation, options.contexts, options.context), 0, progress
        )
        for where in options.where.split(","):
            chosen = choose(groups(source.model), where)
            for share in map(float, options.shares.split(",")):
                with thinning(chosen, share):
                    found = judge.score(source.model, progress)
                kl, top = found["kl"], found["same_top"]["value"]
                rows.append({"where": where, "share": share, **found})
                print(f"{where:10} {share:5.0%} kept: KL {kl['value']:.4f} ({kl['low']:.4f}-{kl['high']:.4f}), "
                      f"same top {top:.1%}", flush=True)  # fmt: skip
                if options.json:
                    options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
