"""The native engine measured alone: python -m bench.engine FILE [--threads N] [--rounds N] [--json].

Opening, prefill of 512 tokens, decoding behind 64 tokens, and what decoding streams beside what this machine
reads from memory in the same minute: on a shared machine only figures of one run can be compared. Medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np

import sprat
from sprat import _core
from sprat.run.native import NativeEngine

PREFILL = 512
DECODE = 100


def measure(path: str, threads: int, rounds: int) -> dict[str, Any]:
    """Seconds, tokens a second (by the wall clock, and by processor time where one thread computes) and bytes."""
    start = time.perf_counter()
    engine = NativeEngine(sprat.open(path), threads=threads)
    opened = time.perf_counter()
    session = engine.session()
    ids = np.random.default_rng(0).integers(0, engine.vocabulary, PREFILL).tolist()
    engine.step([session], [ids[:8]])
    first = time.perf_counter()
    prefill, decode, busy, bandwidth = [], [], [], []
    for _ in range(rounds):
        session.rewind(0)
        begin = time.perf_counter()
        engine.step([session], [ids])
        prefill.append(PREFILL / (time.perf_counter() - begin))
        session.rewind(64)
        begin, used = time.perf_counter(), time.process_time()
        for token in ids[:DECODE]:
            engine.step([session], [[token]])
        decode.append(DECODE / (time.perf_counter() - begin))
        busy.append(DECODE / (time.process_time() - used))
        bandwidth.append(_core.read_bandwidth(engine.bytes_per_token, threads, 9))
    ceiling = statistics.median(bandwidth) / engine.bytes_per_token
    return {
        "kernel": engine.kernel,
        "threads": threads,
        "open_seconds": opened - start,
        "open_to_first_token_seconds": first - start,
        "prefill_tokens_per_second": statistics.median(prefill),
        "decode_tokens_per_second": statistics.median(decode),
        "decode_tokens_per_processor_second": statistics.median(busy) * threads,
        "bytes_per_token": engine.bytes_per_token,
        "bandwidth_bytes_per_second": statistics.median(bandwidth),
        "share_of_ceiling": statistics.median(decode) / ceiling,
        "resident": engine.resident,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options.file, options.threads, options.rounds)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        print(f"{name:36} {value:,.3f}" if isinstance(value, float) else f"{name:36} {value}")


if __name__ == "__main__":
    main()
