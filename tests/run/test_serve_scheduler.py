"""Texts written side by side: what is batched, who is next, and that every session comes back."""

import threading
import time

import numpy as np
import pytest

import sprat
from sprat.run.sampling import Sampler, Sampling
from sprat.run.serve.errors import ApiError
from sprat.run.serve.scheduler import PART, Choice, Job, Scheduler
from sprat.run.serve.sessions import Sessions
from sprat.run.serve.writing import Writer, beginning
from sprat.run.tokenizer import open_tokenizer
from toy_engine import ToyEngine


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return open_tokenizer(sprat.open(tiny.file))


@pytest.fixture
def make():
    """A scheduler that is closed in the end, and has then given everything back."""
    made = []

    def call(engine, running=4, waiting=8, keep=0, context=None):
        made.append(Scheduler(engine, frozenset({0}), context or engine.context, running, waiting, keep))
        return made[-1]

    yield call
    for scheduler in made:
        scheduler.close()
        assert scheduler._engine.open == scheduler.sessions[0] == 0


class Inbox:
    """Where the news of a job goes."""

    def __init__(self):
        self.events, self.done = [], threading.Event()
        self.left = 1

    def __call__(self, event):
        self.events.append((time.monotonic(), event))
        if event.finish or event.failure:
            self.left -= 1
            if self.left == 0:
                self.done.set()

    def wait(self):
        assert self.done.wait(10)
        return "".join(event.piece.text for _, event in self.events)

    @property
    def last(self):
        return self.events[-1][1]


def job(tokenizer, ids, tokens=5, client="a", count=1, seconds=10.0, temperature=0.0):
    inbox = Inbox()
    inbox.left = count
    settings = Sampling(temperature=temperature, seed=3)
    choices = [
        Choice(i, list(ids), Sampler(settings, ids), Writer(tokenizer, ids, (), None), tokens)
        for i in range(count)
    ]
    return Job(client, choices, inbox, time.monotonic() + seconds, seconds), inbox


def until(fact, seconds=5.0):
    end = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_texts_are_written_side_by_side_as_they_would_be_alone(make, tokenizer):
    texts = [[5 + i] * (1 + 7 * i) for i in range(4)]
    alone = make(ToyEngine(), running=1)
    expected = []
    for ids in texts:
        one, inbox = job(tokenizer, ids, 20, temperature=0.9)
        alone.submit(one)
        expected.append(inbox.wait())
    engine = ToyEngine(delay=0.002)
    scheduler = make(engine)
    jobs = [job(tokenizer, ids, 20, temperature=0.9) for ids in texts]
    for one, _ in jobs:
        scheduler.submit(one)
    assert [inbox.wait() for _, inbox in jobs] == expected
    assert max(engine.batches) == 4


def test_a_long_prompt_holds_the_others_up_by_no_more_than_a_part(make, tokenizer):
    engine = ToyEngine(context=4 * PART + 100, never=[0])
    scheduler = make(engine)
    short, heard = job(tokenizer, [7], 60)
    scheduler.submit(short)
    until(lambda: heard.events)
    long, inbox = job(tokenizer, [9] * (4 * PART), 1)
    largest, before = [], engine.tokens
    step = engine.step
    engine.step = lambda s, i: (largest.append(sum(map(len, i))), step(s, i))[1]
    scheduler.submit(long)
    inbox.wait()
    heard.wait()
    assert max(largest) <= PART
    assert sum(largest) >= 4 * PART and engine.tokens > before


def test_clients_take_turns(make, tokenizer):
    engine = ToyEngine(delay=0.002, never=[0])
    scheduler = make(engine, running=1, waiting=20)
    greedy = [job(tokenizer, [5], 5, "greedy") for _ in range(8)]
    for one, _ in greedy:
        scheduler.submit(one)
    modest, inbox = job(tokenizer, [6], 5, "modest")
    scheduler.submit(modest)
    inbox.wait()
    ended = inbox.events[-1][0]
    for _, other in greedy:
        other.wait()
    assert sum(other.events[-1][0] < ended for _, other in greedy) <= 2


