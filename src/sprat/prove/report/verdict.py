"""The verdict: two or three sentences of plain words, every figure in them from the proof.

How far a file is from its original is said in one of six ways, by KL, and by the *upper* end of its interval,
so that little text never flatters. The bounds lie between rates that people know: on SmolLM2-135M
(WikiText-2) llama.cpp's Q8_0 has a KL of 0.0035, Q4_K_M 0.031, Q3_K_M 0.079, Q4_0 0.158, IQ2_XXS 0.457 and
IQ1_S 0.91; records/2026-11-21-quality has them on another text. A word is a reading aid; the figures count.

Perplexity is called higher or lower only where the interval of its ratio leaves 1 out. A task is called
changed where McNemar's p survives Holm's correction over all tasks at 5 %: of twenty tasks that nothing
happened to, one would fall below 0.05 by chance.
"""

from __future__ import annotations

from pathlib import PurePath

from sprat.prove.pairs import holm
from sprat.prove.report.figures import COUNT, PERCENT, Figure, Interval, Result, Shown, Style, nats

#: A sentence: words, figures that know where they come from, and intervals, which stand together.
Sentence = list["str | Shown | Interval"]

#: The least KL (nats a token, upper end of the interval) that the next word begins at, and the word.
WORDS = (
    (0.001, "Practically the original"),
    (0.01, "Very close to the original"),
    (0.05, "Close to the original"),
    (0.2, "Noticeably changed"),
    (0.5, "Much changed"),
    (float("inf"), "Badly damaged"),
)
#: Probability of calling any unchanged task changed.
TASK_LEVEL = 0.05
#: Metrics that the verdict takes its interval from, the first that there is.
_COMPARED = ("kl", "perplexity_ratio", "bits_per_byte_difference")
#: Changed tasks that the verdict names.
_NAMED = 4


def word(kl: Figure | None) -> str:
    """What a KL is called; nothing where there is none."""
    if kl is None:
        return ""
    return next(name for bound, name in WORDS if kl.ends[1] <= bound)


def headline(result: Result) -> Sentence:
    """What the file weighs and what it kept, in one sentence."""
    size, name = result.size("file.bytes"), PurePath(result.string("file.path")).name
    subject: Sentence = ["This ", size, " file"] if size else [name or "This file"]
    if smaller := times_smaller(result):
        subject += [", ", f"{smaller:.3g}", " times smaller,"]
    parts = [part for part in (_kept(result), _perplexity(result) or _bits(result)) if part]
    if not parts:
        return [*subject, " was not compared with an original."]
    joined = parts[0] if len(parts) == 1 else [*parts[0], "; ", *parts[1]]
    return [*subject, " ", *joined, "."]


def times_smaller(result: Result) -> float | None:
    """The original in bf16 over the file; None where either is not known."""
    size = result.number("file.bytes")
    original = result.number("against.bytes") or result.number("cost.original_bytes")
    return original / size if size and original else None


def _kept(result: Result) -> Sentence:
    top = result.figure("metrics.same_top", PERCENT)
    return ["keeps ", top.value, " of the original’s top tokens", *_within(top)] if top else []


def _perplexity(result: Result) -> Sentence:
    ratio = result.figure("metrics.perplexity_ratio", Style(4))
    if ratio is None:
        return []
    low, high = ratio.ends
    if ratio.interval and low <= 1 <= high:
        change = result.figure("metrics.perplexity_ratio", Style(1, " %", 100, -100))
        return ["its perplexity cannot be told from the original’s", *_within(change, " %")]
    if ratio.value.value >= 2:
        ratio = result.figure("metrics.perplexity_ratio", Style(2))
        return ["its perplexity is ", ratio.value, " times the original’s", *_within(ratio)] if ratio else []
    higher = ratio.value.value >= 1
    style = Style(1, " %", 100, -100) if higher else Style(1, " %", -100, 100)
    change = result.figure("metrics.perplexity_ratio", style)
    if change is None:
        return []
    return ["its perplexity is ", change.value, " higher" if higher else " lower", *_within(change)]


