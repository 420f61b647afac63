"""`sprat fit --device cuda` on a pretended GPU: text, statistics, checks and healing there, the file as from here."""

from __future__ import annotations

import shutil

import pytest
import torch

import pretend_gpu
from mixtures import tiny_mixture
from sprat import assembly
from sprat import job as jobs
from sprat.cli.main import main
from sprat.coding import container
from sprat.errors import SpratError
from sprat.fit import fit
from sprat.plan import plan
from sprat.recipe import Recipe
from sprat.sense.statistics import GroupStatistics, HeadStatistics
from sprat.training import devices

RECIPE = Recipe(context=64, tokens=2048, held_out=4, heal=24)


@pytest.fixture
def gpu(monkeypatch):
    """A machine with one, which multiplies float32, and a processor that is asked to."""
    monkeypatch.setattr(devices, "gpus", lambda: 1)
    monkeypatch.setattr(jobs, "working_dtype", lambda *_: torch.float32)
    with pretend_gpu.here():
        yield


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """A cache of its own: what one device measured is not what the other would."""

    def use(name):
        monkeypatch.setenv("SPRAT_CACHE", str(tmp_path / f"cache-{name}"))

    return use


@pytest.mark.parametrize("mixture", [False, True])
def test_what_is_measured_there_is_what_is_measured_here(tiny, tmp_path, gpu, cached, mixture):
    folder = tiny.folder
    if mixture:
        folder = shutil.copytree(folder, tmp_path / "model")
        tiny_mixture("qwen3").save_pretrained(folder)

    def sensed(device):
        cached(device)
        job = jobs.start(folder, str(tiny.text), 0, RECIPE, lambda *_: None, device=device)
        jobs.sense(job, 0)
        assert all(p.device.type == "cpu" for p in job.source.model.parameters())
        cache, layers = job.targets.cache, job.targets.layers()
        layer = {n: s for i in layers for n, s in cache.get(f"layer/{i}", GroupStatistics).items()}
        return {**layer, **cache.get("head", HeadStatistics)}

    here, there = sensed("cpu"), sensed("cuda")
    assert here.keys() == there.keys() and len(here) > 5
    for name, wanted in here.items():
        for moment in vars(wanted):
            a, b = getattr(wanted, moment), getattr(there[name], moment)
            if isinstance(a, int):
                assert a == b
            else:
                limit = 0.02 if moment == "probes" else 1e-3  # of bfloat16
                assert a.shape == b.shape
                assert float((a.float() - b.float()).norm()) <= limit * float(a.float().norm()), (
                    name,
                    moment,
                )


@pytest.mark.parametrize("settings", [{}, {"remove_layers": 1}, {"heal_rank": 2}], ids=str)
def test_the_file_is_as_good_as_from_here(tiny, tmp_path, gpu, cached, settings):
    recipe = Recipe.from_dict(RECIPE.to_dict() | settings)
    found = {}
    for device in ("cpu", "cuda"):
        cached(device)
        out = tmp_path / f"{device}.sprat"
        found[device] = fit(tiny.folder, "31%", out, str(tiny.text), recipe=recipe, device=device)
        with container.open(out) as artifact:
            artifact.verify()
    here, there = found["cpu"], found["cuda"]
    assert there.nbytes == pytest.approx(here.nbytes, rel=0.01)
    assert there.predicted_kl == pytest.approx(here.predicted_kl, rel=0.02)
    assert there.unhealed_kl == pytest.approx(here.unhealed_kl, rel=0.1)
    assert there.measured_kl == pytest.approx(here.measured_kl, rel=0.1)
    assert there.measured_kl < there.unhealed_kl


def test_text_of_its_own_is_written_there_and_kept_apart(tiny, tmp_path, gpu, cached, monkeypatch):
    """For more contexts than it has, too: the same seed may write another text on another device."""
    cached("both")
    monkeypatch.setattr(jobs, "calibration_tokens", lambda widest: 1024)
    recipe = Recipe(context=64, held_out=2, heal=24)

    def written(device):
        job = jobs.start(tiny.folder, "self", 0, recipe, lambda *_: None, device=device)
        return job.calibration.hash, len(assembly.heal_text(job))

    (tmp_path / "cache-both").mkdir()
    first = written("cpu")
    folders = set((tmp_path / "cache-both").iterdir())
    second = written("cuda")
    assert first[1] == second[1] == 24
    assert set((tmp_path / "cache-both").iterdir()) > folders
    assert written("cuda") == second


def test_a_plan_and_refusals(tiny, tmp_path, gpu, cached, monkeypatch, capsys):
    cached("plan")
    (row,) = plan(tiny.folder, ["40%"], str(tiny.text), recipe=RECIPE, device="cuda")
    assert row.predicted_kl > 0
    out = tmp_path / "x.sprat"
    assert main(["fit", str(tiny.folder), "--budget", "40%", "-o", str(out), "--device", "cuda:7"]) == 2
    assert "no device 'cuda:7'" in capsys.readouterr().err

    def ends(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(jobs, "measure", ends)
    with pytest.raises(
        SpratError, match=r"out of memory on cuda:0, where the model alone takes [\d.]+ .B: --device"
    ):
        fit(tiny.folder, "40%", out, str(tiny.text), recipe=RECIPE, device="cuda")
    assert not out.exists()
