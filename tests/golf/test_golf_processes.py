"""torchrun: two processes are one with twice the batch; and a process that is killed goes on to the same file."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parallel_golf import train

TOKENS = 256 * 2 * 30


def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    settings = {"accumulate": 2, "noise": 0.3, "rate_term": 0.3, "prune_from": 80}
    script = Path(__file__).with_name("parallel_golf.py")
    call = [sys.executable, str(script), str(tmp_path / "two.pt"), "4", str(TOKENS), json.dumps(settings)]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    given = {  # what torchrun sets, which itself takes half a minute to start
        **os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    both = [
        subprocess.Popen(call, env={**given, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in both:
        assert process.communicate(timeout=120)[1] is not None and process.returncode == 0, process.stderr
    two = torch.load(tmp_path / "two.pt")
    one, losses = train(8, TOKENS, **settings)
    assert two["tokens"] == one.tokens
    assert two["losses"] == pytest.approx(losses, abs=2e-3)
    for name, weight in one.model.state_dict().items():
        # The order in which floats are added differs, and Muon makes much of a little.
        apart = (two["model"][name] - weight).norm() / weight.norm()
        assert float(apart) < 0.01, (name, float(apart))
