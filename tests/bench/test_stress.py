"""The stress benchmark finds what it is there to find."""

from __future__ import annotations

import threading
import time

from bench.stress import Clients, _growth, _left_over

import sprat
from serving import serving
from toy_engine import ToyEngine


def crowd(url, enough, clients=6):
    """Clients that go on until `enough` of what they counted, a minute at most: a busy machine takes its time."""
    shared = Clients(url, time.monotonic() + 60)
    threads = [threading.Thread(target=shared.run, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    while time.monotonic() < shared.until and not enough(shared):
        time.sleep(0.05)
    shared.until = 0.0
    for thread in threads:
        thread.join()
    return shared


def test_a_sound_server_has_no_faults(tiny):
    with serving(sprat.open(tiny.file), ToyEngine(delay=0.0005), max_clients=3) as server:
        kinds = {"whole", "stream", "leave", "nonsense"}
        shared = crowd(server.url, lambda seen: set(seen.counts) >= kinds and seen.tokens > 0)
        assert shared.faults == []
        assert set(shared.counts) >= kinds
        assert shared.tokens > 0
        assert _left_over(server.url) == []


def test_a_broken_engine_is_noticed(tiny):
    engine = ToyEngine()
    engine.step = lambda *_: 1 / 0
    with serving(sprat.open(tiny.file), engine) as server:
        assert any("status 500" in fault for fault in crowd(server.url, lambda seen: seen.faults).faults)


def test_growth_is_told_from_warming_up():
    assert _growth([100_000_000, 400_000_000, 500_000_000] + [505_000_000] * 6) == []
    assert _growth([500_000_000 + 20_000_000 * i for i in range(12)])
    assert _growth([1, 10**9]) == []
