"""Which file of llama.cpp a `.sprat` is compared with; where llama.cpp is installed, that it runs what it wrote."""

from __future__ import annotations

import numpy as np
import pytest
from bench.llamacpp import SCHEMA, ratios, report
from bench.record import Record


def row(engine: str, kl: float) -> dict:
    return {"engine": engine, "bytes": 10**6, "kl": {"value": kl, "low": kl, "high": kl}}


ROWS = {
    "a.sprat": row("sprat", 0.1),
    "b.sprat": row("sprat", 0.9),
    "fine": row("llama.cpp", 0.09),
    "equal": row("llama.cpp", 0.1),
    "coarse": row("llama.cpp", 0.5),
}
SPEEDS = {
    "a.sprat": {"decode": [30, 10, 20], "prefill": [50], "bytes_per_token": 10},
    "b.sprat": {"decode": [90], "prefill": [90], "bytes_per_token": 5},
    "fine": {"decode": [1000], "prefill": [1000]},
    "equal": {"decode": [10], "prefill": [100]},
    "coarse": {"decode": [16, 15, 17], "prefill": [20]},
}


def test_the_peer_is_the_fastest_file_that_is_no_better():
    assert ratios(ROWS, SPEEDS) == [
        {"file": "a.sprat", "figure": "decode", "peer": "coarse", "ratio": 1.25},
        {"file": "a.sprat", "figure": "prefill", "peer": "equal", "ratio": 0.5},
        {"file": "b.sprat", "figure": "decode", "peer": None, "ratio": None},
        {"file": "b.sprat", "figure": "prefill", "peer": None, "ratio": None},
    ]


def test_the_report_says_it(tmp_path):
    record = Record(tmp_path, {"contexts": 3}, SCHEMA)
    record.data["original"] = {"name": "X"}
    record.data["rows"] = ROWS
    record.data["speeds"] = {
        "1": {"bandwidth_bytes_per_second": [390, 410], "files": SPEEDS, "ratios": ratios(ROWS, SPEEDS)}
    }
    record.begin("the command", {}, {"processor": "P", "llama.cpp": "built so"})
    (tmp_path / "remarks.md").write_text("## What did not work")
    report(record)
    text = (tmp_path / "README.md").read_text()
    assert "| a.sprat | 1.0 | 0.1000 (0.1000 to 0.1000) | 20 (10 to 30) | 50 (50 to 50) | 50% |" in text
    assert "| a.sprat | decode | coarse | 1.25 |" in text and "| b.sprat | decode | none |  |" in text
    assert "## What did not work" in text and "built so" in text


@pytest.mark.real
def test_llamacpp_writes_and_runs_the_real_model(real, tmp_path):
    """Its own 4-bit file of the original's 4-bit grid predicts what torch does from the same file."""
    llamacpp = pytest.importorskip("bench.peers.llamacpp")
    import torch

    from sprat.errors import SpratError
    from sprat.source import places
    from sprat.source.load import load

    original, path = places.find(real).path, tmp_path / "Q4_0.gguf"
    importance = {"blk.0.ffn_up.weight": np.ones(576, np.float32)}
    with pytest.raises(SpratError, match="knows no type 'Q9_9'"):
        llamacpp.quantize(original, "Q9_9", path, importance)
    llamacpp.quantize(original, "Q4_0+embedding", path, importance)
    assert path.stat().st_size < 80_000_000
    engine, ids = llamacpp.LlamaCpp(path, 1), np.arange(100, 116).tolist()
    session = engine.session()
    engine.step([session], [ids[:-1]])
    found = engine.step([session], [ids[-1:]])[0].copy()
    assert engine.step([engine.session()], [ids[:1]]).shape == (1, 49152)
    engine.close()
    with torch.no_grad():
        expected = load(path, dtype=torch.float32).model(torch.tensor([ids])).logits[0, -1].numpy()
    assert np.corrcoef(found, expected)[0, 1] > 0.99
