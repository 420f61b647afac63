"""What is written where: nothing that is read is lost, nothing of somebody else's, and a cache is never in the way."""

from __future__ import annotations

import errno
import json

import numpy as np
import pytest

from sprat import folders
from sprat.errors import SpratError
from sprat.prove import remembered
from sprat.prove.text import Contexts
from sprat.sense import cache as caches
from sprat.sense.cache import Cache
from sprat.source.load import load

REPORT = ("result.json", "README.md", "index.html")


@pytest.fixture(autouse=True)
def anew():
    folders._instead.cache_clear()
    yield
    folders._instead.cache_clear()


def test_a_target_is_no_device_and_no_part_of_a_model(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    weights, before = model / "model.safetensors", model / "small.sprat"
    for file in (weights, before):
        file.write_bytes(b"")
    with pytest.raises(SpratError, match=r"cannot write /dev/null: it is no ordinary file"):
        folders.refuse_target(folders.Path("/dev/null"))
    with pytest.raises(SpratError, match=r"it is a part of .*model, which is read, and would be lost"):
        folders.refuse_target(weights, "smollm2-135m", model)
    for fine in (before, model / "new.sprat", tmp_path / "model.safetensors"):
        folders.refuse_target(fine, model)


def test_a_report_goes_over_a_report_alone(tmp_path):
    folder = tmp_path / "project"
    folders.refuse_folder(folder, REPORT)  # not there yet
    folder.mkdir()
    folders.refuse_folder(folder, REPORT)
    (folder / "README.md").write_text("# my project")
    with pytest.raises(SpratError, match=r"README.md there would be lost.*name another folder"):
        folders.refuse_folder(folder, REPORT)
    for result in ("no json", "[]", json.dumps({"schema": "other/1"})):
        (folder / "result.json").write_text(result)
        with pytest.raises(SpratError, match=r"result.json, README.md there would be lost"):
            folders.refuse_folder(folder, REPORT)
    (folder / "result.json").write_text(json.dumps({"schema": "sprat.proof/2"}))
    folders.refuse_folder(folder, REPORT)


def test_a_cache_that_cannot_be_written_is_a_temporary_one(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("SPRAT_CACHE", str(tmp_path / "file"))
    root = folders.cache_root()
    assert root.is_dir() and root != tmp_path / "file"
    assert folders.cache_root() == root
    (note,) = caplog.messages
    assert f"the cache {tmp_path / 'file'} cannot be written" in note and "SPRAT_CACHE" in note


def test_a_user_without_a_home_has_one_too(monkeypatch, caplog):
    for name in ("SPRAT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(folders.Path, "home", homeless)
    assert folders.cache_root().is_dir()
    assert "without a home" in caplog.text


def test_a_full_cache_is_named(tmp_path, monkeypatch):
    def full(*_, **__):
        raise caches.SafetensorError("No space left on device")

    monkeypatch.setattr(caches, "save_file", full)
    cache = Cache({"key": 1}, tmp_path)
    with pytest.raises(SpratError, match=rf"the cache {tmp_path}.*No space left.*SPRAT_CACHE"):
        cache.put("text", {})
    assert not list(cache.folder.iterdir())


def test_predictions_that_a_full_disk_does_not_take_are_computed(tiny, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    model = load(tiny.folder).model
    contexts = Contexts(np.arange(32).reshape(2, 16), np.ones(2), 8)
    assert remembered.remember(model, "0", contexts, root=tmp_path / "there") is not model
    monkeypatch.setattr(remembered._Kept, "make", full)
    assert remembered.remember(model, "0", contexts, root=tmp_path / "full") is model
