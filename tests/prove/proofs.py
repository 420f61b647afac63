"""Proofs made up for tests of the report: figures of about the size that real ones have."""

from __future__ import annotations

import math
from typing import Any


def estimate(value: float, half: float | None = None) -> dict[str, Any]:
    """An estimate with an interval of ± `half`, or one whose ends are null."""
    ends = {"low": None, "high": None} if half is None else {"low": value - half, "high": value + half}
    return {"value": value, **ends, "level": 0.95}


def minimal() -> dict[str, Any]:
    """What the first proofs had: no parts, no tasks, no cost."""
    return {
        "schema": "sprat.proof/2",
        "file": {"path": "demo/smol.sprat", "bytes": 49_932_320, "sha256": "3f" * 32},
        "against": {"ref": "smollm2-135m", "name": "SmolLM2-135M", "bytes": 269_030_016, "hash": "a7" * 32},
        "text": {"path": "demo/held-out.txt", "bytes": 1_204_551, "sha256": "47" * 32},
        "settings": {
            "context": 512, "skip": 256, "contexts": 40, "documents": 12, "scored_tokens": 10_200,
            "scored_bytes": 49_876, "dtype": "float32", "seed": 0, "resamples": 2000, "engine": "torch",
        },
        "metrics": {
            "kl": {"value": 0.13412, "low": 0.12761, "high": 0.14163, "level": 0.95},
            "kl_median": 0.08781, "kl_p99": 0.7991, "kl_max": 8.012,
            "same_top": {"value": 0.80314, "low": 0.79304, "high": 0.81226, "level": 0.95},
            "probability_shift_rms": estimate(0.0713, 0.0041),
            "perplexity_original": {"value": 22.622, "low": 20.698, "high": 24.464, "level": 0.95},
            "perplexity_compressed": {"value": 25.660, "low": 23.471, "high": 27.850, "level": 0.95},
            "perplexity_ratio": {"value": 1.13427, "low": 1.11989, "high": 1.14823, "level": 0.95},
            "bits_per_byte_original": estimate(0.9178, 0.0259),
            "bits_per_byte_compressed": estimate(0.9549, 0.0277),
            "bits_per_byte_difference": estimate(0.0371, 0.0036),
        },
        "calibration": {"source": "self", "overlap": 0.0},
        "warnings": [],
        "versions": {"sprat": "0.1.0", "python": "3.11.7", "torch": "2.13.0+cpu"},
        "machine": {"processor": "AMD EPYC", "cores": 2, "system": "Linux x86_64"},
        "seconds": 105.2,
    }  # fmt: skip


def full() -> dict[str, Any]:
    """Every key of the contract."""
    result = minimal()
    result["file"] |= {"weights": 134_515_008, "bits_per_weight": 2.9696}
    result["warnings"] = [
        "8 of the 40 contexts come from one document: intervals lean on 12 documents",
        "LAMBADA was run on 500 of its 5,153 items",
    ]
    result["positions"] = [
        {"from": 256 + 32 * i, "to": 288 + 32 * i, "tokens": 1280 - 5 * (i == 7) * 8,
         "kl": estimate(0.15 - 0.004 * i + 0.006 * (i % 3), 0.012)} for i in range(8)
    ]  # fmt: skip
    names = ("rarest quarter", "second quarter", "third quarter", "most frequent quarter")
    result["frequencies"] = [
        {"name": name, "tokens": 2550, "kl": estimate(kl, kl / 14), "share": 0.25}
        for name, kl in zip(names, (0.1912, 0.1542, 0.1163, 0.0748), strict=True)
    ]
    result["layers"] = [
        {"name": f"layer {i}", "kl": 0.0021 + 0.004 * math.exp(-i / 2) + 0.0002 * (i % 4) + 0.00009 * i}
        for i in range(30)
    ] + [{"name": "embedding", "kl": 0.0173}]
    result["generations"] = {"prompts": _prompts(), "divergence": estimate(21.3, 6.1)}
    result["tasks"] = _tasks()
    result["cost"] = {
        "bytes": 49_932_320, "original_bytes": 269_030_016, "resident_bytes": 195_000_320, "open_seconds": 1.829,
        "prefill_tokens_per_second": 801.1, "decode_tokens_per_second": 242.2, "threads": 1,
        "energy_joules_per_token": None, "energy_note": "not measurable here (no RAPL counters)",
    }  # fmt: skip
    result["ledger"] = [
        {"kind": "feed-forward", "bytes": 30_840_299, "weights": 79_626_240, "zeros": 12_740_198},
        {"kind": "attention", "bytes": 9_607_524, "weights": 26_542_080, "zeros": 6_370_099},
        {"kind": "embedding and head", "bytes": 9_287_535, "weights": 28_311_552, "zeros": 6_794_772},
        {"kind": "tokenizer", "bytes": 153_906, "weights": 0, "zeros": 0},
        {"kind": "norms and biases", "bytes": 36_722, "weights": 35_136, "zeros": 0},
        {"kind": "header and tables", "bytes": 6_334, "weights": 0, "zeros": 0},
    ]
    result["command"] = (
        "sprat prove demo/smol.sprat --against smollm2-135m --text demo/held-out.txt --tokens 20480 --report demo/proof"
    )
    result["recipe"] = {
        "method": "waterlevel",
        "trellis": 4,
        "heal": 32,
        "level": 0.000172,
        "order": "natural",
    }
    return result


