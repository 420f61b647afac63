"""Budgets as they are typed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprat.errors import BudgetError
from sprat.sizes import format_bytes, parse_budget


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50MB", 50_000_000),
        ("16MB", 16_000_000),
        ("50 mb", 50_000_000),
        ("5.5GiB", int(5.5 * 2**30)),
        ("1MiB", 2**20),
        ("250kB", 250_000),
        ("500000", 500_000),
        ("500_000", 500_000),
        ("1,000 B", 1000),
        ("12,500,000", 12_500_000),
        ("40%", 400),
        ("12.5%", 125),
        ("3.2bpw", 400),
        ("100%", 1000),
    ],
)
def test_bytes(text, expected):
    assert parse_budget(text).bytes(original_bytes=1000, weights=1000) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("50XB", "unknown unit 'XB'"),
        ("50MBB", "did you mean 'MB'"),
        ("50gibs", "did you mean 'GiB'"),
        ("lots", "'lots' is no size"),
        ("", "is no size"),
        ("-5MB", "is no size"),
        ("1e6", "is no size"),
        ("nan", "is no size"),
        ("0MB", "more than zero"),
        ("140%", "more than the original"),
        ("0.2B", "less than one byte"),
        ("50MB 60MB", "is no size"),
        ("1,5MB", "'1,5MB' is no size .a point stands before a fraction, commas between thousands"),
        ("40,5%", "a point stands before a fraction"),
        ("1,0000B", "is no size"),
        ("9" * 400 + "MB", "is no size"),
        ("1" + ",000" * 400, "is no size"),
    ],
)
def test_refused(text, message):
    with pytest.raises(BudgetError, match=message):
        parse_budget(text)


def test_errors_give_examples():
    with pytest.raises(BudgetError, match=r"50MB, 5\.5GiB, 250kB, 500000, 40% or 3\.2bpw"):
        parse_budget("fifty")


@given(st.integers(1, 10**15), st.sampled_from(["", "B", "kB", "MB", "GiB"]))
def test_whole_numbers_are_exact(number, unit):
    scale = {"": 1, "B": 1, "kB": 1000, "MB": 10**6, "GiB": 2**30}[unit]
    expected = number * scale
    assert abs(parse_budget(f"{number}{unit}").bytes(0, 0) - expected) <= expected * 1e-15


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (812, "812 B"),
        (250_000, "250 kB"),
        (47_412_345, "47.4 MB"),
        (5_120_000, "5.12 MB"),
        (0, "0 B"),
        (10**9, "1 GB"),
    ],
)
def test_format(count, text):
    assert format_bytes(count) == text
