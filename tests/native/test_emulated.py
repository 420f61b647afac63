"""The NEON kernel, compiled for aarch64 and run under emulation: every case equals the portable kernel."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
NAMES = [
    "kernels",
    "kernel_avx2",
    "kernel_avx512",
    "kernel_neon",
    "pack",
    "arena",
    "attention",
    "attention_int8",
    "cache",
]


@pytest.mark.skipif(
    not (COMPILER and EMULATOR), reason="needs Debian's g++-aarch64-linux-gnu and qemu-user-static"
)
def test_neon_equals_portable(tmp_path):
    program = tmp_path / "kernels"
    flags = [
        "-std=c++20",
        "-O2",
        "-ffp-contract=off",
        "-fopenmp-simd",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-static",
    ]
    sources = [ROOT / "tests/native/kernels.cpp", *(ROOT / f"csrc/engine/{name}.cpp" for name in NAMES)]
    subprocess.run([COMPILER, *flags, "-I", ROOT / "csrc/engine", *sources, "-o", program], check=True)
    done = subprocess.run([EMULATOR, "-cpu", "max", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "neon: 0 of 400 cases differ" in done.stdout
