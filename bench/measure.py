"""Measuring one row: make the file, weigh it, read it back, score what it holds."""

from __future__ import annotations

import copy
import importlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sprat
from bench import checkpoint
from bench.calibrated import Moments, fit_ids
from bench.judge import Judge
from bench.packed import Grouped, read, write
from bench.peers import gptq, hqq, rtn, signs
from bench.work import Row
from sprat.coding.tokenizer import pack
from sprat.errors import SpratError
from sprat.progress import Progress
from sprat.prove import llamacpp
from sprat.prove.proof import sha256
from sprat.recipe import Recipe
from sprat.run.model import to_torch
from sprat.source import places
from sprat.source.load import Source
from sprat.source.maps import head, linear_maps


class Bench:
    """What all rows share: the original in float32, the judge, the texts, and what peers can use again."""

    def __init__(
        self,
        source: Source,
        model: str,
        judge: Judge,
        texts: dict[str, Path],
        work: Path,
        seed: int,
        tokens: int,
        also: Callable[[nn.Module], dict[str, Any]] = lambda model: {},
    ):
        """model: what `sprat.fit` is given; work: where files lie while they are measured; tokens: 0 for the
        recipe's default; also: more figures of a peer's model."""
        self.source, self.model, self.judge, self.texts = source, model, judge, texts
        self.work, self.seed, self.tokens, self.also = work, seed, tokens, also
        self._moments: tuple[str, Moments] | None = None
        self._linear: tuple[dict[str, Any], dict[str, Grouped]] | None = None

    def measure(self, row: Row, progress: Progress) -> dict[str, Any]:
        """The row's figures. Raises what the method raises."""
        started = time.monotonic()
        ways = {"sprat": self._sprat, "llamacpp": self._llamacpp}
        ways |= dict.fromkeys(("autoround", "torchao", "llmcompressor"), self._checkpoint)
        result = ways.get(row.method, self._peer)(row, progress)
        return {
            "section": row.section,
            "method": row.method,
            "label": row.label,
            "settings": row.settings,
            **result,
            "seconds": round(time.monotonic() - started, 1),
        }

    def _sprat(self, row: Row, progress: Progress) -> dict[str, Any]:
        text = row.settings["calibration"]
        recipe = Recipe.from_dict({"tokens": self.tokens} | row.settings.get("recipe", {}))
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            path = Path(folder) / "fitted.sprat"
            fitted = sprat.fit(
                self.model,
                row.settings["budget"],
                path,
                calibrate=self._place(text),
                seed=self.seed,
                recipe=recipe,
                progress=progress,
            )
            artifact = sprat.open(path)
            scores = self.judge.score(to_torch(artifact, "float32"), progress)
            return {
                "bytes": path.stat().st_size,
                "sha256": sha256(path),
                "recipe": artifact.recipe,
                "fit_seconds": {k: round(v, 1) for k, v in fitted.seconds.items()},
                "level": fitted.level,
                "predicted_kl": fitted.predicted_kl,
                "held_out_kl": fitted.measured_kl,
                "warnings": fitted.warnings,
                **scores,
            }

    def _peer(self, row: Row, progress: Progress) -> dict[str, Any]:
        s = row.settings
        quantized = dict(self._linear_maps(row, progress))
        ends = head(self.source.model)
        bits = s["bits"] if s["head"] == "same" else int(s["head"])
        h = self._calibration(s["calibration"], progress).head if row.method == "gptq" else None
        for name, module in {ends.input_name: ends.input, ends.output_name: ends.output}.items():
            if ends.tied and name == ends.output_name:
                continue
            weight = module.weight
            assert isinstance(weight, Tensor)
            # An input embedding's inputs are one-hot: their H has nothing to feed errors into.
            statistics = h if name == ends.output_name or ends.tied else None
            quantized[name] = self._quantize(row, weight.detach(), statistics, bits)
        others = {
            name: p.detach().float().numpy()
            for name, p in self.source.model.named_parameters()
            if name not in quantized
        }
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            path = Path(folder) / "peer.safetensors"
            weight = write(path, quantized, others, pack(self.source.tokenizer_files), self.source.config)
            digest = sha256(path)
            model = _installed(self.source.model, path)
        weights = sum(x.q.size for x in quantized.values())
        return {
            "bytes": weight.disk,
            "compressed_bytes": weight.compressed,
            "bits_per_weight": round(8 * weight.disk / weights, 4),
            "sha256": digest,
            **self.judge.score(model, progress),
            **self.also(model),
        }

    def _checkpoint(self, row: Row, progress: Progress) -> dict[str, Any]:
        tool = importlib.import_module(f"bench.peers.{row.method}")
        folder = checkpoint.original(self.source, self.work / "original")
        ids = torch.zeros(0, 0, dtype=torch.int64)
        if text := row.settings.get("calibration"):
            ids = fit_ids(self.source, self._place(text), self.tokens, self.seed, progress)[
                : checkpoint.SAMPLES
            ]
        with tempfile.TemporaryDirectory(dir=self.work) as target:
            weights = tool.quantize(folder, Path(target), row.settings, ids)
            found = checkpoint.weigh(Path(target), self.source)
        model = checkpoint.installed(self.source.model, weights)
        return found | self.judge.score(model, progress)

    def _llamacpp(self, row: Row, progress: Progress) -> dict[str, Any]:
        """A file that llama.cpp writes from the original's GGUF, and computes."""
        from bench.peers import llamacpp as peer

        original = places.find(self.model).path
        if original.suffix != ".gguf":
            raise SpratError(f"llama.cpp's quantizer starts from a GGUF, and {self.model} is none")
        path = self.work / f"{self.source.hash[:12]}-{row.settings['type']}.gguf"
        if not path.exists():
            moments = self._calibration(row.settings["calibration"], progress)
            peer.quantize(
                original, row.settings["type"], path, peer.importance(self.source, original, moments)
            )
        model = llamacpp.Model(llamacpp.LlamaCpp(path))
        found = {"bytes": path.stat().st_size, "sha256": sha256(path), "engine": llamacpp.version()}
        return found | self.judge.score(model, progress)

    def _linear_maps(self, row: Row, progress: Progress) -> dict[str, Grouped]:
        """The maps of the layers, which a row that differs in its head alone shares with the row before."""
        key = {"method": row.method, **{k: v for k, v in row.settings.items() if k != "head"}}
        if self._linear is not None and self._linear[0] == key:
            return self._linear[1]
        maps = {m.name: m for m in linear_maps(self.source.model)}
        bits, out = row.settings["bits"], {}
        if row.method == "gptq":
            h = self._calibration(row.settings["calibration"], progress).of
        else:
            h = {}
        for i, (name, m) in enumerate(maps.items()):
            out[name] = self._quantize(row, m.weight(), h.get(name), bits)
            progress("rounding", i + 1, len(maps))
        for name, x in out.items():
            assert x.shape == maps[name].shape, name
        self._linear = (key, out)
        return out

    def _quantize(self, row: Row, w: Tensor, h: Tensor | None, bits: int) -> Grouped:
        group = row.settings["group"]
        if row.method == "hqq":
            return hqq.quantize(w, bits, group)
        if row.method == "gptq" and h is not None:
            return gptq.quantize(w, h, bits, group, row.settings["act_order"])
        if row.method == "signs" and bits <= 2:
            return signs.quantize(w, bits, group)
        return rtn.quantize(w, bits, group)

    def _calibration(self, text: str, progress: Progress) -> Moments:
        if self._moments is None or self._moments[0] != text:
            ids = fit_ids(self.source, self._place(text), self.tokens, self.seed, progress)
            moments = Moments(self.source, ids, progress)
            self._moments = (text, moments)
        return self._moments[1]

    def _place(self, text: str) -> str:
        return text if text == "self" else str(self.texts[text])


def _installed(original: nn.Module, path: Path) -> nn.Module:
    """A copy of `original` that holds what the file at `path` holds."""
    model = copy.deepcopy(original)
    transposed = {m.name for m in linear_maps(model) if m.transposed}  # type: ignore[arg-type]
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, array in read(path).items():
            value = torch.from_numpy(array)
            parameters[name].copy_(value.T if name in transposed else value)
    return model
