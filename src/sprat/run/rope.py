"""Rotary position embeddings: the frequencies and the factor of each scaling.

Sources: RoFormer (arXiv 2104.09864); linear interpolation (2306.15595); YaRN (2309.00071) section 3; Llama 3.1's
scaling as in its reference code. Numbers are float32 at the same points as in transformers, whose models these are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sprat.errors import FormatError, UnsupportedError, nearest


@dataclass(frozen=True, eq=False)
class Rope:
    """frequency: (head_dim / 2,) float32, radians a position; factor: of cosines and sines."""

    frequency: np.ndarray
    factor: float


def ropes(config: dict[str, Any], dimension: int, local: bool) -> tuple[Rope, ...]:
    """The rope of a config, or (local: Gemma 3) those of its full and its sliding layers.

    Reads transformers 5's `rope_parameters` and what stood before it: `rope_theta`, `rope_scaling`,
    `rope_local_base_freq`.
    """
    given = config.get("rope_parameters")
    if given is not None and not isinstance(given, dict):
        raise FormatError(f"config: 'rope_parameters' must be an object, not {given!r}")
    if not local:
        return (_rope(config, _old(config, "rope_theta", 10000.0) | (given or {}), dimension),)
    full = _old(config, "rope_theta", 1_000_000.0)
    sliding = {"rope_theta": config.get("rope_local_base_freq", 10000.0)}
    for name, settings in (("full_attention", full), ("sliding_attention", sliding)):
        more = (given or {}).get(name) or {}
        if not isinstance(more, dict):
            raise FormatError(f"config: 'rope_parameters.{name}' must be an object, not {more!r}")
        settings |= more
    return _rope(config, full, dimension), _rope(config, sliding, dimension)


def _old(config: dict[str, Any], base: str, default: float) -> dict[str, Any]:
    scaling = config.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise FormatError(f"config: 'rope_scaling' must be an object, not {scaling!r}")
    theta = config.get(base)
    return {"rope_theta": default if theta is None else theta} | scaling


def _rope(config: dict[str, Any], settings: dict[str, Any], dimension: int) -> Rope:
    kind = settings.get("rope_type", settings.get("type", "default"))
    if not isinstance(kind, str) or kind not in _KINDS:
        hint = nearest(kind, _KINDS) if isinstance(kind, str) else ""
        raise UnsupportedError(
            f"the native engine does not serve the rope scaling {kind!r}{hint}: one of {', '.join(_KINDS)}"
        )
    if settings.get("partial_rotary_factor", 1.0) not in (None, 1.0) or config.get(
        "partial_rotary_factor", 1.0
    ) not in (None, 1.0):
        raise UnsupportedError("the native engine does not serve heads that are rotated in part")
    base = _number(settings, "rope_theta", 1.0 + 1e-6, 1e12)
    exponent = np.arange(0, dimension, 2, dtype=np.float32) / np.float32(dimension)
    frequency = (np.float32(1) / np.power(np.float32(base), exponent)).astype(np.float32)
    if kind == "yarn" and settings.get("original_max_position_embeddings") is None:
        settings = settings | {"original_max_position_embeddings": config.get("max_position_embeddings")}
    rope = _KINDS[kind](settings, frequency, base)
    if not np.isfinite(rope.frequency).all() or not math.isfinite(rope.factor):
        raise FormatError("config: the rope's settings give frequencies that are not finite")
    return rope


def _default(settings: dict[str, Any], frequency: np.ndarray, base: float) -> Rope:
    return Rope(frequency, 1.0)


def _linear(settings: dict[str, Any], frequency: np.ndarray, base: float) -> Rope:
    return Rope(frequency / np.float32(_number(settings, "factor", 1e-6, 1e6)), 1.0)


def _llama3(settings: dict[str, Any], frequency: np.ndarray, base: float) -> Rope:
    factor = _number(settings, "factor", 1e-6, 1e6)
    low, high = (_number(settings, f"{end}_freq_factor", 1e-6, 1e6) for end in ("low", "high"))
    length = _number(settings, "original_max_position_embeddings", 1, 1 << 30)
    if low == high:
        raise FormatError("config: the rope's low_freq_factor and high_freq_factor must differ")
    wave = 2 * math.pi / frequency
    smooth = (length / wave - low) / (high - low)
    between = (1 - smooth) * frequency / factor + smooth * frequency
    scaled = np.where(
        wave > length / low, frequency / factor, np.where(wave < length / high, frequency, between)
    )
    return Rope(scaled.astype(np.float32), 1.0)


def _yarn(settings: dict[str, Any], frequency: np.ndarray, base: float) -> Rope:
    factor = _number(settings, "factor", 1e-6, 1e6)
    length = _number(settings, "original_max_position_embeddings", 1, 1 << 30)
    dimension = 2 * len(frequency)

    def turning(rotations: float) -> float:
        """The dimension that turns so often within the original length."""
        return dimension * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(base))

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    low, high = turning(_optional(settings, "beta_fast", 32)), turning(_optional(settings, "beta_slow", 1))
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dimension - 1)
    ramp = np.clip((np.arange(dimension // 2, dtype=np.float32) - low) / ((high - low) or 0.001), 0, 1)
    mixed = frequency / np.float32(factor) * ramp + frequency * (1 - ramp)
    weight, every = settings.get("mscale"), settings.get("mscale_all_dim")
    if settings.get("attention_factor") is not None:
        scale = _number(settings, "attention_factor", 1e-6, 1e6)
    elif weight and every:
        scale = magnitude(_number(settings, "mscale", 0, 1e3)) / magnitude(
            _number(settings, "mscale_all_dim", 0, 1e3)
        )
    else:
        scale = magnitude(1)
    return Rope(mixed.astype(np.float32), scale)


_KINDS: dict[str, Callable[[dict[str, Any], np.ndarray, float], Rope]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}


def _number(settings: dict[str, Any], name: str, least: float, most: float) -> float:
    value = settings.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise FormatError(
            f"config: the rope's {name!r} must be a number from {least:g} to {most:g}, not {value!r}"
        )
    return float(value)


def _optional(settings: dict[str, Any], name: str, default: float) -> float:
    return _number(settings, name, 1e-6, 1e6) if settings.get(name) else default
