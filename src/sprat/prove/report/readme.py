"""README.md of a proof's folder: short, readable in a terminal and on a forge."""

from __future__ import annotations

import re
from pathlib import PurePath

from sprat.prove.report.answers import tasks
from sprat.prove.report.figures import Result, Style
from sprat.prove.report.sections import metrics, spread
from sprat.prove.report.verdict import details, headline, level, plain, word

#: The author's section: the last one, so that all that follows its heading is the author's.
HEADING = "## What did not work"
_INVITATION = "Nothing noted yet. What is written here is kept when the report is written again."


def compose(result: Result, before: str = "") -> str:
    """The page; `before` is the README.md that it replaces, whose author's section is kept as it is."""
    name = escape(PurePath(result.string("file.path")).name) or "a .sprat file"
    said = " ".join(plain(sentence) for sentence in (headline(result), *details(result)))
    found = word(result.figure("metrics.kl", Style(4)))
    parts = [f"# Proof of {name}", f"{f'**{found}.** ' if found else ''}{escape(said)}"]
    if warnings := result.strings("warnings"):
        parts += ["**Warnings**", "\n".join(f"- {escape(warning)}" for warning in warnings)]
    parts += [table for table in (_metrics(result), _tasks(result)) if table]
    parts += [
        "[index.html](index.html) has the pictures, [result.json](result.json) every figure.",
        _again(result),
    ]
    return "\n\n".join([*parts, HEADING, _kept(before)]) + "\n"


def _kept(before: str) -> str:
    """What stands after the heading in the old page (the heading itself, not one quoted in a fence)."""
    lines, fence = before.splitlines(), ""
    for i, line in enumerate(lines):
        run = re.match("`{3,}", line)
        if fence:
            fence = "" if line.startswith(fence) and not line.strip("`") else fence
        elif run:
            fence = run[0]
        elif line == HEADING:
            return "\n".join(lines[i + 1 :]).strip("\n") or _INVITATION
    return _INVITATION


def _metrics(result: Result) -> str:
    rows = []
    for row in metrics(result):
        interval = str(row.figure.interval or "")
        rows.append((f"– {row.name}" if row.inner else row.name, str(row.figure.value), interval))
        if row.name.startswith("KL") and (found := spread(result)):
            label, value = (", ".join(str(item[i]) for item in found) for i in (0, 1))
            rows.append((f"– {label}", value, ""))
    return _table(("", "figure", f"{100 * level(result):g} % interval"), rows)


def _tasks(result: Result) -> str:
    rows = [
        (
            escape(task.name),
            *("" if figure is None else str(figure.value) for figure in (task.original, task.compressed)),
            ""
            if task.difference is None
            else str(task.difference.value)
            + (f" ({task.difference.interval})" if task.difference.interval else ""),
            f"{task.lost} / {task.won}" if task.lost and task.won else "",
            "" if task.p is None else str(task.p),
        )
        for task in tasks(result)
    ]
    return _table(
        ("task, accuracy %", "original", "this file", "difference", "lost / won", "McNemar p"), rows
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = [head, tuple("---" if i == 0 else "--:" for i in range(len(head))), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _again(result: Result) -> str:
    lines = ["## Run it again"]
    if command := result.string("command"):
        # A fence longer than any run of backticks in the command cannot be closed by it.
        longest = max((len(run) for run in re.findall("`+", command)), default=0)
        fence = "`" * max(3, longest + 1)
        lines.append(f"{fence}sh\n{command}\n{fence}")
    lines.append("`sprat prove --replay` on this folder runs it and compares every figure with these.")
    hashes = (("file", "file.sha256"), ("original", "against.hash"), ("text", "text.sha256"))
    found = [f"{role} {escape(digest)}" for role, path in hashes if (digest := result.string(path))]
    if found:
        lines.append("SHA-256: " + ", ".join(found))
    return "\n\n".join(lines)


def escape(text: str) -> str:
    """Text that Markdown and the HTML in it leave as it is, on one line."""
    text = re.sub(r"\s+", " ", text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~!])", r"\\\1", text)
