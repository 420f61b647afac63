"""What `sprat bench` measures, on an engine whose speed is known."""

import numpy as np
import pytest

from sprat.errors import RequestError
from sprat.run import measure as measuring
from sprat.run.measure import measure, read_bandwidth, resident_bytes
from toy_engine import ToyEngine


@pytest.fixture
def toy(monkeypatch):
    engine = ToyEngine(context=64)
    monkeypatch.setattr(measuring, "open_engine", lambda *_, **__: engine)
    monkeypatch.setattr(measuring, "ARRAY_BYTES", 1 << 20)
    return engine


def test_speeds_are_those_of_the_engine(toy, tiny):
    toy.delay = 0.004
    done = []
    found, engine = measure(
        tiny.file, runs=3, progress=lambda stage, done_, total: done.append(done_ / total)
    )
    assert engine is toy and toy.open == 0
    assert (found.prefill_tokens, found.decode_tokens) == (63, 47)
    # A step takes at least 4 ms, whatever it reads; a busy machine makes it more.
    assert 60 < found.decode_tokens_per_second <= 250
    assert 63 * 60 < found.prefill_tokens_per_second <= 63 * 250
    low, high = found.spread["decode"]
    assert low <= found.decode_tokens_per_second <= high
    assert found.first_token_seconds >= found.open_seconds + 0.004
    assert found.bandwidth_share == pytest.approx(
        1000 * found.decode_tokens_per_second / found.bandwidth_bytes_per_second
    )
    assert found.resident_ratio is None
    assert found.resident_bytes > 10e6 and found.file_bytes == tiny.file.stat().st_size
    assert done == sorted(done) and done[-1] == 1


def test_the_engines_own_figures_are_used_where_it_has_them(toy, tiny):
    toy.bytes_per_token = None
    toy.resident = {"layout": 5}
    found, _ = measure(tiny.file, runs=1)
    assert found.bandwidth_share is None
    assert found.engine_bytes == {"layout": 5}
    assert found.imported_bytes > 10e6
    assert found.resident_ratio == (found.resident_bytes - found.imported_bytes) / 5
    assert found.to_json()["schema"] == "sprat.bench/1"


def test_what_cannot_be_measured_is_refused(toy, tiny):
    with pytest.raises(RequestError, match="runs must be at least 1"):
        measure(tiny.file, runs=0)
    toy.context = 17
    with pytest.raises(RequestError, match="too short to measure"):
        measure(tiny.file)


def test_bandwidth_and_memory_are_plausible():
    before = resident_bytes()
    held = np.ones(64 << 20, np.uint8)
    assert resident_bytes() - before > 0.9 * held.nbytes
    assert 1e8 < read_bandwidth(2, 8 << 20, rounds=2) < 1e13  # last: what it reads goes back when it pleases
