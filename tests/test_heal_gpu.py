"""`sprat heal --device cuda`, from file to file on a pretended GPU; devices that are not there; memory that ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pretend_gpu
import sprat.heal as healing
from sprat.cli.main import main
from sprat.coding import container
from sprat.errors import SpratError
from sprat.heal import heal
from sprat.source.load import load
from sprat.training import devices, processes
from tiny_model import SENTENCES, save_model, write_file


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(original, a coarse file made from it, a text)."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("heal")
    folder = save_model(root / "original")
    provenance = {"model": "tiny", "model_sha256": load(folder).hash, "calibration": {"source": "self"}}
    recipe = {"context": 64, "held_out": 8, "trellis": 0}
    file = write_file(folder, root / "coarse.sprat", 2, provenance, recipe)
    words = SENTENCES.split()
    order = np.random.default_rng(0).integers(0, len(words), 4000)
    (root / "text.txt").write_text(" ".join(words[i] for i in order))
    return folder, file, root / "text.txt"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, made):
    monkeypatch.setenv("SPRAT_CACHE", str(made[1].parent / "cache"))


@pytest.fixture
def gpu(monkeypatch):
    """A machine with one, which multiplies float32."""
    monkeypatch.setattr(devices, "gpus", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    with pretend_gpu.here():
        yield


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_from_file_to_file(made, tmp_path, monkeypatch, gpu, deep, own):
    """The processor in float32 gives as much; the original writes its text there too."""
    folder, file, text = made
    monkeypatch.setattr(healing, "working_dtype", lambda place: torch.float32)
    given = {
        "calibrate": "self" if own else str(text),
        "contexts": 40,
        "tokens": 1024,
        "rate": 0.01,
        "budget": "100%",
        "deep": deep,
    }
    there = heal(file, folder, tmp_path / "there.sprat", device="cuda", **given)
    assert there.kept and there.kl < 0.95 * there.before_kl
    if not own:  # the same text
        here = heal(file, folder, tmp_path / "here.sprat", **given)
        assert there.before_kl == pytest.approx(here.before_kl, rel=1e-4)
        assert there.kl == pytest.approx(here.kl, rel=0.01)
    with container.open(there.path) as artifact, container.open(file) as before:
        assert artifact.entries().keys() == before.entries().keys()


def test_a_device_that_is_not_there_says_what_is(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(devices, "gpus", lambda: 0)
    folder, file, _ = made
    out = tmp_path / "out.sprat"
    words = ["heal", str(file), "--against", str(folder), "--minutes", "1", "-o", str(out), "--device"]
    for name, said in {
        "cuda": f"no device 'cuda': this machine and its PyTorch ({torch.__version__}) have cpu",
        "cuda:1": "no device 'cuda:1'",
        "cdua": "unknown device 'cdua' (did you mean 'cuda'?)",
        "cpu:1": "unknown device 'cpu:1' (did you mean 'cpu'?)",
        "cuda:-1": "unknown device 'cuda:-1'",
    }.items():
        assert main([*words, name]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(devices, "gpus", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert devices.find("cuda") == torch.device("cuda:0")  # one process, whatever the environment says
    monkeypatch.setattr(processes, "count", lambda: 3)
    assert devices.find("cuda") == torch.device("cuda:1")
    assert devices.find("cuda:0") == torch.device("cuda:0")
    assert devices.find("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(SpratError, match=r"no device 'cuda' for process 2 of this machine.*cuda:0, cuda:1"):
        devices.find("cuda")


def test_memory_that_ends_says_how_much_is_needed(made, tmp_path, monkeypatch, gpu):
    folder, file, text = made

    def ends(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(healing, "train", ends)
    with pytest.raises(
        SpratError, match=r"out of memory on cuda:0: this healing takes about [\d.,]+ .B; .*--device cpu"
    ):
        heal(file, folder, tmp_path / "out.sprat", contexts=8, tokens=512, calibrate=str(text), device="cuda")
    assert not (tmp_path / "out.sprat").exists()
