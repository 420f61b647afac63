"""`sprat heal`, from file to file: better and no larger, or the file that was given; stopped and gone on with."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch

import sprat.heal as healing
from sprat import assembly, trial
from sprat import job as jobs
from sprat.cli.main import main
from sprat.coding import container
from sprat.coding.tensors import ZERO, Lattice, LowRank
from sprat.errors import BudgetError, RecipeError, SpratError
from sprat.fit import fit
from sprat.heal import checkpoint_path, heal
from sprat.level import search
from sprat.methods import healer as healers
from sprat.methods.heal import Scales
from sprat.prove.honesty import calibration_overlap
from sprat.prove.text import read
from sprat.recipe import Recipe
from sprat.run.engine import open_engine
from sprat.source.load import load
from sprat.source.text import tokenize
from tiny_model import SENTENCES, save_model, write_file

OPTIONS = {"contexts": 40, "tokens": 1024, "rate": 0.01}


def rounded(folder, path, steps):
    provenance = {"model": "tiny", "model_sha256": load(folder).hash, "calibration": {"source": "self"}}
    return write_file(folder, path, steps, provenance, {"context": 64, "held_out": 8})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(original, a coarse file made from it, a text)."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("heal")
    folder = save_model(root / "original")
    file = rounded(folder, root / "coarse.sprat", 2)
    text = root / "text.txt"
    words = SENTENCES.split()
    order = np.random.default_rng(0).integers(0, len(words), 4000)
    text.write_text(" ".join(words[i] for i in order))
    return folder, file, text


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch, made):
    monkeypatch.setenv("SPRAT_CACHE", str(made[1].parent / "cache"))


def test_better_and_no_larger(made, tmp_path):
    folder, file, _ = made
    result = heal(file, folder, tmp_path / "out.sprat", budget="100%", **OPTIONS)
    assert result.kept
    assert result.kl < 0.95 * result.before_kl
    assert result.points[-1].contexts == 40
    with container.open(file) as before, container.open(result.path) as after:
        assert after.config == before.config
        assert after.recipe == before.recipe
        (said,) = after.provenance["heal"]
        assert (said["source"], said["contexts"]) == ("self", 40)
        for name, entry in before.entries().items():
            if isinstance(entry.tensor, Lattice):
                assert np.array_equal(entry.tensor.q, after.entry(name).tensor.q)
    assert [p.name for p in tmp_path.iterdir()] == ["out.sprat"]


def test_never_above_the_budget(made, tmp_path):
    """At the file's own size scales get coarser, or nothing is kept; a budget below it is refused."""
    folder, file, _ = made
    result = heal(file, folder, tmp_path / "out.sprat", **OPTIONS)
    assert result.nbytes == result.path.stat().st_size <= file.stat().st_size
    assert result.kept == (result.kl < result.before_kl)
    assert result.kept or result.path.read_bytes() == file.read_bytes()
    with pytest.raises(BudgetError, match=r"above the budget of .*: healing makes no file smaller"):
        heal(file, folder, tmp_path / "less.sprat", budget=f"{file.stat().st_size - 1}", **OPTIONS)
    assert not (tmp_path / "less.sprat").exists()


def test_a_heal_that_does_not_help_is_not_kept(made, tmp_path):
    folder = made[0]
    file = rounded(folder, tmp_path / "fine.sprat", 500)
    result = heal(file, folder, tmp_path / "out.sprat", contexts=8, tokens=512, rate=0.1, budget="1MB")
    assert not result.kept
    assert "its KL was" in result.rejected
    assert result.path.read_bytes() == file.read_bytes()


