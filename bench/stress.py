"""Many clients of one server for minutes: well-formed requests, cancelled ones and nonsense, all at once.

    python -m bench.stress FILE --clients 64 --seconds 300 --json stress.json

It starts `sprat serve FILE` itself. Fails (exit status 1) where a well-formed request is not answered as it should
be, where nonsense gets anything but a refusal, where the server's memory grows, or where a text is left running.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2

#: Requests that must be refused, whatever the file.
NONSENSE: list[bytes] = [
    b"",
    b"{",
    b"[" * 5000,
    b"\xff\xfe",
    b'{"prompt": "x", "max_tokens": -1}',
    b'{"prompt": "x", "temperature": NaN}',
    b'{"prompt": "x", "echo": true}',
    b'{"prompt": "\\ud800"}',
    b'{"messages": []}',
    b'{"prompt": "' + b"word " * 200_000 + b'"}',
]
TEXT = "the cat sat on the mat and the dog ate the big fish while a small bird sang in the old tree"
#: Memory may move by this share, and by this many bytes, behind the first third of the time.
GROWTH_SHARE, GROWTH_BYTES = 0.05, 20_000_000


class Clients:
    """What all clients count together."""

    def __init__(self, url: str, until: float):
        self.url, self.until = url, until
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.tokens = 0
        self.longest = 0.0
        self._lock = threading.Lock()

    def run(self, number: int) -> None:
        """One client, request after request, until the time is over."""
        dice = random.Random(number)
        with httpx2.Client(base_url=self.url, timeout=httpx2.Timeout(300)) as http:
            while time.monotonic() < self.until:
                kind = dice.choices(["whole", "stream", "leave", "nonsense"], [4, 4, 3, 2])[0]
                started = time.monotonic()
                try:
                    fault = getattr(self, "_" + kind)(http, dice)
                except httpx2.HTTPError as error:
                    fault = f"{type(error).__name__}: {error}"
                with self._lock:
                    self.counts[kind] += 1
                    self.longest = max(self.longest, time.monotonic() - started)
                    if fault:
                        self.faults.append(f"{kind}: {fault}")

    def _body(self, dice: random.Random, **more: Any) -> dict[str, Any]:
        text = " ".join(dice.choices(TEXT.split(), k=dice.randint(1, 60)))
        return {
            "messages": [{"role": "user", "content": text}],
            "max_tokens": dice.randint(1, 32),
            "temperature": dice.choice([0, 0.8]),
        } | more

    def _whole(self, http: httpx2.Client, dice: random.Random) -> str | None:
        body = self._body(dice, n=dice.choice([1, 1, 2]))
        while (reply := http.post("/v1/chat/completions", json=body)).status_code == 429:
            self.counts["told to wait"] += 1
            time.sleep(float(reply.headers["retry-after"]))
        if reply.status_code != 200:
            return f"status {reply.status_code}: {reply.text[:200]}"
        said = reply.json()
        self._count(said["usage"])
        ends = [choice["finish_reason"] for choice in said["choices"]]
        return None if len(ends) == body["n"] and set(ends) <= {"stop", "length"} else f"choices ended {ends}"

    def _stream(self, http: httpx2.Client, dice: random.Random) -> str | None:
        body = self._body(dice, stream=True, stream_options={"include_usage": True})
        while True:
            with http.stream("POST", "/v1/chat/completions", json=body) as reply:
                lines = [line for line in reply.iter_lines() if line]
            if reply.status_code != 429:
                break
            self.counts["told to wait"] += 1
            time.sleep(float(reply.headers["retry-after"]))
        if reply.status_code != 200 or lines[-1] != "data: [DONE]":
            return f"status {reply.status_code}, the last line {lines[-1][:200]}"
        self._count(json.loads(lines[-2][6:])["usage"])
        return None

    def _leave(self, http: httpx2.Client, dice: random.Random) -> str | None:
        """A stream that is left in its middle, or a request that is left before its answer."""
        if dice.random() < 0.5:
            with http.stream("POST", "/v1/chat/completions", json=self._body(dice, stream=True)) as reply:
                for i, _ in enumerate(reply.iter_lines()):
                    if i > 3:
                        break
            return None
        with suppress(httpx2.TimeoutException):
            http.post("/v1/chat/completions", json=self._body(dice), timeout=dice.uniform(0.01, 0.5))
        return None

    def _nonsense(self, http: httpx2.Client, dice: random.Random) -> str | None:
        reply = http.post("/v1/completions", content=dice.choice(NONSENSE))
        return None if reply.status_code in (400, 413) else f"status {reply.status_code} for nonsense"

    def _count(self, usage: dict[str, int]) -> None:
        with self._lock:
            self.tokens += usage["completion_tokens"]


def memory(process: int) -> int:
    """Resident bytes of a process (Linux)."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def stress(file: Path, clients: int, seconds: float, options: list[str]) -> dict[str, Any]:
    """Run it; `faults` of the result is empty where all went well."""
    command = [sys.executable, "-m", "sprat", "serve", str(file), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            lines = [server.stdout.readline() for _ in range(3)]
            if not lines[2]:
                raise SystemExit("the server did not start")
            url = lines[2].split()[-1].removesuffix("/v1")
            started = time.monotonic()
            shared = Clients(url, started + seconds)
            threads = [threading.Thread(target=shared.run, args=(i,)) for i in range(clients)]
            for thread in threads:
                thread.start()
            resident = []
            while any(thread.is_alive() for thread in threads):
                time.sleep(min(1.0, seconds / 10))
                resident.append(memory(server.pid))
            spent = time.monotonic() - started
            faults = shared.faults + _left_over(url) + _growth(resident)
        finally:
            server.terminate()
    return {
        "schema": "sprat.stress/1",
        "file": file.name,
        "server": lines[0].strip(),
        "clients": clients,
        "seconds": round(spent, 1),
        "requests": dict(shared.counts),
        "tokens_per_second": round(shared.tokens / spent, 1),
        "longest_request_seconds": round(shared.longest, 2),
        "resident_bytes": {"first": resident[0], "highest": max(resident), "last": resident[-1]},
        "faults": faults,
    }


def _left_over(url: str) -> list[str]:
    """Whatever still runs some seconds after the last client left."""
    health: dict[str, Any] = {}
    for _ in range(100):
        health = httpx2.get(f"{url}/health").json()
        if health["running"] == health["waiting"] == 0 and health["sessions"] == health["idle_sessions"]:
            return []
        time.sleep(0.1)
    return [f"left over: {health}"]


def _growth(resident: list[int]) -> list[str]:
    """The highest of the last third against the highest of the second: the first is for warming up."""
    third = len(resident) // 3
    if third < 3:
        return []
    before, after = max(resident[third : 2 * third]), max(resident[2 * third :])
    if after - before > max(GROWTH_BYTES, GROWTH_SHARE * before):
        return [f"memory grew from {before:,} to {after:,} bytes"]
    return []


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--json", type=Path, help="write the result here too")
    arguments, options = parser.parse_known_args()
    result = stress(arguments.file, arguments.clients, arguments.seconds, options)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
