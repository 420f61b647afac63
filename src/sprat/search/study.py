"""The search: generations of candidates, proposed, ranked by a guess, trained in rungs; every trial a line of a file.

A generation proposes POOL times as many candidates as it trains: at first at random, later half of them changed from
the best so far and a quarter crossed. A guess that was learned from all trials (predictor.py) ranks them. SIZE of them
are trained for a ninth of a whole training, the best third of those for a third, the best of those whole (successive
halving: Jamieson & Talwalkar, arXiv 1502.07943); each time from the start, so that every score is that of a complete
schedule of that length. Of all candidates with as many bytes the one with the fewest bits a byte after the same
processor time wins.

Each generation depends on the rows before it and on the seed alone: what is found in the file is not trained again, and
so a search that was stopped goes on as it would have gone on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from sprat.errors import BudgetError, SpratError
from sprat.folders import write_whole
from sprat.golf.recipe import Recipe
from sprat.progress import Progress, silent
from sprat.search import proposals
from sprat.search.candidate import Candidate, Network, network
from sprat.search.predictor import LEAST, Ridge, features, rank_correlation
from sprat.search.trial import Outcome, Text, trial

SIZE, POOL, KEPT = 9, 5, 3
#: Proposals that a generation draws, at most, until its pool is full.
TRIES = 100 * POOL * SIZE
#: Shares of a whole training, rung by rung.
RUNGS = (1 / 9, 1 / 3, 1.0)
#: The best of each rung that proposals start from.
PARENTS = 6
#: Of the trained candidates so many are taken without asking the guess.
BLIND = 2

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What a search depends on. room: bytes for the numbers; seconds: processor time of a whole training."""

    base: Recipe
    room: int
    seconds: float
    seed: int


def key(settings: Settings, text: str) -> dict[str, Any]:
    """What a search in a folder must share with the one that goes on there; text: its hash."""
    return {
        "recipe": settings.base.to_dict(),
        "room": settings.room,
        "seconds": settings.seconds,
        "seed": settings.seed,
        "text": text,
    }


