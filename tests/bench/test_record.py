"""What the benchmark reads off its rows, and that a cut-off run goes on where it was."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from bench.record import Record

from bench import curve, judge, work
from sprat.errors import SpratError

POINTS = [(10, 1.0), (20, 0.1), (40, 0.001)]


def test_the_curve_is_linear_in_log_kl_between_what_was_measured():
    assert curve.at(POINTS, 15) == pytest.approx(math.sqrt(0.1))
    assert curve.at(POINTS, 20) == pytest.approx(0.1)
    assert curve.at(POINTS, 9) is None
    assert curve.at(POINTS, 41) is None
    for kl in (0.9, 0.1, 0.02):
        assert curve.at(POINTS, curve.bytes_at(POINTS, kl) or 0) == pytest.approx(kl)
    assert curve.bytes_at(POINTS, 2.0) is None


def test_every_row_has_a_name_of_its_own():
    rows = (
        work.sprat_rows(["50MB", "60MB"], ["self", "other"]) + work.peer_rows() + work.ablation_rows("50MB")
    )
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert work.base_name("50MB") in names
    assert {row.method for row in work.quick(rows, work.base_name("50MB"))} == {"sprat", "rtn", "gptq", "hqq"}


def test_a_record_keeps_its_rows_and_refuses_other_settings(tmp_path):
    record = Record(tmp_path / "r", {"contexts": 2})
    record.add("rtn-1", {"kl": 0.5})
    record.add("gptq-1", {"kl": 0.4})
    again = Record(tmp_path / "r", {"contexts": 2})
    assert again.rows == {"rtn-1": {"kl": 0.5}, "gptq-1": {"kl": 0.4}}
    again.forget("rtn-*")
    assert list(again.rows) == ["gptq-1"]
    with pytest.raises(SpratError, match="contexts = 2, now it is 40"):
        Record(tmp_path / "r", {"contexts": 40})
    with pytest.raises(ValueError):
        record.add("broken", {"kl": float("nan")})
    assert json.loads((tmp_path / "r" / "result.json").read_text())["rows"].keys() == {"rtn-1", "gptq-1"}


def test_the_ratio_of_two_rows_is_paired():
    base = np.random.default_rng(0).uniform(0.1, 10, 30)
    ratio = judge.ratio((2 * base).tolist(), base.tolist())
    assert (ratio["value"], ratio["low"], ratio["high"]) == pytest.approx((2, 2, 2))
