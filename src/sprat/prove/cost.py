"""What running the file costs on this machine: memory, time to open, speed, and energy where it can be read.

Measured in a process of its own, so that nothing of the proof counts as the file's memory:
`python -m sprat.prove.cost FILE [THREADS]` prints what `speed` returns.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprat.errors import ProofError

if TYPE_CHECKING:
    from sprat.run.engine import Engine

#: Where Linux shows the energy counters of the processor (RAPL: Intel, AMD), in microjoules.
POWERCAP = Path("/sys/class/powercap")
#: Tokens that are written while energy is counted: counters move once a millisecond.
_COUNTED = 256
_SECONDS = 300


def speed(file: str | Path, threads: int | None = None) -> dict[str, Any]:
    """{resident_bytes, open_seconds, prefill_tokens_per_second, decode_tokens_per_second, threads, engine,
    energy_joules_per_token, energy_note}, medians of three runs. Raises `ProofError` where it cannot run."""
    command = [sys.executable, "-m", "sprat.prove.cost", str(file), *([str(threads)] if threads else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ProofError(f"measuring the speed of {file} took more than {_SECONDS} s") from None
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise ProofError(f"the speed of {file} cannot be measured: {last}")
    return json.loads(done.stdout)


def _measure(file: str, threads: int | None) -> dict[str, Any]:
    from sprat.run.measure import measure

    found, engine = measure(file, threads, runs=3)
    joules, note = energy_per_token(engine)
    return {
        "resident_bytes": found.resident_bytes,
        "open_seconds": found.open_seconds,
        "prefill_tokens_per_second": found.prefill_tokens_per_second,
        "decode_tokens_per_second": found.decode_tokens_per_second,
        "threads": found.threads,
        "engine": found.engine,
        "energy_joules_per_token": joules,
        "energy_note": note,
    }


def energy_per_token(engine: Engine, powercap: Path = POWERCAP) -> tuple[float | None, str]:
    """Joules a written token, and what they hold; None and why where they cannot be had."""
    # Of each processor its package: what is in it (intel-rapl:0:0) and around it (psys) would count twice.
    counters = sorted(path for path in powercap.glob("intel-rapl:*") if path.name.count(":") == 1)
    try:
        counters = [path for path in counters if (path / "name").read_text().startswith("package")]
        before = [_microjoules(path) for path in counters]
    except OSError as error:
        return None, f"not measurable here: {error.filename or powercap}: {error.strerror or error}"
    if not before:
        return None, f"not measurable here: no energy counters in {powercap}"
    count = min(_COUNTED, engine.context - 1)
    session, token = engine.session(), 0
    started = time.perf_counter()
    for _ in range(count):
        token = int(engine.step([session], [[token]])[0].argmax())
    spent = time.perf_counter() - started
    session.close()
    used = sum(_moved(path, start) for path, start in zip(counters, before, strict=True))
    return used * 1e-6 / count, f"the whole processor package for {spent:.1f} s, idle power included"


def _moved(counter: Path, before: int) -> int:
    """Microjoules since `before`; a counter that has wrapped once starts again from 0."""
    now = _microjoules(counter)
    return (
        now - before if now >= before else now - before + int((counter / "max_energy_range_uj").read_text())
    )


def _microjoules(counter: Path) -> int:
    return int((counter / "energy_uj").read_text())


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)))
