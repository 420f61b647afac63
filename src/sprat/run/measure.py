"""How fast a file runs here, against how fast this machine can read memory.

Writing a token reads every weight once, so tokens a second times bytes a token, over the bandwidth that a plain
read reaches with as many threads, says how near an engine is to what the machine allows.
"""

from __future__ import annotations

import gc
import importlib
import itertools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from sprat import _core
from sprat.errors import RequestError
from sprat.progress import Progress, silent
from sprat.run.engine import Engine, open_engine

#: What is read and written where the context allows it, in tokens.
PREFILL, PROMPT, WRITTEN = 512, 16, 64
#: Times that the file is opened.
OPENS = 3
#: The array that is streamed: far beyond any cache.
ARRAY_BYTES = 256 << 20


@dataclass(frozen=True)
class Measurement:
    """Medians of several runs; `spread` has the slowest and fastest of each speed."""

    file: str
    file_bytes: int
    engine: str
    kernel: str | None
    threads: int
    runs: int
    open_seconds: float
    first_token_seconds: float  #: from a closed file to the first token behind a short prompt
    prefill_tokens: int
    prefill_tokens_per_second: float
    decode_tokens: int
    decode_tokens_per_second: float
    context: int  #: tokens of the longest text
    cache: str | None  #: what keys and values are kept in, where the engine says so
    cache_bytes: int | None  #: of a text as long as the context
    bytes_per_token: int | None  #: weights that a decoded token reads; None where the engine does not say
    bandwidth_bytes_per_second: float
    bandwidth_share: float | None  #: bytes a token x tokens a second / bandwidth
    bandwidth_array_bytes: int
    resident_bytes: int  #: of the whole process, the file open for the first time and a session at work
    imported_bytes: int  #: of the process before the file was opened: Python and its libraries
    engine_bytes: dict[str, int] | None  #: what the engine counts as its own, where it does
    resident_ratio: float | None  #: (resident - imported) / the sum of engine_bytes
    spread: dict[str, tuple[float, float]]

    def to_json(self) -> dict[str, Any]:
        return {"schema": "sprat.bench/1"} | asdict(self)


def measure(
    file: str | Path,
    threads: int | None = None,
    context: int | None = None,
    kind: str = "auto",
    runs: int = 5,
    progress: Progress = silent,
    cache: str | None = None,
    keep: bool | None = None,
) -> tuple[Measurement, Engine]:
    """Measure `file`; also the engine, still open. Takes some seconds on an idle machine.

    threads, context, kind, cache, keep: as for `open_engine`. `RequestError` where the context leaves nothing to
    measure.
    """
    if runs < 1:
        raise RequestError(f"runs must be at least 1, not {runs}", "runs")
    steps, total = itertools.count(1), OPENS + 2 * runs + 1

    def tick() -> None:
        progress("measuring", next(steps), total)

    for name in ("coding.container", "run.native", "run.tokenizer"):
        importlib.import_module(f"sprat.{name}")
    imported = resident_bytes()
    engine, openings = _opened(partial(_open, file, threads, context, kind, cache, keep), tick)
    first = openings[0]  # what later ones leave behind in memory is not the file's
    length = min(PREFILL, engine.context - 1)
    written = min(WRITTEN, engine.context - PROMPT - 1)
    prefill, decode = [], []
    for _ in range(runs):
        prefill.append(length / prefill_seconds(engine, length))
        tick()
        decode.append(written / decode_seconds(engine, written))
        tick()
    used = int(getattr(engine, "threads", None) or threads or os.cpu_count() or 1)
    bandwidth = read_bandwidth(used, ARRAY_BYTES)
    tick()
    per_token = getattr(engine, "bytes_per_token", None)
    cached = getattr(engine, "cache_bytes_per_token", None)
    made = Measurement(
        file=str(file),
        file_bytes=Path(file).stat().st_size,
        engine=engine.name,
        kernel=getattr(engine, "kernel", None),
        threads=used,
        runs=runs,
        open_seconds=median(opening.seconds for opening in openings),
        first_token_seconds=median(opening.to_first_token for opening in openings),
        prefill_tokens=length,
        prefill_tokens_per_second=median(prefill),
        decode_tokens=written,
        decode_tokens_per_second=median(decode),
        context=engine.context,
        cache=getattr(engine, "cache", None),
        cache_bytes=None if cached is None else cached * engine.context,
        bytes_per_token=per_token,
        bandwidth_bytes_per_second=bandwidth,
        bandwidth_share=None if per_token is None else per_token * median(decode) / bandwidth,
        bandwidth_array_bytes=ARRAY_BYTES,
        resident_bytes=first.resident,
        imported_bytes=imported,
        engine_bytes=first.own,
        resident_ratio=(first.resident - imported) / sum(first.own.values()) if first.own else None,
        spread={"prefill": (min(prefill), max(prefill)), "decode": (min(decode), max(decode))},
    )
    return made, engine


