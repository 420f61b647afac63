"""Types of the native core (csrc/)."""

import numpy as np

# ---- csrc/rans.cpp: entropy coder (see coding/entropy.py for shapes and meaning) ----
def count(
    q: np.ndarray,
    row_class: np.ndarray,
    col_class: np.ndarray,
    trellis: int,
    counts: np.ndarray,
    extra: np.ndarray,
    threads: int = 1,
) -> None: ...
def encode(
    q: np.ndarray,
    row_class: np.ndarray,
    col_class: np.ndarray,
    trellis: int,
    freq: np.ndarray,
    threads: int = 1,
) -> bytes: ...
def decode(
    data: np.ndarray,
    row_class: np.ndarray,
    col_class: np.ndarray,
    trellis: int,
    freq: np.ndarray,
    out: np.ndarray,
    threads: int = 1,
) -> None: ...
def encode_vector(values: np.ndarray) -> bytes: ...
def decode_vector(data: np.ndarray, out: np.ndarray) -> None: ...
def fit_levels(counts: np.ndarray, used: np.ndarray, levels: np.ndarray) -> None: ...
def encode_levels(used: np.ndarray, levels: np.ndarray) -> bytes: ...
def decode_levels(data: np.ndarray, used: np.ndarray, levels: np.ndarray) -> None: ...
def frequencies(used: np.ndarray, levels: np.ndarray, out: np.ndarray) -> None: ...

# ---- csrc/waterlevel.cpp: rounding a block of columns (see csrc/waterlevel.hpp for shapes and meaning) ----
def round_block(
    w: np.ndarray,
    feedback: np.ndarray,
    inverse_u: np.ndarray,
    step: np.ndarray,
    row_lambda: np.ndarray,
    row_class: np.ndarray,
    col_class: np.ndarray,
    bits: np.ndarray,
    offset: int,
    states: int,
    state: np.ndarray,
    q: np.ndarray,
    error: np.ndarray,
    threads: int = 1,
) -> None: ...