def test_the_same_arguments_give_the_same_file(made, tmp_path):
    folder, file, _ = made
    files = [heal(file, folder, tmp_path / f"{i}.sprat", budget="100%", **OPTIONS).path for i in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("rank", [0, 2])
def test_stopped_and_resumed_gives_the_same_file(made, tmp_path, monkeypatch, rank):
    folder, file, _ = made
    options = {**OPTIONS, "rank": rank}
    whole = heal(file, folder, tmp_path / "whole.sprat", budget="100%", **options).path

    class Stopped(Scales):
        steps = 0

        def step(self, rate):
            self.steps += 1
            if self.steps == 17:
                raise KeyboardInterrupt
            super().step(rate)

    monkeypatch.setattr(healing, "CHECKPOINT_SECONDS", 0.0)
    out = tmp_path / "out.sprat"
    with monkeypatch.context() as patch:
        patch.setattr(healers, "Scales", Stopped)
        with pytest.raises(KeyboardInterrupt):
            heal(file, folder, out, budget="100%", **options)
    assert checkpoint_path(out).is_file()
    assert not out.exists()
    with pytest.raises(SpratError, match="of another run: its seed is 0, this one's 1"):
        heal(file, folder, out, budget="100%", **options, resume=True, seed=1)
    twice = {name: 2 * options[name] for name in ("rate", "contexts", "tokens")}
    named = {"rate": "rate", "contexts": "length", "tokens": "text"}
    others = [({name: value}, named[name]) for name, value in twice.items()]
    # As many steps, of four contexts.
    others += [({"rank": rank + 1}, "rank"), ({"deep": True, "rank": 0, "contexts": 160}, "deep")]
    for changed, name in others:
        with pytest.raises(SpratError, match=f"of another run: its {name} is"):
            heal(file, folder, out, budget="100%", **(options | changed), resume=True)
    with pytest.raises(SpratError, match="of another run: its file is"):
        heal(rounded(folder, tmp_path / "other.sprat", 3), folder, out, budget="100%", **options, resume=True)
    heal(file, folder, out, budget="100%", **options, resume=True)
    assert out.read_bytes() == whole.read_bytes()
    assert not checkpoint_path(out).exists()


def test_products_beside_the_maps_help_and_are_run_by_both_engines(made, tmp_path):
    folder, file, _ = made
    plain = heal(file, folder, tmp_path / "plain.sprat", budget="100%", **OPTIONS)
    result = heal(file, folder, tmp_path / "rank.sprat", budget="100%", rank=2, **OPTIONS)
    assert result.kept and result.kl < plain.kl and result.nbytes > plain.nbytes
    with pytest.raises(BudgetError, match=r"products of rank 2 need bytes .* \(--budget\)"):
        heal(file, folder, tmp_path / "no.sprat", rank=2, **OPTIONS)
    with container.open(result.path) as artifact:
        entries = artifact.entries()
        thin = [e for e in entries.values() if isinstance(e.tensor, LowRank)]
        assert thin and all(e.tensor.left.shape[1] == 2 for e in thin)
        assert not any("embed" in name for e in thin for name in e.maps)
        native, torch_ = (open_engine(artifact, threads=1, kind=kind) for kind in ("native", "torch"))
        ids = list(range(1, 30))
        logits = torch_.all_logits(ids)
        assert np.abs(native.all_logits(ids) - logits).max() < 0.1 * np.abs(logits).max()


def test_a_fit_leaves_room_for_products(made, tmp_path, monkeypatch):
    """What healing made fits with its products in their finest steps, and fills the budget better than without."""
    folder, _, text = made
    found: list[search.Fitted] = []
    healed = assembly.healed
    monkeypatch.setattr(assembly, "healed", lambda *given: found.extend(healed(*given)) or found)
    recipe = Recipe(context=64, tokens=2048, heal=8, heal_rank=1)
    result = fit(folder, "21kB", tmp_path / "out.sprat", str(text), recipe=recipe)
    (whole,) = found
    layers = [e.tensor for e in whole.rounded.entries.values() if isinstance(e.tensor, LowRank)]
    assert result.nbytes <= 21000 and 0.97 * 21000 < whole.file.nbytes <= 21000
    assert layers and all(t.left.shape[1] == 1 and t.left.col_class[0] == ZERO + 7 for t in layers)


def test_prove_can_tell_a_heal_text(made, tmp_path):
    folder, file, text = made
    result = heal(file, folder, tmp_path / "out.sprat", calibrate=str(text), budget="100%", **OPTIONS)
    assert result.kept
    with container.open(result.path) as artifact:
        provenance = artifact.provenance
    assert calibration_overlap(provenance, [read(text)]) == {"source": "self, text.txt", "overlap": 1.0}
    copied = tmp_path / "copied.txt"
    copied.write_text(text.read_text()[:-20])
    assert calibration_overlap(provenance, [read(copied)])["overlap"] > 0.5
    other = tmp_path / "other.txt"
    other.write_text("entirely different words that nobody has ever put into this very order before now")
    assert calibration_overlap(provenance, [read(other)])["overlap"] == 0
    unknown = {**provenance, "calibration": {"source": "hub:something"}}
    assert calibration_overlap(unknown, [read(other)])["overlap"] is None
    assert calibration_overlap(unknown, [read(text)])["overlap"] == 1.0


def test_deep_moves_integers_and_keeps_the_budget(made, tmp_path):
    folder, file, _ = made
    size = file.stat().st_size
    result = heal(file, folder, tmp_path / "out.sprat", contexts=160, tokens=2048, rate=0.01, deep=True)
    assert result.kept, result.rejected
    assert result.nbytes == result.path.stat().st_size <= size
    assert result.kl < 0.9 * result.before_kl
    with container.open(file) as before, container.open(result.path) as after:
        moved = [
            (entry.tensor.q != after.entry(name).tensor.q).mean()
            for name, entry in before.entries().items()
            if isinstance(entry.tensor, Lattice)
        ]
    assert 0 < np.mean(moved) < 0.5


@pytest.mark.parametrize("deep", [False, True])
def test_fit_heals_by_the_recipe(made, tmp_path, deep):
    folder, _, text = made
    out = tmp_path / "out.sprat"
    recipe = Recipe(
        context=64, tokens=2048, trellis=0, heal=0, heal_minutes=0.02, heal_deep=deep, heal_rate=0.01
    )
    result = fit(folder, "22kB", out, str(text), recipe=recipe)
    assert result.nbytes == out.stat().st_size <= 22000
    assert result.measured_kl <= result.unhealed_kl
    assert 1 < result.seconds["healing"] < 30
    with container.open(out) as artifact:
        assert artifact.recipe["heal_minutes"] == 0.02


@pytest.mark.parametrize("read_on", [False, True])
def test_more_contexts_than_the_text_has_are_written_or_read(made, monkeypatch, read_on):
    """None is learnt from twice, and none that is held out; a text of a length that the recipe says stays as it is."""
    monkeypatch.setattr(jobs, "calibration_tokens", lambda widest: 1024)

    def learnt(**settings):
        recipe = Recipe(context=64, held_out=2, **settings)
        job = jobs.start(made[0], str(made[2]) if read_on else "self", 0, recipe, lambda *_: None)
        text = torch.as_tensor(job.calibration.ids)
        found = assembly.heal_text(job)
        assert torch.equal(found[: len(text) - 2], text[:-2])
        assert len(
            {tuple(row) for row in found.tolist()} - {tuple(row) for row in text[-2:].tolist()}
        ) == len(found)
        return len(found)

    assert learnt(heal=16) == 16
    assert learnt(heal=40) == 40
    assert learnt(heal=40, tokens=1024) == 16
    if read_on:  # as far as it goes
        whole = tokenize(load(made[0]).tokenizer, made[2].read_text())
        assert learnt(heal=10_000) == len(whole) // 64 - 2


def test_a_fit_says_what_else_its_healing_read(made, tmp_path, monkeypatch):
    folder, _, text = made
    monkeypatch.setattr(jobs, "calibration_tokens", lambda widest: 1024)
    monkeypatch.setattr(assembly, "fitting", lambda learner, made, fits: [(None, made(learner.healed()))])
    monkeypatch.setattr(trial, "_measured", lambda *_: 0.0)
    out = tmp_path / "out.sprat"
    fit(folder, "24kB", out, str(text), recipe=Recipe(context=64, held_out=2, heal=40, heal_rate=1e-6))
    with container.open(out) as artifact:
        (said,) = artifact.provenance["heal"]
        assert said["tokens"] == 24 * 64 and said["source"] == "text.txt"
        copied = tmp_path / "copied.txt"
        copied.write_text(text.read_text() + " ")
        assert calibration_overlap(artifact.provenance, [read(copied)])["overlap"] > 0.9


def test_a_deep_heal_of_a_trellis_is_refused(made, tmp_path):
    folder, _, text = made
    out = tmp_path / "out.sprat"
    fit(folder, "22kB", out, str(text), recipe=Recipe(context=64, tokens=2048, heal=0))
    with pytest.raises(SpratError, match=r"along a trellis of 4 states.*--set trellis=0"):
        heal(out, folder, tmp_path / "deep.sprat", contexts=4, deep=True)
    with pytest.raises(RecipeError, match="heal_deep = True is not allowed; it must be false with a trellis"):
        Recipe(heal_deep=True)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")]
)
def test_memory_that_ends_is_told_with_what_was_needed(made, tmp_path, monkeypatch, error):
    folder, file, _ = made

    def learn(*_):
        raise error

    monkeypatch.setattr(Scales, "learn", learn)
    with pytest.raises(SpratError, match=r"out of memory: this healing takes about [\d.]+ kB"):
        heal(file, folder, tmp_path / "out.sprat", **OPTIONS)
    assert not list(tmp_path.iterdir())


