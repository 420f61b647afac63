"""A golf on a GPU, as far as a machine without one can tell: nothing stays behind, and the numbers are the same."""

from __future__ import annotations

import json

import pytest
import torch
from small import documents, recipe, write

import pretend_gpu
from sprat.cli.main import main
from sprat.errors import RecipeError, SpratError, TrainingError
from sprat.golf import loop, words
from sprat.golf.batches import Batches
from sprat.golf.golf import golf
from sprat.golf.model import Decoder
from sprat.golf.result import figures, read
from sprat.golf.schedule import Length
from sprat.golf.training import Training
from sprat.training import devices
from sprat.training.checkpoint import Checkpoint

TEXTS = documents()
IDS = words.stream(words.learn(TEXTS, 320), TEXTS)
STEPS = 8
SETTINGS = [
    {},
    {"ema": 0.9, "accumulate": 2, "batch": 2, "noise": 0.5, "weight_decay": 0.1, "clip": 1.0},
    {"precision": "bf16"},
    {"rate_term": 0.6},
    {"memory": "delta", "memory_every": 2},
    {"experts": 4, "chosen": 2, "inner": 16},
    {"ngrams": 64, "ngram_order": 3, "shared": "all", "loops": 2},
    {"weights": "ternary"},
    {"weights": "binary"},
    {"activation": "relu2", "finish": "int8-zlib"},
    {"prune_from": 128, "prune_at": 0.4},
    {"equation": "toeplitz(4); embedding: lowrank(8)"},
    {"equation": "scaled(seeded) + lowrank(4)"},
    {"equation": "hypernetwork(4)"},
    {"equation": "coordinates(4)"},
    {"equation": "polynomial(1, monarch(4)) + kron(2, 4)"},
]


def training(device: str, teacher=None, **settings) -> Training:
    r = recipe(**settings)
    batches, length = Batches(IDS, r.context, r.batch, 0), Length("tokens", STEPS * r.step_tokens)
    return Training(r, 320, batches, length, 0, teacher, torch.device(device))


def matches(mine: torch.nn.Module, its: torch.nn.Module, share: float) -> bool:
    """Whether all parameters are within `share` of their largest."""
    pairs = ((a.detach(), b.detach()) for a, b in zip(mine.parameters(), its.parameters(), strict=True))
    return all(float((a - b).abs().max()) <= share * float(a.abs().max()) + 1e-6 for a, b in pairs)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: " ".join(map(str, s.values())) or "plain")
def test_what_is_trained_there_is_what_is_trained_here(settings):
    """Attention is another function there, so its sums are in another order."""
    here = training("cpu", **settings)
    losses = [here.advance() for _ in range(STEPS)]
    with pretend_gpu.here():
        there = training("cuda", **settings)
        others = [there.advance() for _ in range(STEPS)]
        assert all(p.device.type == "cuda" for p in there.model.parameters())
        ended = there.result()
        assert all(p.device.type == "cpu" for p in ended.parameters())
    few = settings.get("precision") == "bf16" or settings.get("weights") or settings.get("experts")
    assert others == pytest.approx(losses, rel=0.01 if few else 1e-3)
    assert few or matches(here.result(), ended, 0.03)
    assert losses[-1] < losses[0]


def test_a_teacher_there():
    teacher = Decoder(recipe(), 320, 5).eval()
    here = training("cpu", lambda ids: teacher(ids), distill=0.5)
    losses = [here.advance() for _ in range(4)]
    with pretend_gpu.here():
        teacher.to("cuda")
        there = training("cuda", teacher, distill=0.5)
        assert [there.advance() for _ in range(4)] == pytest.approx(losses, rel=1e-3)


