"""`--peers`: other files' KL from records, and only of the same model on the same text."""

import json
from html import unescape

import pytest

from sprat.cli.main import main
from sprat.errors import ProofError
from sprat.prove import peers
from tiny_model import write_file

KL = {"value": 0.2, "low": 0.1, "high": 0.3, "level": 0.95}
POINT = {"bytes": 70, "kl": KL}
RECORDS = {
    "quality": {
        "schema": "sprat.quality/1",
        "original": {"sha256": "model"},
        "settings": {"context": 512, "contexts": 20, "text_sha256": {"evaluation": "text", "other": "o"}},
        "rows": {
            "a": POINT | {"section": "peers", "label": "GPTQ 4 bits"},
            "b": POINT | {"section": "sprat", "label": "sprat 50MB"},
            "c": {"section": "peers", "label": "HQQ", "failed": "no"},
        },
    },
    "engines": {
        "schema": "sprat.engine-peers/1",
        "original": {"sha256": "model"},
        "settings": {"context": 512, "contexts": 16, "text_sha256": "text"},
        "rows": {"Q4_0": POINT | {"engine": "llama.cpp"}, "x.sprat": POINT | {"engine": "sprat"}},
    },
    "comparison": {
        "schema": "sprat.comparison/1",
        "against": {"hash": "model"},
        "text": {"sha256": "text"},
        "settings": {"context": 512, "contexts": 8},
        "rows": [
            {"name": "b.gguf", "bytes": 70, "metrics": {"kl": KL}},
            {"name": "other tokens", "bytes": 70, "metrics": {"kl": None}},
        ],
    },
    "proof": {
        "schema": "sprat.proof/2",
        "file": {"path": "somewhere/a.sprat", "bytes": 70},
        "against": {"hash": "model"},
        "text": {"sha256": "text"},
        "settings": {"context": 512, "contexts": 40},
        "metrics": {"kl": KL},
    },
}
NAMES = {
    "quality": ("GPTQ 4 bits", 20),
    "engines": ("llama.cpp Q4_0", 16),
    "comparison": ("b.gguf", 8),
    "proof": ("a.sprat", 40),
}


def put(folder, said):
    folder.mkdir()
    (folder / "result.json").write_text(said if isinstance(said, str) else json.dumps(said))
    return folder


@pytest.mark.parametrize("kind", RECORDS)
def test_every_kind_of_record_gives_its_files_that_are_peers(tmp_path, kind):
    folder = put(tmp_path / kind, RECORDS[kind])
    name, contexts = NAMES[kind]
    for path in (folder, folder / "result.json"):
        expected = {"name": name, "bytes": 70, "kl": KL, "contexts": contexts, "record": path.as_posix()}
        assert peers.read([path]).points("model", "text", 512) == [expected]
    with pytest.raises(ProofError, match=r"its model is another \(hash model…, this proof's mine…\)"):
        peers.read([folder]).points("mine", "text", 512)
    with pytest.raises(ProofError, match="its text is another"):
        peers.read([folder]).points("model", "mine", 512)
    with pytest.raises(ProofError, match="its contexts are of 512 tokens, this proof's of 256"):
        peers.read([folder]).points("model", "text", 256)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("{", "is no JSON"),
        ([], "its schema is None; known are 'sprat.quality/1'"),
        ({"schema": ["x"]}, "holds no peers"),
        ({"schema": "sprat.sweep/1"}, "its schema is 'sprat.sweep/1'"),
        ({"schema": "sprat.proof/2", "file": 3}, "is not whole"),
        ({"schema": "sprat.quality/1", "rows": []}, "is not whole"),
    ],
)
def test_what_holds_no_peers_is_refused(tmp_path, said, message):
    with pytest.raises(ProofError, match=message):
        peers.read([put(tmp_path / "record", said)])


def test_an_absent_record_is_named(tmp_path):
    with pytest.raises(ProofError, match=r"cannot read the peers' record .*absent"):
        peers.read([tmp_path / "absent"])


def test_a_proof_draws_the_peers_that_it_is_given(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SPRAT_CACHE", str(tmp_path / "cache"))

    def run(file, text, folder, *more):
        return main(
            ["prove", str(file), "--against", str(tiny.folder), "--text", str(text), "--tokens", "640",
             "--context", "32", "--generations", "0", "--no-speed", "--report", str(tmp_path / folder), *more]
        )  # fmt: skip

    other = write_file(tiny.folder, tmp_path / "other.sprat", steps=3)
    assert run(other, tiny.text, "first") == 0
    assert run(tiny.file, tiny.text, "second", "--peers", str(tmp_path / "first")) == 0
    said = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("first", "second")]
    assert said[0]["peers"] is None
    [peer] = said[1]["peers"]
    assert (peer["name"], peer["bytes"]) == ("other.sprat", other.stat().st_size)
    assert peer["kl"] == said[0]["metrics"]["kl"] != said[1]["metrics"]["kl"]
    pages = [unescape((tmp_path / name / "index.html").read_text()) for name in ("first", "second")]
    assert "Quality against bytes" not in pages[0]
    assert "other.sprat" in pages[1]
    assert f"from <bdi>{tmp_path / 'first'}</bdi> (20 contexts)." in pages[1]
    assert ". The others’ KL is of the same model on the same text" in pages[1]
    text = tmp_path / "another.txt"
    text.write_text(tiny.text.read_text() + "\nmore\n")
    assert run(tiny.file, text, "third", "--peers", str(tmp_path / "first")) == 2
    assert "its text is another" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()