def test_refusals(made, tmp_path):
    folder, file, _ = made
    stranger = save_model(tmp_path / "stranger", seed=1)
    with pytest.raises(SpratError, match=r"was made from tiny .* not from stranger .* needs the very model"):
        heal(file, stranger, tmp_path / "out.sprat", contexts=1)
    few = tmp_path / "few.sprat"
    with container.open(file) as artifact:
        config, provenance = {**artifact.config, "vocab_size": 100}, artifact.provenance
        container.write(few, config=config, entries=artifact.entries(), recipe={}, provenance=provenance)
    with pytest.raises(SpratError, match=r"few.sprat knows 100 tokens, original 320: .* cannot be healed"):
        heal(few, folder, tmp_path / "out.sprat", contexts=1)
    with pytest.raises(RecipeError, match="one of the two"):
        heal(file, folder, tmp_path / "out.sprat")
    with pytest.raises(RecipeError, match="more than 0 seconds"):
        heal(file, folder, tmp_path / "out.sprat", minutes=-1)
    with pytest.raises(SpratError, match="there is no folder"):
        heal(file, folder, tmp_path / "nowhere" / "out.sprat", contexts=1)
    with pytest.raises(SpratError, match="no checkpoint"):
        heal(file, folder, tmp_path / "out.sprat", resume=True, **OPTIONS)