def test_a_checkpoint_of_there_goes_on_there_and_here(tmp_path):
    checkpoint = Checkpoint(tmp_path / "c", {}, 0.0)
    settings = {"ema": 0.9, "prune_from": 128, "prune_at": 0.2, "rate_term": 0.9}
    with pretend_gpu.here():
        whole = training("cuda", **settings)
        for _ in range(4):
            whole.advance()
        checkpoint.save(whole.state())
        losses = [whole.advance() for _ in range(3)]
        for device in ("cuda", "cpu"):
            again = training(device, **settings)
            again.restore(checkpoint.load())
            assert [again.advance() for _ in range(3)] == pytest.approx(losses, rel=1e-3)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(devices, "gpus", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Pretended 9000")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    with pretend_gpu.here():
        yield


def test_from_text_to_file(tmp_path, gpu):
    """In the type that the GPU has; a teacher of its own is trained there first; the result says where."""
    chosen = recipe(precision="auto", teach={"inner": 96}, distill=0.3)
    out = tmp_path / "a.sprat"
    (tmp_path / "text").mkdir()
    texts = write(tmp_path / "text", TEXTS)
    found = golf(chosen, texts, "80kB", Length("tokens", 256 * 40), out, device="cuda")
    (row,) = found["runs"]
    assert found["device"] == read(figures(out))["device"] == "Pretended 9000"
    assert out.stat().st_size == row["bytes"] <= 80_000
    assert row["bits_per_byte"] < 3 and row["teacher"]["tokens"]
    assert golf(chosen, texts, "80kB", Length("tokens", 256 * 40), out, device="cuda", resume=True)[
        "runs"
    ] == [row]


def test_a_place_in_the_loop_is_kept_whole(tmp_path, gpu):
    """What `loop.run` writes of a training there is read back."""
    checkpoint = Checkpoint(tmp_path / "c", {}, 0.0)
    points = loop.run(training("cuda"), checkpoint)
    assert points[-1].share == 1
    assert checkpoint.load()["step"] == STEPS


def test_memory_that_ends_says_what_takes_less(tmp_path, monkeypatch, gpu):
    def ends(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Training, "_backward", ends)
    with pytest.raises(TrainingError, match="out of memory on cuda: a smaller `batch`"):
        loop.run(training("cuda"))


def test_what_a_gpu_is_not_counted_by_and_one_that_is_not_there(tmp_path, monkeypatch, capsys):
    texts = write(tmp_path, TEXTS)
    out = tmp_path / "a.sprat"
    monkeypatch.setattr(devices, "gpus", lambda: 1)
    with pytest.raises(RecipeError, match="processor minutes do not count what a GPU does"):
        golf(recipe(), texts, "80kB", Length("processor seconds", 60), out, device="cuda")
    with pytest.raises(SpratError, match=r"no device 'cuda:1': .* have cpu, cuda:0"):
        golf(recipe(), texts, "80kB", Length("tokens", 999), out, device="cuda:1")
    (tmp_path / "r.toml").write_text("layers = 2\n")
    words_ = ["golf", "train", str(tmp_path / "r.toml"), "--cap", "80kB", "--tokens", "999", "-o", str(out)]
    assert main([*words_, "--text", str(texts[0]), "--device", "gpu"]) == 2
    assert "unknown device 'gpu' (did you mean 'cuda'?)" in capsys.readouterr().err
    assert not out.exists()


def test_a_result_of_a_gpu_is_not_one_of_a_processor(tmp_path):
    """Rows of both do not belong together; one of before devices were told is a processor's."""
    from sprat.golf.compare import compare
    from sprat.golf.result import unlike

    texts = write(tmp_path, TEXTS)
    result = golf(recipe(), texts, "80kB", Length("tokens", 256 * 4), tmp_path / "a.sprat")
    other = json.loads(json.dumps(result)) | {"device": "Pretended 9000"}
    before = {key: value for key, value in result.items() if key != "device"}
    assert unlike(result, other) == ["device"] and unlike(result, before) == []
    assert "device: cpu and Pretended 9000" in compare(result, other).unequal
    assert compare(before, result).unequal == ()