def test_the_choices_of_a_job_are_written_too(make, tokenizer):
    scheduler = make(ToyEngine(), running=2)
    one, inbox = job(tokenizer, [5, 6], 4, count=6)
    scheduler.submit(one)
    inbox.wait()
    assert sorted(e.choice for _, e in inbox.events if e.finish) == list(range(6))


def test_a_full_queue_refuses_and_takes_all_or_nothing(make, tokenizer):
    engine = ToyEngine(delay=0.01, never=[0])
    scheduler = make(engine, running=1, waiting=2)
    first, inbox = job(tokenizer, [5], 30)
    scheduler.submit(first)
    until(lambda: inbox.events)
    scheduler.submit(job(tokenizer, [5], 1)[0])
    with pytest.raises(ApiError) as refused:
        scheduler.submit(job(tokenizer, [5], 1, count=2)[0])
    assert (refused.value.status, scheduler.waiting) == (429, 1)
    assert 1 <= int(refused.value.headers["Retry-After"]) <= 60
    last, last_inbox = job(tokenizer, [5], 1)
    scheduler.submit(last)
    inbox.wait()
    last_inbox.wait()
    assert last_inbox.last.finish == "length"


def test_a_cancelled_job_stops_before_the_next_step(make, tokenizer):
    engine = ToyEngine(context=10_000, delay=0.005, never=[0])
    scheduler = make(engine, running=1)
    endless, inbox = job(tokenizer, [5], 9_000)
    queued, queued_inbox = job(tokenizer, [5], 9_000)
    after, after_inbox = job(tokenizer, [5], 2)
    for one in (endless, queued, after):
        scheduler.submit(one)
    until(lambda: inbox.events)
    endless.cancel()
    queued.cancel()
    after_inbox.wait()
    until(lambda: engine.open == 0)
    assert engine.tokens < 200
    assert len(queued_inbox.events) == 1 and queued_inbox.last.failure


def test_a_job_that_takes_too_long_is_told_so(make, tokenizer):
    engine = ToyEngine(context=10_000, delay=0.005, never=[0])
    scheduler = make(engine, running=1)
    endless, inbox = job(tokenizer, [5], 9_000, seconds=0.1)
    queued, queued_inbox = job(tokenizer, [5], 9_000, seconds=0.05)
    scheduler.submit(endless)
    until(lambda: inbox.events)
    scheduler.submit(queued)
    inbox.wait()
    queued_inbox.wait()
    for box in (inbox, queued_inbox):
        assert (box.last.failure.status, box.last.failure.code) == (504, "timeout")


def test_an_engine_that_fails_ends_its_texts_and_not_the_server(make, tokenizer):
    engine = ToyEngine(never=[0])
    step, engine.step = engine.step, lambda *_: 1 / 0
    scheduler = make(engine, keep=4)
    one, inbox = job(tokenizer, [5])
    scheduler.submit(one)
    inbox.wait()
    assert inbox.last.failure.status == 500
    until(lambda: engine.open == 0)
    engine.step = step
    again, inbox = job(tokenizer, [5])
    scheduler.submit(again)
    inbox.wait()
    assert inbox.last.finish == "length"


def test_broken_logits_end_one_text_alone(make, tokenizer):
    engine = ToyEngine(delay=0.002, never=[0])
    logits = engine._logits
    engine._logits = lambda ids: np.full(320, np.nan, np.float32) if ids[0] == 66 else logits(ids)
    scheduler = make(engine)
    good, heard = job(tokenizer, [5], 20)
    bad, inbox = job(tokenizer, [66], 20)
    scheduler.submit(good)
    scheduler.submit(bad)
    inbox.wait()
    heard.wait()
    assert "not finite" in str(inbox.last.failure)
    assert heard.last.finish == "length"


