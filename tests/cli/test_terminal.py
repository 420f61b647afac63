"""Progress where there is no terminal: few lines, each with something to know."""

import pytest

from sprat.cli import terminal


class Told:
    """What a `Log` wrote, under a clock that the test sets."""

    def __init__(self):
        self.lines, self.now = [], 0.0
        self.log = terminal.Log(self.lines.append, lambda: self.now)

    def at(self, now, stage, done, total):
        self.now = now
        self.log(stage, done, total)


@pytest.fixture
def told():
    return Told()


def test_a_stage_says_its_share_and_the_time_left_every_fifteen_seconds(told):
    for second in range(100):
        told.at(float(second), "statistics", second, 200)
    assert told.lines[:3] == ["statistics …", "statistics: 8 %, 185 s left", "statistics: 15 %, 170 s left"]
    assert len(told.lines) == 1 + 99 // 15
    told.at(300.5, "statistics", 200, 200)
    assert told.lines[-1] == "statistics: 300.5 s"


def test_the_time_left_starts_from_what_was_done_at_the_first_call(told):
    told.at(10, "rounding", 50, 100)
    told.at(30, "rounding", 60, 100)
    assert told.lines[-1] == "rounding: 60 %, 80 s left"


def test_no_time_left_is_made_up(told):
    told.at(0, "loading", 0, 3)
    told.at(20, "loading", 0, 3)
    assert told.lines == ["loading …", "loading: 0 %"]


def test_a_stage_ends_once_or_when_another_begins(told):
    told.at(0, "opening", 0, 1)
    told.at(2, "rounding", 1, 2)
    told.at(5, "rounding", 2, 2)
    told.at(6, "rounding", 2, 2)
    told.log.end()
    assert told.lines == ["opening …", "opening: 2.0 s", "rounding …", "rounding: 3.0 s"]


def test_a_stage_that_begins_again_is_told_again(told):
    for start in (0, 10):
        told.at(start, "rounding", 1, 2)
        told.at(start + 4, "rounding", 2, 2)
    told.at(20, "rounding", 1, 9)
    told.at(21, "rounding", 5, 9)
    told.at(22, "rounding", 1, 9)  # given up half way
    told.log.end()
    lines = iter(told.lines)
    assert [took for begun, took in zip(lines, lines, strict=True) if begun == "rounding …"] == [
        f"rounding: {took} s" for took in ("4.0", "4.0", "2.0", "0.0")
    ]


def test_bars_write_lines_to_a_pipe_and_end_the_last_stage(capfd):
    with terminal.bars() as progress:
        progress("a stage with [brackets]", 0, 1)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "sprat: a stage with [brackets] …"
    assert err.splitlines()[1].startswith("sprat: a stage with [brackets]: 0.")


def test_a_stage_that_fails_is_not_called_done(capfd):
    with pytest.raises(ValueError), terminal.bars() as progress:
        progress("rounding", 1, 2)
        raise ValueError
    assert capfd.readouterr().err == "sprat: rounding …\n"
