"""Checkpoints of other tools: weighed to the byte, their weights put in whole; and what the record says of peers."""

from __future__ import annotations

import importlib
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bench.peers import package
from safetensors.torch import load_file

from bench import checkpoint, report, work
from sprat.coding.tokenizer import pack
from sprat.errors import SpratError
from sprat.source.load import load


@pytest.fixture(scope="module")
def source(tiny):
    return load(tiny.folder, torch.float32)


def test_the_original_is_written_once_in_bf16(source, tmp_path):
    folder = checkpoint.original(source, tmp_path / "original")
    saved = load_file(folder / "model.safetensors")
    assert {t.dtype for t in saved.values()} == {torch.bfloat16}
    assert {p.dtype for p in source.model.parameters()} == {torch.float32}
    before = (folder / "model.safetensors").stat().st_mtime_ns
    checkpoint.original(source, folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_a_checkpoint_weighs_what_was_saved_and_the_tokenizer(source, tiny, tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SpratError, match="saved 0 files of weights"):
        checkpoint.weigh(tmp_path, source)
    shutil.copy(tiny.folder / "model.safetensors", tmp_path / "inside")
    (tmp_path / "notes.txt").write_text("not weighed")
    found = checkpoint.weigh(tmp_path, source)
    weights = (tiny.folder / "model.safetensors").stat().st_size
    assert found["bytes"] == weights + 2 + len(pack(source.tokenizer_files))


def test_all_weights_are_put_in_or_none(source):
    weights = {name: torch.randn_like(p) for name, p in source.model.named_parameters()}
    before = {name: p.detach().clone() for name, p in source.model.named_parameters()}
    made = checkpoint.installed(source.model, weights)
    assert all(torch.equal(p, weights[name]) for name, p in made.named_parameters())
    assert all(torch.equal(p, before[name]) for name, p in source.model.named_parameters())
    del weights["model.norm.weight"]
    with pytest.raises(SpratError, match=r"has no model\.norm\.weight"):
        checkpoint.installed(source.model, weights)


@pytest.mark.parametrize(
    ("extra", "how"), [("peers", r"pip install -c constraints\.txt '\.\[peers\]'"), ("", "see its file")]
)
def test_a_peer_that_is_not_installed_says_how_to_get_it(extra, how):
    with pytest.raises(SpratError, match=rf"no_such_tool is not installed .*{how}"):
        package("no_such_tool", extra)


@pytest.mark.parametrize(
    ("peer", "needs", "bits"),
    [
        ("torchao", "torchao", 8),
        ("torchao", "torchao", 4),
        ("autoround", "auto_round", 2),
        ("llmcompressor", "llmcompressor", 3),
    ],
)
def test_weights_lie_on_the_grid_of_their_groups(source, tmp_path, peer, needs, bits):
    pytest.importorskip(needs)
    tool = importlib.import_module(f"bench.peers.{peer}")
    folder = checkpoint.original(source, tmp_path / "original")
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 300, (4, 32)))
    settings = {"bits": bits, "group": 32, "iters": 2}
    weights = tool.quantize(folder, tmp_path / "saved", settings, ids)
    original = load_file(folder / "model.safetensors")
    assert torch.equal(weights["model.embed_tokens.weight"], original["model.embed_tokens.weight"].float())
    name = "model.layers.0.mlp.down_proj.weight"
    groups = weights[name].reshape(-1, 64 if bits == 8 else 32)
    assert max(len(group.unique()) for group in groups) <= 2**bits
    error = (weights[name] - original[name].float()).abs().mean() / original[name].float().abs().mean()
    assert 0 < error < {8: 0.01, 4: 0.15, 3: 0.3, 2: 0.9}[bits]
    assert checkpoint.weigh(tmp_path / "saved", source)["bytes"] > 0
    made = checkpoint.installed(source.model, weights)
    assert torch.isfinite(made(ids).logits).all()


def row(section: str, method: str, size: int, kl: float, **settings) -> dict:
    interval = {"value": kl, "low": kl, "high": kl}
    return {
        "section": section,
        "method": method,
        "label": f"{method} {size}",
        "settings": settings,
        "bytes": size * 10**6,
        "kl": interval,
        "same_top": interval,
    }


OURS = {
    f"s{size}": row("sprat", "sprat", size, kl, calibration="self") for size, kl in ((50, 0.1), (80, 0.01))
}
PEERS = {
    "small": row("peers", "hqq", 40, 0.9, bits=2, head="same"),
    "worse": row("peers", "llamacpp", 60, 0.2, type="Q4_0"),
    "better": row("peers", "llamacpp", 90, 0.005, type="Q8_0"),
    "broken": row("peers", "llamacpp", 60, 20.0, type="TQ2_0"),
    "heavy": row("peers", "torchao", 90, 0.02, bits=8, head="bf16"),
}


def test_the_report_says_where_sprat_loses():
    said = report._losses(OURS | PEERS)
    assert said.count("\n- ") == 2
    assert "hqq 40: 40.00 MB, KL 0.9000 (no file of sprat is as small)" in said
    assert "llamacpp 90: 90.00 MB, KL 0.0050 (sprat's best at these bytes or fewer: 0.0100)" in said
    assert "nowhere here" in report._losses(OURS | {"worse": PEERS["worse"]})
    table = report._peers(OURS | PEERS, "model")
    assert "| llamacpp 60 | 60.00 | 0.2000 (0.2000 to 0.2000) | 20.0 % |" in table


def test_the_picture_has_every_kind_of_peer(tmp_path):
    pytest.importorskip("matplotlib")
    report.picture.draw(OURS | PEERS, tmp_path / "q.svg", "title")
    text = (tmp_path / "q.svg").read_text()
    for label in ("llama.cpp, importance matrix", "torchao, head bf16", "Q8_0", "HQQ, head at the same bits"):
        assert label in text
    assert "TQ2_0" not in text  # too coarse to draw


def test_the_files_of_other_tools_are_in_the_list():
    rows = work.other_peer_rows()
    names = [r.name for r in rows + work.peer_rows()]
    assert len(set(names)) == len(names)
    assert {r.method for r in rows} == {"llamacpp", "torchao", "llmcompressor", "autoround"}
    assert "llamacpp-type=IQ4_NL+embedding-calibration=self" in names


def test_llamacpp_needs_a_gguf_to_start_from(tiny, tmp_path):
    from bench.measure import Bench

    pytest.importorskip("llama_cpp")
    judge = SimpleNamespace()
    bench = Bench(SimpleNamespace(hash="0" * 64), str(tiny.folder), judge, {}, tmp_path, 0, 0)
    with pytest.raises(SpratError, match="starts from a GGUF"):
        bench.measure(work.other_peer_rows()[0], lambda *_: None)