def test_no_room_for_a_session_is_an_answer(make, tokenizer):
    engine = ToyEngine()

    def full(context=None):
        raise MemoryError("no memory")

    engine.session = full
    one, inbox = job(tokenizer, [5])
    make(engine).submit(one)
    inbox.wait()
    assert inbox.last.failure.status == 503


def test_closing_tells_whoever_waits(make, tokenizer):
    engine = ToyEngine(context=10_000, delay=0.01, never=[0])
    scheduler = make(engine, running=1)
    boxes = []
    for _ in range(3):
        one, inbox = job(tokenizer, [5], 9_000)
        scheduler.submit(one)
        boxes.append(inbox)
    until(lambda: boxes[0].events)
    scheduler.close()
    assert [box.last.failure.status for box in boxes] == [503] * 3
    assert not scheduler.alive
    with pytest.raises(ApiError, match="shutting down"):
        scheduler.submit(job(tokenizer, [5])[0])


def test_a_fault_of_the_scheduler_leaves_nobody_waiting(make, tokenizer, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    scheduler = make(ToyEngine())
    scheduler._sweep = lambda: 1 / 0
    one, inbox = job(tokenizer, [5])
    scheduler.submit(one)
    inbox.wait()
    assert inbox.last.failure.status == 503
    until(lambda: not scheduler.alive)


def test_kept_sessions_go_to_the_texts_that_continue_them():
    engine = ToyEngine()
    sessions = Sessions(engine, 256, keep=2)
    long, other = list(range(1, 41)), list(range(100, 140))
    for ids in (long, other):
        session, reused = sessions.take(ids)
        assert reused == 0
        engine.step([session], [ids])
        sessions.give(session, list(ids))
    session, reused = sessions.take([*long[:30], 200])
    assert (reused, session.ids) == (30, long[:30])
    sessions.give(session, long[:30])
    _, reused = sessions.take(other)
    assert reused == len(other) - 1  # one token has to be read for its logits
    fresh, reused = sessions.take([300] * 40)
    assert (reused, fresh.ids, engine.open, sessions.idle) == (0, [], 3, 1)
    sessions.clear()
    assert engine.open == sessions.open == 2


def test_no_more_sessions_lie_idle_than_are_kept():
    engine = ToyEngine()
    sessions = Sessions(engine, 256, keep=2)
    taken = [sessions.take([i])[0] for i in range(5)]
    for i, session in enumerate(taken):
        sessions.give(session, [i])
    assert engine.open == sessions.open == sessions.idle == 2


def test_a_text_that_continues_none_gets_no_cache_of_another():
    engine = ToyEngine()
    sessions = Sessions(engine, 256, keep=1)
    long, _ = sessions.take([1] * 200)
    engine.step([long], [[1] * 200])
    sessions.give(long, [1] * 200)
    short, reused = sessions.take([9, 9])
    assert short is not long and reused == 0
    engine.step([short], [[9, 9]])
    sessions.give(short, [9, 9])
    assert long.closed and engine.open == sessions.open == 1  # and with it the memory of a long text


@pytest.mark.parametrize(
    ("text", "stops", "held"),
    [("abc", ["cd"], 1), ("abc", ["bcd", "cx"], 2), ("abc", ["x"], 0), ("aaa", ["aaab"], 3), ("a", [], 0)],
)
def test_how_much_may_begin_a_stop_string(text, stops, held):
    assert beginning(text, stops) == held


def test_stops_are_found_wherever_tokens_end(tokenizer):
    text = "the cat sat on the mat and the dog"
    ids = tokenizer.encode(text, special=False)
    for stop in ("t sat o", "the mat", "g", "th", "nothing", "dogs"):
        writer = Writer(tokenizer, [], [stop], None)
        out = ""
        for token in ids:
            out += writer.push(token, np.zeros(0)).text
            if writer.stopped:
                break
        out += "" if writer.stopped else writer.end().text
        assert out == text.split(stop)[0]
        assert writer.stopped == (stop in text)