def _bits(result: Result) -> Sentence:
    """What models of different tokens can still be compared by."""
    more = result.figure("metrics.bits_per_byte_difference", Style(4))
    if more is None:
        return []
    low, high = more.ends
    if more.interval and low <= 0 <= high:
        return [
            "takes as many bits for a byte of text as the original, as far as can be told",
            *_within(more),
        ]
    if more.value.value >= 0:
        return ["takes ", more.value, " bits more for a byte of text", *_within(more)]
    fewer = result.figure("metrics.bits_per_byte_difference", Style(4, "", -1))
    return ["takes ", fewer.value, " bits fewer for a byte of text", *_within(fewer)] if fewer else []


def _within(figure: Figure | None, unit: str = "") -> Sentence:
    """` (low to high)`, or nothing where there is no interval."""
    return [" (", figure.interval, f"{unit})"] if figure and figure.interval else []


def details(result: Result) -> list[Sentence]:
    """The sentences after the headline: KL and on what, tasks, calibration."""
    return [s for s in (_divergence(result), _tasks(result), _calibration(result)) if s]


def _divergence(result: Result) -> Sentence:
    kl = result.figure("metrics.kl", nats(result.number("metrics.kl.value")))
    name = result.string("against.name") or "the original"
    tokens, contexts = result.show("settings.scored_tokens"), result.show("settings.contexts")
    where: Sentence = ["Measured"] if kl is None else [f"Its KL to {name} is ", kl.value, " nats a token"]
    if kl is not None:
        where += _within(kl)
    if tokens is None:
        return [*where, "."] if kl else []
    where += [", on " if kl else " on ", tokens, " tokens"]
    if contexts is not None:
        where += [" in ", contexts, " contexts" if contexts.value != 1 else " context"]
    if text := PurePath(result.string("text.path")).name:
        where += [f" of {text}"]
    compared = [f for name in _COMPARED if (f := result.figure(f"metrics.{name}", COUNT))]
    if any(figure.interval for figure in compared):
        return [*where, f"; intervals are {100 * level(result):g} %, over this text alone."]
    return [*where, "; no intervals: the text is too short for them." if compared else "."]


def level(result: Result) -> float:
    """The probability that the intervals are made for."""
    return next((found for name in _COMPARED if (found := result.number(f"metrics.{name}.level"))), 0.95)


def changed_tasks(result: Result) -> dict[str, bool]:
    """Path of each task that has a p value -> whether it changed (Holm's correction over all of them)."""
    tested = {
        path: p for path in result.rows("tasks") if (p := result.number(f"{path}.mcnemar_p")) is not None
    }
    corrected = holm(list(tested.values()))
    return {path: p <= TASK_LEVEL + 1e-12 for path, p in zip(tested, corrected, strict=True)}


def _tasks(result: Result) -> Sentence:
    tested = changed_tasks(result)
    if not tested:
        return []
    # The largest losses first; the table has the rest.
    changed = sorted(
        (path for path in tested if tested[path]), key=lambda p: result.number(f"{p}.difference.value") or 0
    )
    many = f"{len(tested)} task{'s' if len(tested) > 1 else ''}"
    if not changed:
        return [f"No change of accuracy could be shown on {many}."]
    found: Sentence = [f"Accuracy changed on {len(changed)} of {many}: "]
    for path in changed[:_NAMED]:
        difference = result.show(f"{path}.difference.value", Style(1, " points", 100))
        found += [result.string(f"{path}.name") or "a task", " ", difference or "", ", "]
    found[-1] = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
    return [*found, "." if len(changed) == len(tested) else "; no change could be shown on the others."]


def _calibration(result: Result) -> Sentence:
    source, overlap = result.string("calibration.source"), result.show("calibration.overlap", PERCENT)
    if not source:
        return []
    if source == "unknown":
        return ["The file does not say what it was calibrated on."]
    said = "text that the model wrote itself" if source == "self" else source
    if overlap is None:
        return [f"Calibrated on {said}; whether that holds some of this text is unknown."]
    if overlap.value == 0:
        return [f"Calibrated on {said}; none of it was found in this text."]
    shared = " of it, or of this text, is in both: the figures flatter the file."
    return [f"Calibrated on {said}; ", overlap, shared]


def plain(sentence: Sentence) -> str:
    """The sentence as text."""
    return "".join(str(part) for part in sentence)