class Study:
    """The trials of one search, and the file that keeps them."""

    def __init__(self, settings: Settings, text: Text, path: Path, identity: dict[str, Any]):
        """path: JSON lines, the first `identity`. SpratError where it belongs to another search."""
        self.settings, self.text, self.path = settings, text, path
        self.rows: list[Row] = []
        self._known: dict[tuple[int, int, str], Row] = {}
        if not path.exists():
            path.write_text(json.dumps(identity) + "\n", encoding="utf-8")
            return
        lines = path.read_text(encoding="utf-8").splitlines()
        head = _parsed(lines[0]) if lines else None
        if head != identity:
            names = [
                name for name in identity if not isinstance(head, dict) or head.get(name) != identity[name]
            ]
            raise SpratError(
                f"{path} is of another search: its {', '.join(names)} differ; name another folder, or give the same "
                "arguments to go on"
            )
        for row in map(_parsed, lines[1:]):
            if row is not None:
                self._keep(row)
        if len(self.rows) < len(lines) - 1:  # the last line of a search that was killed may be cut
            write_whole(path, "".join(f"{json.dumps(x)}\n" for x in (identity, *self.rows)))

    def run(
        self, seconds: float, progress: Progress = silent, watch: Callable[[Row], None] = lambda _: None
    ) -> list[Row]:
        """Trials until about `seconds` of processor time are spent, those in the file included."""
        generation = 0
        while self._generation(generation, seconds, progress, watch):
            generation += 1
        return self.rows

    @property
    def spent(self) -> float:
        return sum(row["processor"] for row in self.rows)

    def _generation(
        self, number: int, seconds: float, progress: Progress, watch: Callable[[Row], None]
    ) -> bool:
        """False where the time is over."""
        before = [row for row in self.rows if row["generation"] < number]
        chosen = self._proposed(number, before)
        if not chosen:
            raise BudgetError(
                f"of {TRIES:,} proposals none fits {self.settings.room:,} bytes of numbers: raise the cap, or lower "
                "the recipe's vocabulary or ngrams"
            )
        for rung, share in enumerate(RUNGS):
            finished: list[tuple[float, int]] = []
            for place, (candidate, net, guess) in enumerate(chosen):
                name = json.dumps(candidate.to_dict())
                row = self._known.get((number, rung, name))
                if row is None:
                    if self.spent + share * self.settings.seconds > seconds:
                        return False
                    row = self._trained(number, rung, candidate, net, guess)
                    watch(row)
                finished.append((row["bits_per_byte"], place))
                progress(
                    f"searching, generation {number + 1}, rung {rung + 1}", min(self.spent, seconds), seconds
                )
            chosen = [chosen[place] for _, place in sorted(finished)[: max(1, len(chosen) // KEPT)]]
        return True

    def _proposed(self, number: int, before: list[Row]) -> list[tuple[Candidate, Network, float | None]]:
        """The candidates of a generation with their networks and what the guess says of them."""
        random = np.random.default_rng([self.settings.seed, number])
        parents = _parents(before)
        seen = {json.dumps(row["candidate"]) for row in before}
        pool: list[tuple[Candidate, Network]] = []
        for _ in range(TRIES):
            candidate = _proposal(random, parents)
            name = json.dumps(candidate.to_dict())
            if name in seen:
                continue
            seen.add(name)
            if net := network(candidate, self.settings.base, self.text.vocabulary, self.settings.room):
                pool.append((candidate, net))
            if len(pool) == POOL * SIZE:
                break
        guess = self._guess(before)
        if guess is None:
            return [(c, n, None) for c, n in pool[:SIZE]]
        ranked = sorted(((guess(features(c, n)), i) for i, (c, n) in enumerate(pool)))
        taken = ranked[: SIZE - BLIND]
        taken += [ranked[i] for i in random.permutation(np.arange(SIZE - BLIND, len(ranked)))[:BLIND]]
        return [(*pool[i], value) for value, i in taken]

    def _guess(self, before: list[Row]) -> Ridge | None:
        rows = [row for row in before if row["rung"] == 0 and not row["diverged"]]
        if len(rows) < LEAST:
            return None
        x = []
        for row in rows:
            candidate = Candidate.from_dict(row["candidate"])
            net = network(candidate, self.settings.base, self.text.vocabulary, self.settings.room)
            assert net is not None  # it was trained
            x.append(features(candidate, net))
        return Ridge(x, [row["bits_per_byte"] for row in rows])

    def _trained(
        self, number: int, rung: int, candidate: Candidate, net: Network, guess: float | None
    ) -> Row:
        started, share = time.process_time(), RUNGS[rung]
        seconds = share * self.settings.seconds
        found: Outcome = trial(net, self.text, self.settings.room, seconds, self.settings.seed)
        row = {
            "generation": number,
            "rung": rung,
            "candidate": candidate.to_dict(),
            "bits_per_byte": found.bits_per_byte,
            "guess": guess,
            "diverged": found.diverged,
            "tokens": found.tokens,
            "numbers": net.numbers,
            "flops": net.flops,
            "width": net.recipe.width,
            "seconds": found.seconds,
            "processor": time.process_time() - started,
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._keep(row)
        return row

    def _keep(self, row: Row) -> None:
        self.rows.append(row)
        self._known[row["generation"], row["rung"], json.dumps(row["candidate"])] = row


def finished(rows: list[Row]) -> list[Row]:
    """Those of the highest rung that was reached, the best first."""
    top = max((row["rung"] for row in rows), default=0)
    return sorted((row for row in rows if row["rung"] == top), key=lambda row: row["bits_per_byte"])


def front(rows: list[Row]) -> list[Row]:
    """Those that no other beats in bits a byte with as few operations a token, the cheapest first."""
    kept: list[Row] = []
    for row in sorted(rows, key=lambda row: (row["flops"], row["bits_per_byte"])):
        if not kept or row["bits_per_byte"] < kept[-1]["bits_per_byte"]:
            kept.append(row)
    return kept


def guessed(rows: list[Row]) -> float | None:
    """Rank correlation between what was guessed before a first training and what it scored; None without guesses."""
    asked = [r for r in rows if r["rung"] == 0 and r["guess"] is not None and not r["diverged"]]
    pairs = [(r["guess"], r["bits_per_byte"]) for r in asked]
    return rank_correlation(*zip(*pairs, strict=True)) if len(pairs) > 2 else None


def _parents(rows: list[Row]) -> list[Candidate]:
    best: dict[str, Row] = {}
    for rung in range(len(RUNGS)):
        own = sorted((r for r in rows if r["rung"] == rung), key=lambda r: r["bits_per_byte"])[:PARENTS]
        best |= {json.dumps(row["candidate"]): row for row in own}
    return [Candidate.from_dict(row["candidate"]) for row in best.values()]


def _proposal(random: Generator, parents: list[Candidate]) -> Candidate:
    kind = random.random()
    if not parents or kind < 0.25:
        return proposals.drawn(random)
    first, second = (parents[int(random.integers(len(parents)))] for _ in range(2))
    return proposals.changed(random, first) if kind < 0.75 else proposals.crossed(random, first, second)


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
