"""All golf results under a folder, those that are comparable in one table: the same cap, length, what it is counted by,
and held-out text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from sprat.errors import ProofError
from sprat.folders import write_whole
from sprat.golf.result import counted_by, read
from sprat.prove.chart import COLOURS, Chart, Series
from sprat.sizes import format_bytes

COLUMNS = (
    "",
    "result",
    "seeds",
    "bytes",
    "weights",
    "tokens",
    "unrounded",
    "bits a byte",
    "machine",
    "runs in",
)
#: Those that fit a terminal of 80 columns.
BRIEF = ("result", "seeds", "bytes", "tokens", "bits a byte", "runs in")
_STYLE = """body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; color: #111 }
table { border-collapse: collapse } td, th { padding: .2em .8em; border-bottom: 1px solid #ddd; text-align: right }
td:nth-child(2), th:nth-child(2), td:nth-last-child(-n+2), th:nth-last-child(-n+2) { text-align: left }"""


@dataclass(frozen=True)
class Entry:
    """A golf's JSON, and where it lies below the folder."""

    name: str
    result: dict[str, Any]

    @property
    def scores(self) -> list[float]:
        """Bits per byte of its seeds."""
        return [run["bits_per_byte"] for run in self.result["runs"]]

    @property
    def nbytes(self) -> int:
        """Of its largest file."""
        return max(run["bytes"] for run in self.result["runs"])


@dataclass(frozen=True)
class Board:
    """Results that are comparable, best first."""

    title: str
    entries: tuple[Entry, ...]

    def rows(self) -> list[tuple[str, ...]]:
        """A row for COLUMNS of each entry."""
        out = []
        for place, entry in enumerate(self.entries):
            runs, result = entry.result["runs"], entry.result
            before = [run["bits_per_byte_before"] for run in runs]
            gpu = result.get("device", "cpu")
            machine = (
                f"{result['machine']['processor']}, {result['threads']} thread{'s'[: result['threads'] > 1]}"
                if gpu == "cpu"
                else gpu
            )
            out.append(
                (
                    f"{place + 1}",
                    entry.name,
                    f"{len(runs)}",
                    f"{entry.nbytes:,}",
                    f"{runs[0]['parameters']:,}",
                    f"{fmean(run['tokens'] for run in runs):,.0f}",
                    f"{fmean(before):.4f}",
                    spread(entry.scores),
                    machine,
                    runs[0]["engine"],
                )
            )
        return out

    def brief(self) -> list[tuple[str, ...]]:
        """A row for BRIEF of each entry, named without the folder that all lie in."""
        folders = {str(Path(entry.name).parent) for entry in self.entries}
        rows = []
        for row in self.rows():
            cells = dict(zip(COLUMNS, row, strict=True))
            if len(folders) == 1:
                cells["result"] = Path(cells["result"]).name
            rows.append(tuple(cells[name] for name in BRIEF))
        return rows


def gather(folder: Path) -> list[Board]:
    """A board for each cap, length, clock or pace, and held-out text, the smallest cap first. ProofError where there is
    no result."""
    if not folder.is_dir():
        raise ProofError(f"there is no folder {folder}")
    groups: dict[tuple[Any, ...], list[Entry]] = {}
    for path in sorted(folder.rglob("*.json")):
        try:
            result = read(path)
        except ProofError:
            continue  # another JSON
        length, held = result["length"], result["validation"]
        key = (
            result["cap"],
            length["kind"],
            length["amount"],
            counted_by(result),
            held["documents"],
            held["bytes"],
            held["hash"],
        )
        groups.setdefault(key, []).append(Entry(str(path.relative_to(folder).with_suffix("")), result))
    if not groups:
        raise ProofError(
            f"there is no result of a golf in {folder}: `sprat golf train` writes them beside its files"
        )
    return [
        Board(_title(*key[:6]), tuple(sorted(groups[key], key=lambda entry: fmean(entry.scores))))
        for key in sorted(groups)
    ]


def length_words(kind: str, amount: float) -> str:
    """A length in words: 2,000,000 tokens, 5 minutes, 3 processor minutes."""
    if kind == "tokens":
        return f"{amount:,.0f} tokens"
    unit = kind.replace("seconds", "minute")
    return f"{amount / 60:g} {unit}{'s'[: amount != 60]}"


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    return f"{fmean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def picture(boards: Sequence[Board]) -> Chart:
    """Bits a byte against bytes, a colour a board; its best and its last are named."""
    series = [
        Series(
            board.title,
            [(entry.nbytes / 1000, fmean(entry.scores)) for entry in board.entries],
            COLOURS[place % len(COLOURS)],
            line="",
            intervals=[(min(e.scores), max(e.scores)) if len(e.scores) > 1 else None for e in board.entries],
            labels=[
                Path(entry.name).name if entry in (board.entries[0], board.entries[-1]) else ""
                for entry in board.entries
            ],
        )
        for place, board in enumerate(boards)
    ]
    return Chart(
        "Bits a byte against bytes",
        "a point a recipe: the mean of its seeds, and from the best of them to the worst",
        "whole file, kB",
        "bits a byte of held-out text",
        series,
        x_log=True,
        y_log=False,
    )


def write(boards: Sequence[Board], out: Path) -> None:
    """A page with tables and picture: .html, which holds the picture, or .md, with an .svg beside it."""
    if out.suffix == ".html":
        tables = "".join(f"<h2>{escape(board.title)}</h2>{_html(board)}" for board in boards)
        head = f"<!doctype html><meta charset='utf-8'><title>Golf</title><style>{_STYLE}</style>"
        write_whole(out, f"{head}<h1>Golf</h1>\n{picture(boards).svg()}{tables}\n")
    elif out.suffix == ".md":
        image = out.with_suffix(".svg")
        write_whole(image, picture(boards).svg())
        lines = ["# Golf", f"![bits a byte against bytes]({image.name})"]
        for board in boards:
            rows = [COLUMNS, ["---"] * len(COLUMNS), *board.rows()]
            table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
            lines += [f"## {board.title}", table]
        write_whole(out, "\n\n".join(lines) + "\n")
    else:
        raise ProofError(f"a leaderboard is a page, .html or .md, not {out.name}")


def _html(board: Board) -> str:
    rows = [f"<tr>{''.join(f'<td>{escape(cell)}' for cell in row)}" for row in board.rows()]
    return f"<table><tr>{''.join(f'<th>{name}' for name in COLUMNS)}{''.join(rows)}</table>\n"


def _title(cap: int, kind: str, amount: float, counted: str, documents: int, nbytes: int) -> str:
    scored = f"scored on {documents} documents ({format_bytes(nbytes)})"
    paced = " counted by a pace" if counted == "a pace" else ""
    return f"{format_bytes(cap)}, {length_words(kind, amount)}{paced}, {scored}"