def _prompts() -> list[dict[str, Any]]:
    said = (
        ("Explain in two sentences why the sky is blue.",
         "The sky appears blue because of a phenomenon called Rayleigh scattering. Air scatters short waves most.",
         "The sky appears blue because of the way the human eye perceives the color blue. It is the color of light."),
        ("Write a function that adds.", "def add(a, b):\n    return a + b", "def add(a, b):\n    return a + b"),
        ("Name three rivers in Europe.", "1. The Danube\n2. The Rhine\n3. The Volga", "1. The Danube\n2. The Rhine"),
    )  # fmt: skip
    out = []
    for prompt, a, b in said:
        original, compressed = tokens(a), tokens(b)
        same = next(
            (i for i, (x, y) in enumerate(zip(original, compressed, strict=False)) if x != y),
            min(len(original), len(compressed)),
        )
        out.append(
            {"prompt": prompt, "original": original, "compressed": compressed, "same_tokens": same,
             "tokens": max(len(original), len(compressed))}
        )  # fmt: skip
    return out


def tokens(text: str) -> list[str]:
    """Words with the space before them, as byte-level tokenizers cut."""
    return [word if i == 0 else f" {word}" for i, word in enumerate(text.split(" "))]


def _tasks() -> list[dict[str, Any]]:
    rows = (
        ("arc_easy", 2376, 0.531, 0.498, 0.25, 152, 74, 4e-7),
        ("piqa", 1838, 0.674, 0.661, 0.5, 88, 64, 0.0631),
        ("lambada_openai", 500, 0.392, 0.331, 0.0, 49, 18, 0.0002),
        ("blimp_anaphor_gender_agreement", 1000, 0.512, 0.508, 0.5, 61, 57, 0.7823),
    )
    return [
        {
            "name": name, "items": items, "accuracy_original": estimate(a, 1.96 * math.sqrt(a * (1 - a) / items)),
            "accuracy_compressed": estimate(b, 1.96 * math.sqrt(b * (1 - b) / items)),
            "difference": estimate(b - a, 1.96 * math.sqrt(lost + won) / items),
            "flips": {"lost": lost, "won": won}, "mcnemar_p": p, "chance": chance,
        }
        for name, items, a, b, chance, lost, won, p in rows
    ]  # fmt: skip


def large() -> dict[str, Any]:
    """A large model and a long menu of tasks: 96 layers, 16 ranges of positions, 71 tasks, nine-digit counts."""
    result = full()
    result["layers"] = [{"name": f"layer {i}", "kl": 0.0004 + 0.0061 / (1 + i)} for i in range(96)]
    result["layers"] += [{"name": "embedding", "kl": 0.0042}, {"name": "head", "kl": 0.0081}]
    result["positions"] = [
        {
            "from": 8192 * i,
            "to": 8192 * (i + 1),
            "tokens": 104_857_600,
            "kl": estimate(0.0009 + 0.0002 * i, 0.0001),
        }
        for i in range(16)
    ]
    task = result["tasks"][3]
    result["tasks"] += [
        task | {"name": f"blimp_sentential_negation_npi_licensor_present_{i}"} for i in range(67)
    ]
    result["file"] |= {"bytes": 123_456_789_012, "path": f"models/{'a-rather-long-model-name-' * 4}.sprat"}
    result["against"] |= {"bytes": 810_000_000_000}
    return result


def nulls() -> dict[str, Any]:
    """Every key of the contract, and null for what may be missing; a text too short for intervals."""
    result = full()
    for name, value in result["metrics"].items():
        if isinstance(value, dict):
            result["metrics"][name] = value | {"low": None, "high": None}
    result["metrics"]["kl_p99"] = None
    result |= {
        "layers": None,
        "generations": None,
        "tasks": None,
        "command": None,
        "positions": [],
        "frequencies": [],
    }
    result["cost"] = dict.fromkeys(result["cost"]) | {"energy_note": None}
    result["calibration"] = {"source": "unknown", "overlap": None}
    return result


PEERS = [
    {"name": "llama.cpp Q8_0", "bytes": 144_800_000, "kl": 0.0035},
    {"name": "llama.cpp Q4_K_M", "bytes": 105_500_000, "kl": 0.031},
    {"name": "llama.cpp Q3_K_M", "bytes": 93_500_000, "kl": 0.079},
    {"name": "llama.cpp Q4_0", "bytes": 91_900_000, "kl": 0.158},
    {"name": "llama.cpp IQ4_NL", "bytes": 77_600_000, "kl": estimate(0.154, 0.01)},
    {"name": "llama.cpp IQ2_XXS", "bytes": 83_800_000, "kl": 0.457},
    {"name": "GPTQ 4 bits", "bytes": 84_100_000, "kl": 0.172},
    {"name": "GPTQ 3 bits", "bytes": 44_300_000, "kl": 0.71},
]