def read_bandwidth(threads: int, nbytes: int, rounds: int = 5) -> float:
    """Bytes a second that `threads` threads read from one array: the best of several rounds."""
    return _core.read_bandwidth(nbytes, threads, rounds)


def resident_bytes() -> int:
    """Memory of this process that lies in RAM now; its largest so far where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource  # not on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True)
class _Opening:
    """Seconds until the file was open, and until the first token was there; bytes of the process then, and of these
    what the engine counts as its own."""

    seconds: float
    to_first_token: float
    resident: int
    own: dict[str, int] | None


def _opened(
    opening: Callable[[], tuple[Engine, _Opening]], tick: Callable[[], None]
) -> tuple[Engine, list[_Opening]]:
    """The engine of the last of OPENS openings, and what each took."""
    found: list[_Opening] = []
    engine: Engine | None = None
    for _ in range(OPENS):
        engine = None  # the one before makes room
        gc.collect()
        engine, took = opening()
        found.append(took)
        if engine.context < PROMPT + 2:
            raise RequestError(
                f"a context of {engine.context} tokens is too short to measure with", "context"
            )
        tick()
    assert engine is not None
    return engine, found


def _open(
    file: str | Path,
    threads: int | None,
    context: int | None,
    kind: str,
    cache: str | None,
    keep: bool | None,
) -> tuple[Engine, _Opening]:
    """Open, write one token behind a short prompt, and look at the clock and the memory."""
    from sprat.coding.container import open as open_artifact
    from sprat.run.tokenizer import open_tokenizer

    started = time.perf_counter()
    artifact = open_artifact(file)
    engine = open_engine(artifact, threads, context, kind, cache, keep)
    to_open = time.perf_counter() - started
    ids = open_tokenizer(artifact).encode("Once upon a time")[: engine.context - 1]
    session = engine.session()
    int(engine.step([session], [ids])[0].argmax())
    to_first = time.perf_counter() - started
    own = getattr(engine, "resident", None)
    took = _Opening(to_open, to_first, resident_bytes(), None if own is None else dict(own))
    session.close()
    return engine, took


def prefill_seconds(engine: Engine, length: int) -> float:
    """Seconds to read `length` tokens into an empty session."""
    ids = _ids(engine, length)
    session = engine.session()
    started = time.perf_counter()
    engine.step([session], [ids])
    spent = time.perf_counter() - started
    session.close()
    return spent


def decode_seconds(engine: Engine, count: int) -> float:
    """Seconds to write `count` tokens, the likeliest each time, behind a short prompt."""
    session = engine.session()
    token = int(engine.step([session], [_ids(engine, PROMPT)])[0].argmax())
    started = time.perf_counter()
    for _ in range(count):
        token = int(engine.step([session], [[token]])[0].argmax())
    spent = time.perf_counter() - started
    session.close()
    return spent


def _ids(engine: Engine, count: int) -> list[int]:
    return np.random.default_rng(0).integers(0, engine.vocabulary, count).tolist()
