"""`search`: equations for a cap of bytes, found by training many a little and few for long. The story on one page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sprat.errors import BudgetError, RecipeError, SpratError
from sprat.golf import corpus
from sprat.golf.recipe import Recipe
from sprat.progress import Progress, silent
from sprat.search import report
from sprat.search.candidate import refuse
from sprat.search.study import RUNGS, Row, Settings, Study, key
from sprat.search.trial import Text, room
from sprat.sizes import Budget, parse_budget

#: What every candidate shares where no recipe is given.
BASE = {"vocabulary": 512, "context": 128, "batch": 8}
#: A search's time is so many whole trainings: a generation takes three, and a little for scoring.
TRAININGS = 40
#: The least processor time that a whole training may have, in seconds.
SHORTEST = 1.0


def search(
    text: Sequence[str | Path] | None,
    cap: str | Budget,
    minutes: float,
    out: str | Path,
    *,
    recipe: Recipe | None = None,
    seconds: float | None = None,
    seed: int = 0,
    validation: Sequence[str | Path] | None = None,
    progress: Progress = silent,
    watch: Callable[[Row], None] = lambda _: None,
) -> dict[str, Any]:
    """Search for `minutes` of processor time; the folder `out` then holds trials.jsonl, result.json and report files.

    text, validation: None for the recipe's own. recipe: what all candidates share (vocabulary, context, rates,
    n-grams); its shape and equation are not used, and what no candidate can have is refused (candidate.ALIEN). seconds:
    processor time of one whole training, by default a fortieth of the search. A folder that holds a search of the same
    arguments goes on, also for more minutes if `seconds` was named.

    Raises SourceError, BudgetError, RecipeError, SpratError.
    """
    folder = Path(out)
    base = recipe or Recipe.from_dict(BASE)
    refuse(base)
    size = parse_budget(cap) if isinstance(cap, str) else cap
    if size.kind != "bytes":
        raise BudgetError(f"a cap is a number of bytes, such as 250kB or 16MB, not {size}")
    if not 0 < minutes < 1e6:
        raise RecipeError(f"a search must have more than 0 minutes, not {minutes:g}")
    whole = 60 * minutes / TRAININGS if seconds is None else seconds
    if not whole >= SHORTEST:  # nan is no length either
        raise RecipeError(
            f"whole trainings of {whole:.2f} s are too short to tell equations apart: give the search more minutes "
            f"(at least {SHORTEST * TRAININGS / 60:.1f}) or --seconds"
        )
    if 60 * minutes < RUNGS[0] * whole:
        raise RecipeError(f"{minutes:g} minutes are less than one first training of {RUNGS[0] * whole:.0f} s")
    given = corpus.of(base, text, validation)
    progress("tokenizer", 0, 1)
    read = Text.of(given, base.vocabulary)
    progress("tokenizer", 1, 1)
    settings = Settings(base, room(int(size.value), read.tokenizer), whole, seed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpratError(f"cannot make the folder {folder}: {error.strerror}") from None
    identity = key(settings, given.hash + given.validation_hash)
    study = Study(settings, read, folder / "trials.jsonl", identity)
    rows = study.run(60 * minutes, progress, watch)
    return report.write(folder, settings, read.vocabulary, int(size.value), rows)
