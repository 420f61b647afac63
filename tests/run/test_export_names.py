"""What `sprat export` writes where a file gives its tokenizer's files names of its own."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

import sprat
from sprat.coding import container
from sprat.coding.tokenizer import pack
from sprat.run.tokenizer import tokenizer_files

HOSTILE = ("model.safetensors", "config.json", "sub/config.json", "../config.json", "run.py")


@pytest.mark.parametrize("packed", [False, True], ids=["a section each", "packed"])
def test_only_a_tokenizers_files_are_written(tiny, tmp_path, packed):
    with sprat.open(tiny.file) as artifact:
        files = tokenizer_files(artifact) | dict.fromkeys(HOSTILE, b"{}")
        container.write(
            tmp_path / "hostile.sprat",
            config=artifact.config,
            entries=artifact.entries(),
            recipe={},
            provenance={},
            file_extra={"tokenizer/packed": pack(files)}
            if packed
            else {f"tokenizer/{name}": content for name, content in files.items()},
        )
    plain = sprat.export(tiny.file, "hf", tmp_path / "plain" / "out", "float32")
    folder = sprat.export(tmp_path / "hostile.sprat", "hf", tmp_path / "hostile" / "out", "float32")
    assert {p.name for p in folder.iterdir()} == {p.name for p in plain.iterdir()}
    assert (folder / "config.json").read_bytes() == (plain / "config.json").read_bytes()
    assert load_file(folder / "model.safetensors").keys() == load_file(plain / "model.safetensors").keys()
    assert sorted(p.name for p in folder.parent.iterdir()) == ["out"]
