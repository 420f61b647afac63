"""Models from every place, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sprat.errors import SourceError
from sprat.source.load import digest, load


@pytest.fixture
def folder(tiny, tmp_path):
    return shutil.copytree(tiny.folder, tmp_path / "model")


def test_a_folder(tiny, capfd):
    source = load(str(tiny.folder), torch.float32)
    saved = load_file(tiny.folder / "model.safetensors")
    for name, tensor in saved.items():
        assert torch.equal(source.model.get_parameter(name), tensor)
    assert source.original_bytes == 2 * sum(t.numel() for t in saved.values())  # the tied head is saved once
    assert source.kind == "folder" and source.is_instruct and not source.model.training
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= set(source.tokenizer_files)
    assert source.config["model_type"] == "llama" and json.dumps(source.config)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_the_hash_follows_the_weights(tiny, folder):
    assert load(folder).hash == load(tiny.folder).hash
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load(folder).hash != load(tiny.folder).hash
    assert digest(folder) == load(folder).hash


def test_what_is_no_model_has_no_digest(tmp_path):
    with pytest.raises(SourceError, match="is no model"):
        digest(tmp_path)


def test_shards(tiny, tmp_path):
    source = load(tiny.folder, torch.float32)
    source.model.save_pretrained(tmp_path, max_shard_size="20KB")
    source.tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = load(tmp_path, torch.float32)
    assert all(
        torch.equal(a, b) for a, b in zip(source.model.parameters(), again.model.parameters(), strict=True)
    )


def refused(ref, pattern):
    with pytest.raises(SourceError, match=pattern):
        load(ref)


def test_no_model_there(tmp_path):
    (tmp_path / "notes.txt").write_text("no model")
    refused(tmp_path, r"is no model: looked for config.json and \*.safetensors, found notes.txt")
    refused(tmp_path / "notes.txt", "is a file but no .gguf")
    refused(tmp_path / "note.txt", r"no file or folder .*did you mean 'notes.txt'")
    refused("smollm2-135n", "did you mean 'smollm2-135m'")


def test_broken_folders(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"model_type": "lama", "architectures": ["Lama"]})
    )
    refused(folder, r"unsupported architecture Lama .*did you mean 'llama'.*nn.Linear")
    (folder / "config.json").write_text("{")
    refused(folder, "is no JSON")
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    bad = dict(weights)
    bad["model.norm.weight"] = weights["model.norm.weight"].clone()
    bad["model.norm.weight"][3] = float("nan")
    save_file(bad, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, "model.norm.weight holds 1 values that are NaN or infinite")
    del bad["model.norm.weight"]
    save_file(bad, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, "lacks the tensor model.norm.weight")
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    refused(folder, "cannot be loaded")
    (folder / "model.safetensors").unlink()
    refused(folder, r"no \*.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"")
    refused(folder, "pytorch_model.bin, a pickle, which can run code")


def test_the_hub_out_of_reach_says_what_to_do(monkeypatch, tmp_path):
    import huggingface_hub

    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    refused("someone/some-model", r"hf download someone/some-model .*HF_HUB_OFFLINE")


def test_importing_sprat_needs_no_torch():
    code = "import sprat, sprat.source, sys; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


#: Types that gguf-py dequantizes, one a layer.
_TYPES = [
    "F16",
    "BF16",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "TQ1_0",
    "TQ2_0",
    "IQ2_XXS",
    "IQ2_XS",
    "IQ2_S",
    "IQ3_XXS",
    "IQ3_S",
    "IQ1_S",
    "IQ1_M",
    "IQ4_NL",
    "IQ4_XS",
]


def write_gguf(path, tokenizer_json):
    """A Llama of width 256, its down projections of one type each; returns what gguf-py makes of them."""
    rng = np.random.default_rng(0)
    width, vocabulary = 256, tokenizer_json["model"]["vocab"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(len(_TYPES))
    writer.add_feed_forward_length(width)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(64)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.get))
    writer.add_token_merges([" ".join(m) for m in tokenizer_json["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)

    def plain(name, *shape):
        writer.add_tensor(name, rng.normal(size=shape).astype(np.float32))

    plain("token_embd.weight", len(vocabulary), width)
    plain("output_norm.weight", width)
    dense = []
    for i, name in enumerate(_TYPES):
        kind = gguf.GGMLQuantizationType[name]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        # Bytes below 0x30 are finite as any half of a number.
        raw = rng.integers(0, 0x30, (width, width // block * size)).astype(np.uint8)
        dense.append(gguf.dequantize(raw, kind))
        writer.add_tensor(f"blk.{i}.ffn_down.weight", raw, raw_dtype=kind)
        for part, rows in (("attn_q", 256), ("attn_k", 128), ("attn_v", 128), ("attn_output", 256)):
            plain(f"blk.{i}.{part}.weight", rows, width)
        plain(f"blk.{i}.ffn_gate.weight", width, width)
        plain(f"blk.{i}.ffn_up.weight", width, width)
        plain(f"blk.{i}.attn_norm.weight", width)
        plain(f"blk.{i}.ffn_norm.weight", width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return dense


def test_gguf_of_every_type_equals_gguf_py(tiny, tmp_path, capfd):
    tokenizer_json = json.loads((tiny.folder / "tokenizer.json").read_text())
    path = tmp_path / "small.gguf"
    dense = write_gguf(path, tokenizer_json)
    source = load(path, torch.float32)
    for layer, name, wanted in zip(source.model.model.layers, _TYPES, dense, strict=True):
        assert np.array_equal(layer.mlp.down_proj.weight.detach().numpy(), wanted), name
    assert source.kind == "gguf" and "quantization_config" not in source.config
    assert "tokenizer.json" in source.tokenizer_files
    text = "the cat sat on the mat"
    assert source.tokenizer.decode(source.tokenizer.encode(text, add_special_tokens=False)) == text
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    source.model.save_pretrained(tmp_path / "again")  # nothing is left of its having been quantized


def test_a_truncated_gguf(tiny, tmp_path):
    path = tmp_path / "small.gguf"
    write_gguf(path, json.loads((tiny.folder / "tokenizer.json").read_text()))
    path.write_bytes(path.read_bytes()[:5000])
    refused(path, "cannot be loaded")