@pytest.mark.parametrize("seconds", [0.0, 1e6])
def test_a_disk_that_is_full_at_the_end_costs_no_training(made, tmp_path, monkeypatch, seconds):
    folder, file, _ = made
    out = tmp_path / "out.sprat"
    monkeypatch.setattr(healing, "CHECKPOINT_SECONDS", seconds)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(container, "_replace", full)
        with pytest.raises(SpratError, match="disk full"):
            heal(file, folder, out, budget="100%", **OPTIONS)
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint_path(out).name]
    result = heal(file, folder, out, budget="100%", resume=True, **OPTIONS)
    assert result.kept and result.points[-1].contexts == 40
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_what_is_read_is_not_written_over(made, tmp_path):
    folder, file, text = made
    before = text.read_bytes()
    with pytest.raises(SpratError, match="it is what is read, and would be lost"):
        heal(file, folder, text, calibrate=str(text), **OPTIONS)
    assert text.read_bytes() == before


def test_the_command(made, tmp_path, capfd):
    folder, file, _ = made
    out = tmp_path / "out.sprat"
    common = ["heal", str(file), "--against", str(folder), "-o", str(out), "--budget", "100%"]
    text = ["--tokens", "1024", "--rate", "0.01"]
    assert main([*common, "--contexts", "40", *text]) == 0
    said = capfd.readouterr()
    assert "measured KL" in said.out
    assert "before)" in said.out
    assert "trained       40 contexts" in said.out
    assert main([*common, "--minutes", "0", *text]) == 2
    assert "'0' is no number of minutes above 0" in capfd.readouterr().err
    assert main([*common[:-2], "--contexts", "1", "--tokens", "1024", "--rate", "1e-9"]) == 0
    assert "it was not kept" in capfd.readouterr().err
    assert out.read_bytes() == file.read_bytes()


def test_ctrl_c_says_how_to_go_on(made, tmp_path, capfd, monkeypatch):
    folder, file, _ = made
    out = tmp_path / "out.sprat"

    def stopped(*_, **__):
        checkpoint_path(out).write_bytes(b"")
        raise KeyboardInterrupt

    def at_once(*_, **__):
        raise KeyboardInterrupt

    command = ["heal", str(file), "--against", str(folder), "-o", str(out), "--contexts", "4"]
    monkeypatch.setattr(healing, "heal", stopped)
    assert main(command) == 130
    assert "the same command with --resume goes on from it" in capfd.readouterr().err
    # What an earlier run left is none of this one, unless this one went on from it.
    monkeypatch.setattr(healing, "heal", at_once)
    assert main(command) == 130
    assert "--resume" not in capfd.readouterr().err
    assert main([*command, "--resume"]) == 130
    assert "the same command with --resume goes on from it" in capfd.readouterr().err
