"""The runtime alone, `pip install sprat`: what runs a file works where nothing of the other extras is there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from sprat.cli.main import main

#: Runs the command line as if the packages of `sprat[fit]` and `sprat[serve]` were not installed.
BARE = """
import sys
ABSENT = {"torch", "transformers", "safetensors", "gguf", "huggingface_hub", "accelerate"}
ABSENT |= {"fastapi", "uvicorn", "pydantic"}
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Finder())
from sprat.run import measure
measure.ARRAY_BYTES = 1 << 20
from sprat.cli.main import main
status = main(sys.argv[1:])
assert not ABSENT & set(sys.modules)
sys.exit(status)
"""


@pytest.fixture
def bare(tiny):
    """Type a verb: (status, standard output, standard error)."""

    def call(verb, *arguments, typed=""):
        done = subprocess.run(
            [sys.executable, "-c", BARE, verb, str(tiny.file), *arguments],
            input=typed,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr

    return call


def test_a_file_is_looked_at(bare):
    status, out, _ = bare("inspect", "--json")
    assert status == 0 and json.loads(out)["total"] > 0


def test_a_file_writes_what_it_writes_beside_torch(bare, tiny, capsys):
    arguments = ("the cat", "--max-tokens", "8", "--temperature", "0")
    assert main(["run", str(tiny.file), *arguments]) == 0
    status, out, _ = bare("run", *arguments)
    assert status == 0 and out == capsys.readouterr().out != ""


def test_a_file_chats(bare):
    status, out, err = bare("chat", "--max-tokens", "4", typed="the cat\n/stats\nthe dog\n")
    assert status == 0 and out.count("\n") >= 2
    assert "2 answers, 8 tokens written" in err


def test_a_file_is_measured(bare):
    status, out, _ = bare("bench", "--runs", "1", "--threads", "1", "--json")
    found = json.loads(out)
    assert status == 0 and found["engine"] == "native" and found["bandwidth_share"] > 0


@pytest.mark.parametrize(
    ("verb", "arguments", "needs"),
    [
        ("serve", (), "fastapi: pip install 'sprat[serve]'"),
        ("run", ("hi", "--engine", "torch"), "torch: pip install 'sprat[fit]'"),
    ],
)
def test_what_needs_more_says_what(verb, arguments, needs, bare):
    status, out, err = bare(verb, *arguments)
    assert (status, out) == (2, "") and err.endswith(f"needs {needs}\n")
