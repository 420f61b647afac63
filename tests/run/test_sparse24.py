"""2:4 layers in compressed-tensors' form, on a fit of the tiny model: read back by hand, and by the library."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sprat
from sprat.cli.main import main
from sprat.coding.patterns import Pattern
from sprat.coding.tensors import Dense, Entry, expand
from sprat.errors import SpratError
from sprat.recipe import Recipe
from sprat.run import export as exporting
from sprat.run import sparse24


@pytest.fixture(scope="module")
def half(tiny, tmp_path_factory):
    """The tiny model, 2 weights of 4 in its layers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPRAT_CACHE", str(tmp_path_factory.mktemp("cache")))
        recipe = Recipe(sparsity="2:4", context=64, tokens=1024, heal=0)
        yield sprat.fit(
            tiny.folder, "30000", tmp_path_factory.mktemp("half") / "half.sprat", recipe=recipe
        ).path


def dense_by_hand(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The slow way: weight by weight, as the format's description has it."""
    out = {}
    for name, tensor in stored.items():
        module, _, part = name.rpartition(".")
        if part not in ("compressed", "bitmask", "shape"):
            out[name] = tensor
        if part != "compressed":
            continue
        m, n = stored[f"{module}.shape"].flatten().tolist()
        bits, weight = stored[f"{module}.bitmask"], torch.zeros(m, n, dtype=tensor.dtype)
        for i in range(m):
            left = iter(tensor[i])
            for j in range(n):
                if int(bits[i, j // 8]) >> (j % 8) & 1:
                    weight[i, j] = next(left)
            assert next(left, None) is None
        out[f"{module}.weight"] = weight
    return out


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_folder_holds_the_weights(half, tmp_path, dtype):
    folder = sprat.export(half, "compressed-tensors", tmp_path / "out", dtype)
    stored = load_file(folder / "model.safetensors")
    q = "model.layers.0.self_attn.q_proj"
    assert f"{q}.weight" not in stored and "model.embed_tokens.weight" in stored
    form = [
        (stored[f"{q}.{part}"].shape, stored[f"{q}.{part}"].dtype)
        for part in ("compressed", "bitmask", "shape")
    ]
    assert form == [((32, 16), getattr(torch, dtype)), ((32, 4), torch.uint8), ((2, 1), torch.int64)]
    found, want = (
        dense_by_hand(stored),
        load_file(sprat.export(half, "hf", tmp_path / "hf", dtype) / "model.safetensors"),
    )
    assert found.keys() == want.keys()
    assert all(torch.equal(found[name], want[name]) for name in want)
    exact = expand(sprat.open(half).entries())
    assert all(
        torch.equal(found[name], torch.from_numpy(exact[name]).to(getattr(torch, dtype))) for name in want
    )


def test_the_config_says_how_to_read_it(half, tmp_path):
    folder = sprat.export(half, "compressed-tensors", tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    said = config.pop("quantization_config")
    plain = sprat.export(half, "hf", tmp_path / "hf")
    assert config == json.loads((plain / "config.json").read_text())
    modules = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    targets = said["sparsity_config"].pop("targets")
    assert sorted(targets) == sorted(f"model.layers.{i}.{name}" for i in range(2) for name in modules)
    assert said == {
        "quant_method": "compressed-tensors",
        "version": "0.14.0",
        "sparsity_config": {"format": "sparse-24-bitmask", "sparsity_structure": "2:4", "ignore": []},
    }
    names = {path.name for path in plain.iterdir()}
    assert {path.name for path in folder.iterdir()} == names >= {"tokenizer.json", "tokenizer_config.json"}


def test_in_several_shards(half, tmp_path, monkeypatch):
    whole = load_file(sprat.export(half, "compressed-tensors", tmp_path / "one") / "model.safetensors")
    monkeypatch.setattr(exporting, "SHARD_BYTES", 20_000)
    folder = sprat.export(half, "compressed-tensors", tmp_path / "out")
    shards = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    assert len(shards) > 1
    merged = {name: tensor for shard in shards for name, tensor in shard.items()}
    assert merged.keys() == whole.keys() and all(torch.equal(merged[name], whole[name]) for name in whole)


def test_compressed_tensors_reads_it(half, tmp_path):
    """Its versions after 0.14 have no such compressor."""
    library = pytest.importorskip("compressed_tensors.compressors.sparse_compressors.sparse_24_bitmask")
    stored = load_file(sprat.export(half, "compressed-tensors", tmp_path / "out") / "model.safetensors")
    dense = load_file(sprat.export(half, "hf", tmp_path / "hf") / "model.safetensors")
    modules = [name.removesuffix(".bitmask") for name in stored if name.endswith(".bitmask")]
    assert len(modules) == 14
    for module in modules:
        parts = {part: stored[f"{module}.{part}"] for part in ("compressed", "bitmask", "shape")}
        found = library.Sparse24BitMaskTensor.from_compressed_data(**parts)
        assert torch.equal(found.decompress(), dense[f"{module}.weight"])
        again = library.Sparse24BitMaskTensor.from_dense(dense[f"{module}.weight"]).dict(f"{module}.weight")
        assert {name: (t.shape, t.dtype) for name, t in again.items()} == {
            f"{module}.{part}": (t.shape, t.dtype) for part, t in parts.items()
        }


class Changed:
    """An artifact that holds `entries` in place of, or as, all that it holds."""

    def __init__(self, artifact, entries: dict[str, Entry], only: bool = False) -> None:
        self._artifact, self._entries = artifact, entries
        self.path, self.names = artifact.path, tuple(entries) if only else artifact.names

    def entry(self, name: str) -> Entry:
        return self._entries.get(name) or self._artifact.entry(name)


def read(artifact, entries: dict[str, Entry], only: bool = False) -> dict[str, np.ndarray]:
    return dict(sparse24.tensors(Changed(artifact, entries, only)))  # pyright: ignore[reportArgumentType]


DOWN = "model.layers.1.mlp.down_proj"


def test_a_transposed_layer_is_refused(half):
    """Its module's inputs run along the other axis, and the pattern with them."""
    artifact = sprat.open(half)
    with pytest.raises(SpratError, match=r"layers\.1\.mlp\.down_proj is stored without a 2:4 pattern"):
        read(artifact, {DOWN: replace(artifact.entry(DOWN), transposed=True)})


@pytest.mark.parametrize("change", ["1:4", "2:8", "none"])
def test_a_single_layer_of_another_pattern_is_refused(half, change):
    artifact = sprat.open(half)
    entry = artifact.entry(DOWN)
    pattern = None
    if change != "none":
        kept, group = map(int, change.split(":"))
        pattern = Pattern(kept, group, np.tile(np.arange(group) < kept, (32, 64 // group)))
    lattice = replace(entry.tensor, q=np.zeros_like(entry.tensor.q), pattern=pattern)
    with pytest.raises(SpratError, match=r"down_proj is stored without a 2:4 pattern"):
        read(artifact, {DOWN: replace(entry, tensor=lattice)})


def test_a_file_without_layers_is_refused(half):
    artifact = sprat.open(half)
    name = next(name for name in artifact.names if "embed" in name)
    with pytest.raises(SpratError, match="every map is stored without a 2:4 pattern"):
        read(artifact, {name: artifact.entry(name)}, only=True)


def test_maps_stored_as_one_are_split(half):
    """Rows of several modules in one lattice; and a small dense matrix in a layer, a router, say, stays."""
    artifact = sprat.open(half)
    lattice, router = artifact.entry(DOWN).tensor, Dense(np.eye(4, dtype=np.float32), "f32")
    both = Entry(("m.0.a.weight", "m.0.b.weight"), (10, 22), lattice)
    found = read(artifact, {"m.0.ab": both, "m.0.router": Entry(("m.0.router",), (4,), router)}, only=True)
    assert (found.pop("m.0.router") == np.eye(4)).all()
    dense = dense_by_hand({name: torch.from_numpy(array) for name, array in found.items()})
    assert [tuple(tensor.shape) for tensor in dense.values()] == [(10, 64), (22, 64)]
    assert (torch.cat(list(dense.values())).numpy() == lattice.dense()).all()


def test_the_verb_refuses_a_plain_file(tiny, tmp_path, capsys):
    assert main(["export", str(tiny.file), "--to", "compressed-tensors", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "tiny.sprat: model.layers." in said and "fit with --sparsity 2:4, or export --to hf" in said
    assert not list(tmp_path.iterdir())


def test_the_verb_says_who_opens_it(half, tmp_path, capsys):
    assert main(["export", str(half), "--to", "compressed-tensors", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "out: " in said.out and "up to 0.14" in said.err
    assert main(["export", str(half), "--to", "hf", str(tmp_path / "hf")]) == 0
    assert "0.14" not in capsys.readouterr().err
