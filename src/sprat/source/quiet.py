"""Transformers and huggingface_hub talk and draw bars; a library must not. Their settings are put back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from logging import CRITICAL
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, no warnings, no log lines below an error."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging

    gguf: Any = modeling_gguf_pytorch_utils

    verbosity, bars, hub_silent = (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        are_progress_bars_disabled(),
    )
    # An error that transformers logs is one that it also raises, or that `load` finds out and raises itself.
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()
    disable_progress_bars()
    bar = getattr(gguf, "tqdm", None)  # this one asks nobody
    if bar is not None:
        gguf.tqdm = partial(bar, disable=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if not hub_silent:
            enable_progress_bars()
        if bar is not None:
            gguf.tqdm = bar
