"""index.html: what each section shows, as plain values for the templates."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import PurePath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sprat.prove.report import answers, charts, sections
from sprat.prove.report.figures import Result, Style
from sprat.prove.report.verdict import TASK_LEVEL, WORDS, details, headline, level, plain, word


@cache
def _templates() -> Environment:
    """Strings of the JSON are data to the templates, which escape them; no value is ever markup."""
    return Environment(
        loader=PackageLoader("sprat.prove.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def found(result: Result) -> list[dict[str, Any]]:
    """The peers that the proof holds."""
    return [result.at(path) for path in result.rows("peers")]


def render(result: Result, peers: Sequence[dict[str, Any]]) -> str:
    """The page of `result`, with `peers` drawn beside it where there are any."""
    sentence = headline(result)
    return (
        _templates()
        .get_template("index.html")
        .render(
            name=PurePath(result.string("file.path")).name or "a .sprat file",
            headline=sentence,
            summary=plain(sentence),
            details=details(result),
            word=word(result.figure("metrics.kl", Style(4))),
            warnings=result.strings("warnings"),
            scale=sections.to_scale(result),
            metrics=sections.metrics(result),
            spread=sections.spread(result),
            plane=charts.plane(result, peers),
            origins=_origins(peers),
            height=charts.HEIGHT,
            positions=sections.positions(result),
            frequencies=sections.frequencies(result),
            layers=charts.layers(result),
            generations=answers.generations(result),
            divergence=result.figure("generations.divergence", Style(1)),
            tasks=answers.tasks(result),
            task_level=TASK_LEVEL,
            ledger=sections.ledger(result),
            cost=sections.cost(result),
            energy_note=""
            if result.number("cost.energy_joules_per_token")
            else result.string("cost.energy_note"),
            identity=sections.identity(result),
            settings=sections.settings(result),
            command=result.string("command"),
            groups=[(title, result.pairs(path)) for title, path in _GROUPS if result.pairs(path)],
            level=level(result),
            words=WORDS,
            schema=result.string("schema"),
        )
    )


def _origins(peers: Sequence[dict[str, Any]]) -> list[tuple[str, int | None]]:
    """(record, contexts that its KL is from) of each record that peers come from, in order."""
    named = {
        record: contexts if isinstance(contexts := peer.get("contexts"), int) else None
        for peer in peers
        if isinstance(record := peer.get("record"), str) and record
    }
    return list(named.items())


_GROUPS = (("Recipe", "recipe"), ("Versions", "versions"), ("Machine", "machine"))
