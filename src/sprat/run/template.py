"""A chat template applied as transformers would. It is a stranger's program: it runs in jinja2's sandbox."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from sprat.errors import SourceError

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment


def render(template: str, messages: Sequence[dict[str, str]], special: dict[str, str]) -> str:
    """The text of a conversation, up to where the answer begins; `SourceError` for whatever the template raises."""
    try:
        return (
            _environment()
            .from_string(template)
            .render(
                messages=list(messages), add_generation_prompt=True, tools=None, documents=None, **special
            )
        )
    except Exception as error:  # not TemplateError alone: 1 / 0, a missing filter, a text without an end, ...
        why = str(error) or type(error).__name__
        raise SourceError(f"the model's chat template refused this conversation: {why}") from error


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    """What templates may use: the filters, globals and tags that transformers gives them, and no more."""
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """{% generation %} … {% endgeneration %} marks an answer, for training; here it is what stands in it."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def check(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace holds no {name!r}")

    class OwnNamespace(Namespace):
        """Holds no names with which Python's own objects could be reached."""

        def __init__(self, /, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            for name in dict(*args, **kwargs):
                check(name)

        def __setitem__(self, name: str, value: Any) -> None:
            check(name)
            super().__setitem__(name, value)

    class Dictionaries:
        """What a template may do with `dict`, without the class itself."""

        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

        def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
            return dict.fromkeys(keys, value)

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    # No other of json.dumps's options: `default` and `cls` would call what they are given outside the sandbox.
    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    made.globals["dict"] = Dictionaries()
    made.globals["namespace"] = OwnNamespace
    return made
