"""`sprat heal` as torchrun starts it: one file, by one that writes; and what several processes are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from several import run
from sprat.cli.main import main
from sprat.coding import container
from sprat.coding.tensors import Lattice
from sprat.heal import checkpoint_path, heal
from sprat.methods import healer
from sprat.training.checkpoint import Checkpoint
from test_heal_verb import OPTIONS, rounded
from tiny_model import save_model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(original, a coarse file made from it)."""
    root = tmp_path_factory.mktemp("several")
    folder = save_model(root / "original")
    return folder, rounded(folder, root / "coarse.sprat", 2)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPRAT_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


def command(made, out, *more, **options):
    folder, file = made
    given = [f"--{name}={value}" for name, value in (options or OPTIONS).items()]
    return ["heal", str(file), "--against", str(folder), "-o", str(out), "--budget=100%", *given, *more]


def test_two_processes_make_one_file(made, tmp_path, monkeypatch):
    out = tmp_path / "two" / "out.sprat"
    out.parent.mkdir()
    first, second = run(main, command(made, out))
    assert (first.status, second.status) == (0, 0), first.err + second.err
    assert "trained       40 contexts" in first.out and "sprat: healing" in first.err
    assert "sprat" not in second.out + second.err
    assert [path.name for path in out.parent.iterdir()] == ["out.sprat"]
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1

    monkeypatch.setattr(healer, "contexts_a_step", lambda deep: 2)
    monkeypatch.setattr("sprat.heal.contexts_a_step", lambda deep: 2)
    one = heal(made[1], made[0], tmp_path / "one.sprat", budget="100%", **OPTIONS)
    assert one.kept and one.points[-1].contexts == 40
    with container.open(out) as two, container.open(one.path) as alone:
        assert two.provenance == alone.provenance
        entries = alone.entries()
        for name, entry in two.entries().items():
            if isinstance(entry.tensor, Lattice):
                # On a grid of 32 steps an octave: what is nearly the same may be a step apart.
                for a, b in zip(scales(entry), scales(entries[name]), strict=True):
                    assert np.abs(np.log2(a / b)).max() < 1.5 / 32


def scales(entry):
    return entry.tensor.row.values(), entry.tensor.col.values()


def test_deep_and_by_the_clock(made, tmp_path):
    first, second = run(main, command(made, tmp_path / "out.sprat", "--deep", minutes=0.02, tokens=1024))
    assert (first.status, second.status) == (0, 0), first.err + second.err
    assert (tmp_path / "out.sprat").is_file() and "contexts in" in first.out


def test_another_number_of_processes_does_not_go_on(made, tmp_path, monkeypatch):
    """The first one says why, and the other does not wait for it."""
    out, kept = tmp_path / "out.sprat", []
    monkeypatch.setattr("sprat.heal.CHECKPOINT_SECONDS", 0.0)
    save = Checkpoint.save

    def stop(self, state):
        save(self, state)
        kept.append(state["step"])
        if len(kept) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", stop)
    assert main(command(made, out)) == 130
    assert checkpoint_path(out).is_file()
    first, second = run(main, command(made, out, "--resume"), seconds=60)
    assert (first.status, second.status) == (2, 2)
    assert "is of another run: its number of processes is 1, this one's 2" in first.err
    assert "another process of this training ended" in second.err
    assert not out.exists() and checkpoint_path(out).is_file()


def test_a_fit_is_one_process(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    out = tmp_path / "out.sprat"
    assert main(["fit", str(made[0]), "--budget", "22kB", "-o", str(out)]) == 2
    said = capsys.readouterr().err
    assert "a fit is one process, and torchrun started 2" in said and "-m sprat heal" in said
    assert not out.exists()
