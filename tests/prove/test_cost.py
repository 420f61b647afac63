"""Speed in a process of its own, and energy from counters that move, wrap, are closed, or are not there."""

import os

import pytest

from sprat.errors import ProofError
from sprat.prove import cost
from toy_engine import ToyEngine


def package(folder, name, kind="package-0", energy=0, largest=10**6):
    path = folder / name
    path.mkdir()
    (path / "name").write_text(kind + "\n")
    (path / "energy_uj").write_text(f"{energy}\n")
    (path / "max_energy_range_uj").write_text(f"{largest}\n")
    return path


class Burning(ToyEngine):
    """Each step costs 500 microjoules on the counters at hand, which wrap at their largest."""

    counters = ()

    def step(self, sessions, ids):
        for path in self.counters:
            energy = int((path / "energy_uj").read_text()) + 500
            (path / "energy_uj").write_text(str(energy % int((path / "max_energy_range_uj").read_text())))
        return super().step(sessions, ids)


def test_energy_is_counted_over_all_packages_and_across_a_wrap(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "_COUNTED", 16)
    engine = Burning()
    first = package(tmp_path, "intel-rapl:0", energy=7)
    second = package(tmp_path, "intel-rapl:1", "package-1", energy=997_000)
    engine.counters = (first, second)
    package(tmp_path, "intel-rapl:0:0", "core")
    package(tmp_path, "intel-rapl:2", "psys")
    (tmp_path / "intel-rapl").mkdir()
    joules, note = cost.energy_per_token(engine, tmp_path)
    assert joules == pytest.approx(2 * 500e-6)
    assert "idle power included" in note


def test_without_counters_it_is_said(tmp_path):
    assert cost.energy_per_token(Burning(), tmp_path) == (
        None,
        f"not measurable here: no energy counters in {tmp_path}",
    )


@pytest.mark.skipif(os.getuid() == 0 if hasattr(os, "getuid") else True, reason="root may read everything")
def test_counters_for_root_alone_are_said(tmp_path):
    (package(tmp_path, "intel-rapl:0") / "energy_uj").chmod(0)
    joules, note = cost.energy_per_token(Burning(), tmp_path)
    assert joules is None and "Permission denied" in note


def test_a_counter_that_is_gone_is_said(tmp_path):
    (package(tmp_path, "intel-rapl:0") / "energy_uj").unlink()
    joules, note = cost.energy_per_token(Burning(), tmp_path)
    assert joules is None
    assert (
        note == f"not measurable here: {tmp_path / 'intel-rapl:0' / 'energy_uj'}: No such file or directory"
    )


def test_speed_is_that_of_a_fresh_process(tiny):
    found = cost.speed(tiny.file, threads=1)
    assert (found["engine"], found["threads"]) == ("native", 1)
    assert found["decode_tokens_per_second"] > 0 and found["prefill_tokens_per_second"] > 0
    # Nothing of torch and of this test's models counts.
    assert 10 * 2**20 < found["resident_bytes"] < 200 * 2**20
    assert found["energy_note"]


def test_a_file_that_cannot_run_is_said(tmp_path):
    (tmp_path / "broken.sprat").write_bytes(b"SPRAT?")
    with pytest.raises(ProofError, match=r"the speed of .*broken.sprat cannot be measured: "):
        cost.speed(tmp_path / "broken.sprat")
