"""Hub ids and hub data sets against a hub of this process: the whole way through huggingface_hub, no network."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sprat.errors import SourceError
from sprat.source.load import load
from sprat.source.text import calibration_ids

COMMIT = "5" * 40


class Hub(ThreadingHTTPServer):
    """Answers what a client asks to download a repository: its commit, its tree, its files."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, Path]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.asked = repositories, []
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        path = self.path.partition("?")[0].removeprefix("/api/models").strip("/").split("/")
        name, rest = "/".join(path[:2]), path[2:]
        if name == "someone/gated" and rest[:1] == ["resolve"]:
            return self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
        if name not in self.server.repositories:
            return self._answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        files = {p.name: p.read_bytes() for p in self.server.repositories[name].iterdir()}
        if rest[:1] == ["resolve"]:
            data = files["/".join(rest[2:])]
            tag = hashlib.sha1(data).hexdigest()
            return self._answer(200, data, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})
        tree = [
            {"type": "file", "path": n, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for n, data in files.items()
        ]
        about = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": n} for n in files]}
        return self._answer(200, json.dumps(tree if rest[:1] == ["tree"] else about).encode(), {})

    do_HEAD = do_GET

    def _answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(tiny, tmp_path, monkeypatch):
    """A hub with the tiny model, and pickles beside it that must stay there."""
    from huggingface_hub import constants

    repository = tmp_path / "repository"
    repository.mkdir()
    for file in tiny.folder.iterdir():
        (repository / file.name).write_bytes(file.read_bytes())
    (repository / "pytorch_model.bin").write_bytes(b"a pickle")
    hub = Hub({"someone/tiny-llama": repository, "someone/gated": repository})
    threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        hub.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield hub
    hub.shutdown()
    hub.server_close()


def test_a_hub_id_is_downloaded_and_loaded(hub, tiny, tmp_path, capfd):
    source = load("someone/tiny-llama", torch.float32)
    here = load(tiny.folder, torch.float32)
    assert (source.kind, source.name, source.ref) == ("hub", "tiny-llama", "someone/tiny-llama")
    assert source.hash == here.hash and source.tokenizer_files == here.tokenizer_files
    for own, other in zip(source.model.parameters(), here.model.parameters(), strict=True):
        assert torch.equal(own, other)
    assert not list((tmp_path / "hub").rglob("*.bin")) and not [p for p in hub.asked if "pytorch_model" in p]
    assert capfd.readouterr() == ("", "")


def test_what_was_downloaded_serves_without_the_hub(hub, monkeypatch):
    first = load("someone/tiny-llama")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert load("someone/tiny-llama").hash == first.hash and len(hub.asked) == asked


def test_what_the_hub_refuses(hub):
    with pytest.raises(SourceError, match=r"someone/gated is gated: accept its terms .*hf auth login"):
        load("someone/gated")
    with pytest.raises(SourceError, match=r"the hub has no model 'someone/absent' that you may read"):
        load("someone/absent")


@pytest.fixture
def rows(monkeypatch):
    """A stand-in for `datasets`: what was asked of it, and how many rows were drawn."""
    seen = SimpleNamespace(asked=[], drawn=0, column="text")

    def load_dataset(name, *, split, streaming):
        seen.asked.append((name, split, streaming))
        for i in range(10_000):
            seen.drawn += 1
            yield {"id": i, seen.column: f"the cat sat on mat {i}. " * 4}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return seen


def test_rows_of_a_data_set_are_streamed_until_there_are_enough(rows, tiny):
    source = load(tiny.folder, torch.float32)
    made = calibration_ids(source, "hub:someone/data:validation", tokens=200, context=16)
    assert rows.asked == [("someone/data", "validation", True)]
    assert made.ids.shape == (13, 16) and len(made.text_hashes) == 1
    assert rows.drawn < 100  # 200 tokens of at most 16 characters, 80 characters a row
    text = "\n".join(f"the cat sat on mat {i}. " * 4 for i in range(rows.drawn))
    assert made.text_hashes == (hashlib.sha256(text.encode()).hexdigest(),)
    calibration_ids(source, "hub:someone/data", tokens=200, context=16)
    assert rows.asked[1] == ("someone/data", "train", True)


def test_a_data_set_without_text_names_its_columns(rows, tiny):
    rows.column = "content"
    with pytest.raises(SourceError, match="hub:someone/data has no column 'text'; it has id, content"):
        calibration_ids(load(tiny.folder), "hub:someone/data", tokens=200, context=16)


def test_a_data_set_is_read_by_the_real_library(tiny, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    lines = [json.dumps({"text": f"the dog ate the big fish {i}"}) for i in range(400)]
    (folder / "train.jsonl").write_text("\n".join(lines))
    made = calibration_ids(load(tiny.folder), f"hub:{folder}", tokens=200, context=16)
    assert made.ids.shape == (13, 16)
    assert "dog ate" in load(tiny.folder).tokenizer.decode(made.ids[0])
