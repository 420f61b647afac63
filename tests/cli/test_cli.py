"""The command line, through `main`: what it prints, what it refuses, and with which words."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from transformers import AutoModelForCausalLM

import sprat
from sprat.cli.main import VERBS, main


@pytest.fixture
def run(capfd, tmp_path, monkeypatch):
    """Run the command line: (status, standard output, standard error)."""
    monkeypatch.setenv("SPRAT_CACHE", str(tmp_path / "cache"))

    def call(*argv):
        capfd.readouterr()
        status = main([str(word) for word in argv])
        return status, *capfd.readouterr()

    return call


@pytest.mark.parametrize("verb", VERBS)
def test_every_help_has_examples(run, verb):
    status, out, _ = run(verb, "--help")
    assert status == 0
    assert f"examples:\n  sprat {verb} " in out


def test_version_and_help(run):
    assert run("--version") == (0, f"sprat {sprat.__version__}\n", "")
    status, out, _ = run("--help")
    assert status == 0
    assert all(verb in out for verb in VERBS)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: VERB"),
        (
            ["fti"],
            "unknown verb 'fti' (did you mean 'fit'?): choose from fit, heal, plan, inspect, run, chat, serve",
        ),
        (
            ["fit", "m", "--bugdet", "5MB", "-o", "f"],
            "unknown argument '--bugdet' (did you mean '--budget'?)",
        ),
        (
            ["fit", "m", "--budget", "5MX", "-o", "f"],
            "argument --budget: unknown unit 'MX' in '5MX' (did you mean 'MB'?)",
        ),
        (["plan", "m", "--budgets", "5MB,six"], "argument --budgets: 'six' is no size"),
        (["plan", "m", "--budgets", ","], "argument --budgets: ',' names no size"),
        (["inspect", "f", "--jsn"], "unknown argument '--jsn' (did you mean '--json'?)"),
        (
            ["run", "f", "p", "--max-tokens", "0"],
            "argument --max-tokens: '0' is no whole number of at least 1",
        ),
        (["run", "f", "p", "--temperature", "hot"], "argument --temperature: invalid float value: 'hot'"),
        (["run", "f", "p", "more"], "unknown argument 'more'"),
        (["prove", "f", "--text", "t"], "the following arguments are required: --against"),
        (["prove"], "the following arguments are required: FILE, --against, --text"),
        (["prove", "f", "--agianst", "m"], "unknown argument '--agianst' (did you mean '--against'?)"),
        (["export", "f", "dir"], "the following arguments are required: --to"),
    ],
)
def test_a_wrong_command_line_is_refused(run, argv, message):
    status, out, err = run(*argv)
    assert (status, out) == (2, "")
    assert err.startswith(f"sprat: error: {message}")
    assert "--help" in err.splitlines()[1]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["fit", "m", "--budget", "5MB", "-o", "f", "--calibrate", "self", "--calibrate", "x"],
            "stands alone",
        ),
        (["fit", "m", "--budget", "5MB", "-o", "f", "--set", "trellis"], "--set wants KEY=VALUE"),
        (
            ["fit", "m", "--budget", "5MB", "-o", "f", "--heal", "0"],
            "argument --heal: '0' is no number of minutes above 0",
        ),
        (
            ["fit", "m", "--budget", "5MB", "-o", "f", "--deep", "--set", "trellis=4"],
            "recipe: heal_deep = True is not allowed; it must be false with a trellis",
        ),
        (
            ["heal", "f", "--against", "m", "-o", "g"],
            "one of the arguments --minutes --contexts is required",
        ),
        (
            ["heal", "f", "--against", "m", "-o", "g", "--minutes", "nan"],
            "argument --minutes: 'nan' is no number of minutes above 0",
        ),
        (
            ["heal", "f", "--against", "m", "-o", "g", "--contexts", "4", "--rate", "2"],
            "--rate 2 is not allowed; it must be above 0, at most 0.1",
        ),
        (["fit", "m", "--budget", "5MB", "-o", "f", "--set", "trelis=4"], "did you mean 'trellis'?"),
        (["plan", "m", "--budgets", "5MB", "--set", "order=up"], "order = 'up' is not allowed"),
        (["plan", "m", "--budgets", "5MB", "--recipe", "absent.toml"], "there is no recipe absent.toml"),
        (["plan", "m", "--budgets", "5MB", "--recipe", "{text}"], "not TOML"),
        (["run", "{file}", "p", "--temperature", "-1"], "temperature must lie between 0 and 100"),
        (["run", "{file}", "p", "--top-p", "2"], "top-p must lie between 0 and 1"),
        (["run", "{file}", "", "--raw"], "the prompt is empty"),
        (
            ["prove", "{file}", "--against", "{folder}", "--text", "absent.txt"],
            "there is no text file 'absent.txt'",
        ),
        (
            ["prove", "{file}", "--against", "{folder}", "--text", "{text}", "--context", "2"],
            "at least 4 tokens",
        ),
        (["prove", "{file}", "--against", "absent", "--text", "{text}", "--context", "64"], "absent"),
        (
            ["prove", "{file}", "--against", "{folder}", "--text", "{text}", "--generations", "-1"],
            "generations must be 0 or more, not -1",
        ),
        (
            ["prove", "{file}", "--against", "{folder}", "--text", "{text}", "--items", "9"],
            "no --tasks were given",
        ),
        (
            ["prove", "{file}", "--against", "{folder}", "--text", "{text}", "--report", "{text}"],
            "text.txt is a file",
        ),
        (["prove", "--replay", "absent", "--tokens", "640"], "--tokens does not go with --replay"),
        (["prove", "--replay", "absent", "--no-speed"], "--no-speed does not go with --replay"),
        (["fit", "m", "--budget", "5MB", "-o", "f", "--context", "64"], "--context says what --ram covers"),
        (["plan", "m", "--budgets", "5MB", "--cache", "int9"], "--cache says what --ram covers"),
        (
            ["inspect", "{file}", "--svg", "absent/a.svg"],
            "cannot write absent/a.svg: there is no folder absent",
        ),
        (["inspect", "{file}", "--svg", "{file}"], "it is what is read, and would be lost"),
        (
            ["compare", "{file}", "--against", "{folder}", "--text", "{text}", "--svg", "{file}"],
            "it is what is read, and would be lost",
        ),
        (["run", "{file}", "the \udcff cat"], "the text is not UTF-8"),
        (["run", "{file}", "the \udcff cat", "--raw"], "the text is not UTF-8"),
        (["export", "{file}", "--to", "gguf", "d"], "unknown form 'gguf'"),
        (["export", "{file}", "--to", "hf", "d", "--dtype", "int8"], "unknown dtype 'int8'"),
    ],
)
def test_wrong_inputs_end_with_one_line(run, tiny, argv, message):
    status, out, err = run(*(word.format(**vars(tiny)) for word in argv))
    assert (status, out) == (2, "")
    (said,) = [line for line in err.splitlines() if line.startswith("sprat: error: ")]
    assert message in said
    assert "Traceback" not in err


@pytest.mark.parametrize("verb", ["inspect", "run"])
@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot open"), (b"", "too few"), (b"PK" * 100, "not a .sprat"), ("cut", ""), ("flip", "")],
)
def test_a_bad_file_is_refused(run, tiny, tmp_path, verb, content, message):
    bad, good = tmp_path / "bad.sprat", tiny.file.read_bytes()
    if content == "cut":
        bad.write_bytes(good[:-100])
    elif content == "flip":
        bad.write_bytes(good[:60] + bytes([good[60] ^ 1]) + good[61:])
    elif content is not None:
        bad.write_bytes(content)
    status, out, err = run(verb, bad, *(["the cat"] if verb == "run" else []))
    assert (status, out) == (2, "")
    assert err.startswith("sprat: error: ")
    assert message in err
    assert "bad.sprat" in err


def test_debug_shows_where_an_error_comes_from(monkeypatch, tmp_path):
    monkeypatch.setenv("SPRAT_DEBUG", "1")
    with pytest.raises(sprat.SpratError):
        main(["inspect", str(tmp_path / "absent.sprat")])


def test_ctrl_c_ends_with_a_clean_line(run, monkeypatch, tiny):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sprat.cli.inspect.parts", stop)
    assert run("inspect", tiny.file) == (130, "", "sprat: stopped\n")


def piped(*argv, **options):
    """The command line in a process of its own, its output a pipe."""
    command = [sys.executable, "-m", "sprat", *map(str, argv)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_whoever_reads_the_output_may_leave_early(tiny):
    with piped("inspect", tiny.file) as process:
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (0, b"")


@pytest.mark.parametrize(("closed", "code"), [("<&-", 0), (">&-", 0), ("2>&-", 0), ("<&- >&- 2>&-", 0)])
def test_streams_that_are_closed_are_no_error(tiny, closed, code):
    """As under cron."""
    command = shlex.join([sys.executable, "-m", "sprat", "run", str(tiny.file), "the", "--max-tokens", "3"])
    found = subprocess.run(["sh", "-c", f"{command} {closed}"], capture_output=True, timeout=120, check=False)
    assert found.returncode == code and b"Traceback" not in found.stderr


def test_what_goes_wrong_with_closed_notes_has_its_status(tiny):
    command = shlex.join([sys.executable, "-m", "sprat", "inspect", "nope.sprat"])
    assert subprocess.run(["sh", "-c", f"{command} 2>&-"], timeout=120, check=False).returncode == 2


def test_whoever_reads_the_notes_may_leave_early(tiny):
    with piped("chat", tiny.file, "--max-tokens", "5", stdin=subprocess.PIPE) as process:
        process.stderr.close()
        out, _ = process.communicate(b"the cat\nthe dog\n", timeout=120)
    assert process.returncode == 0 and out.count(b"\n") >= 2


def test_other_encodings_lose_characters_and_not_the_program(tiny):
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    with piped("inspect", tiny.file, env=ascii_only) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"") and b"layer 1" in out and b"???" in out


def test_standard_input_that_is_no_text_is_refused(tiny):
    utf8 = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    with piped("run", tiny.file, "-", env=utf8, stdin=subprocess.PIPE) as process:
        out, err = process.communicate(b"the \xff cat", timeout=60)
    assert (process.returncode, out) == (2, b"")
    assert err == b"sprat: error: the text is not UTF-8: it holds '\\udcff'\n"


def test_memory_that_torch_cannot_have_ends_with_one_line(run, monkeypatch, tiny):
    monkeypatch.setattr("sprat.cli.inspect.parts", lambda _: torch.empty(1 << 60, dtype=torch.uint8))
    assert run("inspect", tiny.file) == (2, "", "sprat: error: out of memory\n")


def test_inspect_accounts_for_every_byte(run, tiny, tmp_path):
    status, out, _ = run("inspect", tiny.file, "--json", "--verify", "--svg", tmp_path / "picture.svg")
    said = json.loads(out)
    assert status == 0
    assert said["bytes"] == said["total"] == tiny.file.stat().st_size
    assert sum(section["nbytes"] for section in said["sections"]) == said["bytes"]
    assert said["config"]["model_type"] == "llama"
    picture = ElementTree.parse(tmp_path / "picture.svg").getroot()
    words = "".join(picture.itertext())
    assert f"{said['bytes']:,} bytes" in words
    assert all(word in words for word in ("layer 0", "layer 1", "feed-forward", "attention", "tokenizer"))
    assert [path.name for path in tmp_path.iterdir()] == ["picture.svg"]


def test_inspect_draws_layers_and_kinds(run, tiny):
    status, out, _ = run("inspect", tiny.file)
    assert status == 0
    assert f"{tiny.file.stat().st_size:,} bytes" in out
    lines = {line[:20].strip(): line for line in out.splitlines()}
    assert "█" in lines["layer 1"]
    assert "%" in lines["feed-forward"]
    assert len([line for line in lines.values() if line.startswith("layer ") and "█" in line]) == 2


def test_inspect_tells_what_the_cache_takes(run, tiny):
    token = 2 * 2 * 2 * 2 * 32  # keys and values, layers, heads, bytes of bf16, dimensions in whole groups
    said = json.loads(run("inspect", tiny.file, "--json", "--cache", "bf16", "--context", "100")[1])["cache"]
    assert said == {"precision": "bf16", "context": 100, "bytes_per_token": token, "bytes": 100 * token}
    out = run("inspect", tiny.file)[1]
    assert f"{2 * 2 * 2 * (32 + 4):,} bytes a token in int8, 73.7 kB for a context of 256" in out
    assert run("inspect", tiny.file, "--cache", "int4")[0] == 2


def test_run_writes_text(run, tiny):
    argv = ("run", tiny.file, "the cat", "--max-tokens", "6", "--temperature", "0.7", "--seed", "5")
    status, out, err = run(*argv)
    assert status == 0
    assert out.endswith("\n")
    assert (status, out, err) == run(*argv)


def test_run_reads_standard_input(run, tiny, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("the cat"))
    piped = run("run", tiny.file, "-", "--max-tokens", "4", "--raw")
    assert piped == run("run", tiny.file, "the cat", "--max-tokens", "4", "--raw")


def test_prove_prints_figures_with_intervals(run, tiny, tmp_path):
    argv = (
        "prove",
        tiny.file,
        "--against",
        tiny.folder,
        "--text",
        tiny.text,
        "--context",
        "32",
        "--tokens",
        "640",
    )
    status, out, err = run(*argv)
    assert status == 0
    assert "95 % interval" in out
    assert "300 tokens scored in 20 contexts of 32" in out
    assert "probability shift, RMS" in out
    assert "written here" in out
    assert "comparing the two models" in err
    status, out, _ = run(*argv, "--json", "--no-speed", "--report", tmp_path / "proof")
    said = json.loads(out)
    assert said == json.loads((tmp_path / "proof" / "result.json").read_text("utf-8"))
    assert len(said["generations"]["prompts"]) == 8
    assert "sprat prove --replay" in (tmp_path / "proof" / "README.md").read_text("utf-8")
    assert "<html" in (tmp_path / "proof" / "index.html").read_text("utf-8")
    questions = tmp_path / "piqa.jsonl"
    row = {"goal": "the cat sat on", "sol1": "the mat", "sol2": "a fish", "label": 0}
    questions.write_text((json.dumps(row) + "\n") * 12)
    status, out, _ = run(*argv, "--no-speed", "--tasks", questions, "--items", "10")
    assert status == 0
    assert re.search(r"piqa +10 +\d+\.0 % +\d+\.0 % +[+-]\d+\.0, [+-]\d+\.\d to [+-]\d+\.\d", out)
    assert "energy_note" not in said["cost"]
    assert said["schema"] == "sprat.proof/2"
    assert said["file"]["bytes"] == tiny.file.stat().st_size
    assert 0 < said["metrics"]["kl"]["low"] < said["metrics"]["kl"]["value"]


def test_export_writes_a_folder(run, tiny, tmp_path):
    status, out, _ = run("export", tiny.file, "--to", "hf", tmp_path / "out", "--dtype", "float32")
    assert status == 0
    assert "out: " in out
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == 320
    shutil.rmtree(tmp_path / "out")


def test_a_fit_needs_a_budget(run):
    status, out, err = run("fit", "m", "-o", "f")
    assert (status, out) == (2, "") and "--budget 50MB for the file, --ram 80MB for memory" in err


def test_a_plan_needs_a_budget(run):
    status, out, err = run("plan", "m")
    assert (status, out) == (2, "") and "--budgets 30MB,50MB for the file, --ram 80MB for memory" in err


def test_a_plan_for_memory_tells_memory(run, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("SPRAT_CACHE", str(tmp_path))
    argv = (
        "plan",
        tiny.folder,
        "--set",
        "context=64",
        "--set",
        "tokens=2048",
        "--ram",
        "40kB",
        "--context",
        "40",
    )
    status, out, err = run(*argv)
    assert status == 0, err
    assert "predicted memory" in out
    (row,) = json.loads(run(*argv, "--json")[1])
    assert row["budget_bytes"] is None and f"{row['predicted_ram_bytes']:,}" in out
    assert 39_000 < row["predicted_ram_bytes"] <= 40_000
