"""The verbs that run a model, as they are typed."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

import sprat
import toy_engine
from sprat.cli.main import main
from sprat.run.tokenizer import open_tokenizer
from toy_engine import ToyEngine


@pytest.fixture
def toy(monkeypatch):
    """Every verb gets this engine."""
    engine = ToyEngine(never=[0])
    monkeypatch.setattr("sprat.run.engine.open_engine", lambda *_, **__: engine)
    return engine


@pytest.fixture
def chat(tiny, capfd, monkeypatch):
    """Type lines into `sprat chat`: (status, standard output, standard error)."""

    def call(*lines, options=()):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        capfd.readouterr()
        status = main(["chat", str(tiny.file), "--max-tokens", "5", *options])
        return status, *capfd.readouterr()

    return call


def test_chat_answers_line_by_line(chat, toy):
    status, out, err = chat("the cat", "", "the dog")
    assert status == 0
    assert err.count("; 5 tokens,") == 2
    assert "cut at --max-tokens" in err and "tokens/s" in err
    assert "2 answers, 10 tokens written" in err.splitlines()[-1]
    assert out == chat("the cat", "the dog")[1]
    assert out != chat("the cat", "/reset", "the dog")[1]
    assert toy.open == 0


def bytes_in(monkeypatch, content):
    """Standard input as a UTF-8 locale opens it."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", errors="strict"))


def test_bytes_that_are_no_text_end_neither_a_chat_nor_in_a_traceback(tiny, capfd, monkeypatch, toy):
    bytes_in(monkeypatch, b"the \xff\nthe cat\n")
    assert main(["chat", str(tiny.file), "--max-tokens", "5"]) == 0
    err = capfd.readouterr().err
    assert "sprat: error: the text is not UTF-8: it holds '\\udcff'" in err
    assert "1 answers, 5 tokens written" in err.splitlines()[-1]
    bytes_in(monkeypatch, b"the \xff")
    assert main(["run", str(tiny.file), "-"]) == 2
    assert "sprat: error: the text is not UTF-8" in capfd.readouterr().err
    assert toy.open == 0


def test_a_terminal_without_utf_8_shows_what_it_can(tiny, monkeypatch):
    fish = open_tokenizer(sprat.open(tiny.file)).encode("é🐟 sat", special=False)
    monkeypatch.setattr("sprat.run.engine.open_engine", lambda *_, **__: ToyEngine(script=[*fish, 0]))
    shown = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(shown, encoding="latin-1"))
    assert main(["run", str(tiny.file), "the cat"]) == 0
    assert shown.getvalue().decode("latin-1") == "é? sat\n"


def test_chat_commands(chat, toy, tmp_path):
    path = tmp_path / "said.json"
    status, out, err = chat("/help", "the cat", f"/save {path}", "/stats", "/quit", "the dog")
    assert status == 0
    assert all(command in err for command in ("/help", "/reset", "/save PATH", "/stats", "/quit"))
    said = json.loads(path.read_text())["messages"]
    assert [m["content"] for m in said] == ["the cat", out.removesuffix("\n")]
    assert err.count("1 answers, 5 tokens written") == 2  # /stats, and at the end
    _, out, err = chat("/sav x", "/save", "/save /absent/x", "//help")
    assert "unknown command '/sav' (did you mean '/save'?)" in err
    assert "/save wants a path" in err
    assert "cannot write /absent/x" in err
    assert out.endswith("\n") and "1 answers" in err  # a double slash says one


def test_chat_says_what_a_full_context_does(chat, toy):
    status, _, err = chat(
        "the cat " * 4, "the cat " * 4, "the cat " * 90, "the dog", options=["--context", "48"]
    )
    assert status == 0
    assert "the context of 48 tokens is full: the oldest turn was forgotten (/reset" in err
    assert "sprat: error: the text has" in err and "larger --context" in err
    assert "3 answers" in err.splitlines()[-1]


