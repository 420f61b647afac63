"""What both models answered: greedy text side by side, and tasks."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from sprat.prove.report.figures import PERCENT, Figure, Result, Shown, Style
from sprat.prove.report.verdict import changed_tasks


@dataclass(frozen=True)
class Written:
    """One answer: what both models share, the first token that differs, and what follows it."""

    same: str
    first: str
    rest: str
    ended: bool


@dataclass(frozen=True)
class Generation:
    """One prompt, what both models wrote behind it, and how many of the first tokens are the same."""

    prompt: str
    original: Written
    compressed: Written
    same: int
    tokens: int


def generations(result: Result) -> list[Generation]:
    """Greedy answers of both models, cut at their first difference."""
    out = []
    for path in result.rows("generations.prompts"):
        a, b = result.strings(f"{path}.original"), result.strings(f"{path}.compressed")
        longest = max(len(a), len(b))
        given = result.number(f"{path}.same_tokens")
        # Tokens may differ where their texts do not (a part of a character): the contract's number decides.
        same = sum(1 for _ in itertools.takewhile(lambda p: p[0] == p[1], zip(a, b, strict=False)))
        same = same if given is None else int(min(max(given, 0), longest))
        if longest:
            prompt = result.string(f"{path}.prompt")
            out.append(
                Generation(prompt, _written(a, same, longest), _written(b, same, longest), same, longest)
            )
    return out


def _written(tokens: list[str], same: int, longest: int) -> Written:
    first = tokens[same] if same < len(tokens) else ""
    return Written(
        same="".join(tokens[:same]),
        first=_visible(first) if same < len(tokens) else "",
        rest="".join(tokens[same + 1 :]),
        ended=len(tokens) <= same < longest,
    )


def _visible(token: str) -> str:
    """A token that is only white space, or nothing, as signs that can be seen."""
    if not token:
        return "∅"
    return token if token.strip() else token.replace("\n", "↵\n").replace(" ", "␣").replace("\t", "⇥")


@dataclass(frozen=True)
class Task:
    """A row of the table of tasks. `remark`: what else a reader must know of it."""

    name: str
    items: Shown | None
    chance: Shown | None
    original: Figure | None
    compressed: Figure | None
    difference: Figure | None
    lost: Shown | None
    won: Shown | None
    p: Shown | None
    changed: bool
    remark: str


def tasks(result: Result) -> list[Task]:
    """Accuracy of both models, flips and McNemar's p."""
    changed = changed_tasks(result)
    return [
        Task(
            name=result.string(f"{path}.name"),
            items=result.show(f"{path}.items"),
            chance=result.show(f"{path}.chance", PERCENT) if result.number(f"{path}.chance") else None,
            original=result.figure(f"{path}.accuracy_original", Style(1, "", 100)),
            compressed=result.figure(f"{path}.accuracy_compressed", Style(1, "", 100)),
            difference=result.figure(f"{path}.difference", Style(1, "", 100)),
            lost=result.show(f"{path}.flips.lost"),
            won=result.show(f"{path}.flips.won"),
            p=_p(result.show(f"{path}.mcnemar_p", Style(4))),
            changed=changed.get(path, False),
            remark=_chance(result, path),
        )
        for path in result.rows("tasks")
    ]


def _p(shown: Shown | None) -> Shown | None:
    """A p value is never zero."""
    return replace(shown, text="<0.0001") if shown and shown.value < 0.0001 else shown


def _chance(result: Result, path: str) -> str:
    """Whether a model's accuracy could be guessing."""
    chance = result.number(f"{path}.chance")
    if chance is None:
        return ""
    for who, remark in (
        ("original", "the original may be guessing: says little"),
        ("compressed", "this file may be guessing"),
    ):
        low = result.number(f"{path}.accuracy_{who}.low")
        if low is not None and low <= chance:
            return remark
    return ""