def test_ctrl_c_stops_the_answer_and_not_the_program(chat, toy):
    toy.delay = 0.02
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    status, _, err = chat("the cat", "the dog", options=["--max-tokens", "100"])
    assert status == 0
    assert err.count("[stopped; ") == 1
    assert "100 tokens" in err and "2 answers" in err.splitlines()[-1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_ends_the_program(chat, toy):
    toy.delay = 1.0
    for wait in (0.2, 0.4):
        threading.Timer(wait, os.kill, (os.getpid(), signal.SIGINT)).start()
    status, _, err = chat("the cat")
    assert status == 130
    assert err.endswith("sprat: stopped\n")


def test_run_and_chat_take_the_settings_of_sampling(chat, tiny, capfd, toy):
    options = [
        "--temperature",
        "0.9",
        "--top-k",
        "50",
        "--top-p",
        "0.9",
        "--min-p",
        "0.01",
        "--repetition-penalty",
        "1.2",
    ]
    assert chat("the cat", options=[*options, "--seed", "1", "--system", "the fish"])[0] == 0
    found = []
    for seed in "112":
        assert main(["run", str(tiny.file), "the cat", "--max-tokens", "8", *options, "--seed", seed]) == 0
        found.append(capfd.readouterr().out)
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["chat", "absent.sprat"], "cannot open absent.sprat"),
        (["chat", "{file}", "--engine", "troch"], "unknown engine 'troch' (did you mean 'torch'?)"),
        (
            ["chat", "{file}", "--engine", "torch", "--context", "100000"],
            "context must lie between 1 and 256",
        ),
        (["chat", "{file}", "--top-k", "-1"], "top-k must be 0"),
        (["run", "{file}", "p", "--min-p", "2"], "min-p must lie between 0 and 1"),
        (["run", "{file}", "p", "--repetition-penalty", "0"], "repetition penalty must lie"),
        (["serve", "absent.sprat"], "cannot open absent.sprat"),
        (["serve", "{file}", "--port", "70000"], "port must lie between 0 and 65535"),
        (["serve", "{file}", "--timeout", "0"], "timeout must be above 0"),
        (["serve", "{file}", "--api-key", " x"], "the API key must be ASCII"),
        (["serve", "{file}", "--host", "no.such.host.invalid", "--port", "0"], "unknown host 'no.such.host"),
        (["bench", "absent.sprat"], "cannot open absent.sprat"),
        (
            ["run", "{file}", "p", "--cache", "int9"],
            "unknown cache 'int9' (did you mean 'int8'?): int8 or bf16",
        ),
        (
            ["bench", "{file}", "--engine", "torch", "--cache", "int8"],
            "a cache of int8 is the native engine's",
        ),
        (
            ["run", "{file}", "p", "--engine", "torch", "--ram", "9MB"],
            "a budget for memory is one for the native",
        ),
        (["bench", "{file}", "--context", "4"], "a context of 4 tokens is too short"),
    ],
)
def test_what_was_typed_wrong_ends_with_one_line(tiny, capfd, argv, message):
    status = main([word.format(**vars(tiny)) for word in argv])
    out, err = capfd.readouterr()
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"sprat: error: {message}")
    assert "Traceback" not in err


@pytest.mark.parametrize("cache", ["int8", "bf16"])
def test_memory_that_does_not_suffice_says_how_many_tokens_would_fit(tiny, capfd, cache):
    argv = ["run", str(tiny.file), "the cat", "--max-tokens", "4", "--cache", cache, "--ram", "60kB"]
    assert main(argv) == 2
    found = re.search(
        r"a context of 256 tokens [0-9.]+ kB: more than 60,000 bytes, into which ([0-9]+) tokens would fit",
        capfd.readouterr().err,
    )
    assert found and 0 < int(found[1]) < 256
    assert main([*argv, "--context", found[1]]) == 0
    assert main([*argv, "--context", str(int(found[1]) + 1)]) == 2
    assert main(["serve", str(tiny.file), "--ram", "90kB", "--max-clients", "5", "--port", "0"]) == 2
    assert "tokens in each of 9 texts" in capfd.readouterr().err  # four that lie idle may be kept


def test_a_port_in_use_is_named(tiny, capfd, toy):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", str(tiny.file), "--port", str(port)]) == 2
    err = capfd.readouterr().err
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use; choose another port" in err


def test_without_the_serve_extra_the_install_is_named(tiny):
    code = f"""
import sys
sys.modules["fastapi"] = None
from sprat.cli.main import main
print(main(["serve", {str(tiny.file)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "2"
    assert done.stderr == "sprat: error: the server needs fastapi: pip install 'sprat[serve]'\n"


def test_serve_tells_where_it_is_and_ends_with_ctrl_c(tiny):
    code = f"""
import sys
sys.path.insert(0, {str(Path(toy_engine.__file__).parent)!r})
import sprat.run.engine, toy_engine
from sprat.cli.main import main
sprat.run.engine.open_engine = lambda *_, **__: toy_engine.ToyEngine()
sys.exit(main(["serve", {str(tiny.file)!r}, "--port", "0"]))
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[0] == "tiny.sprat: toy engine, context of 256 tokens\n"
        url = lines[2].split()[-1]
        with urllib.request.urlopen(f"{url}/models", timeout=10) as reply:
            assert json.load(reply)["data"][0]["id"] == "tiny"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr is not None
        assert process.stderr.read() == "sprat: stopped\n"


def test_bench_tells_speeds(tiny, capfd, monkeypatch):
    monkeypatch.setattr("sprat.run.measure.ARRAY_BYTES", 4 << 20)
    argv = ["bench", str(tiny.file), "--threads", "1", "--runs", "2"]
    assert main([*argv, "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert said["schema"] == "sprat.bench/1"
    assert said["threads"] == 1
    names = (
        "decode_tokens_per_second",
        "prefill_tokens_per_second",
        "bytes_per_token",
        "bandwidth_bytes_per_second",
    )
    assert all(said[name] > 0 for name in names)
    assert (said["cache"], said["context"], said["cache_bytes"]) == ("int8", 256, 256 * 2 * 2 * 2 * (32 + 4))
    assert main(argv) == 0
    out = capfd.readouterr().out
    assert "key-value cache" in out and "256 tokens in int8" in out
    assert "1 thread" in out and "memory bandwidth" in out and "tokens/s" in out
