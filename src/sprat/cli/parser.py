"""A parser whose errors name the nearest match."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """argparse with sprat's errors: one line, exit status 2, the nearest flag or verb named."""

    def __init__(self, *args: object, **options: object):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(*args, **options)  # type: ignore[arg-type]

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[override]
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        if message.startswith("the following arguments are required"):
            # A misspelt flag is why another one is missing: name the misspelt one.
            flags = {flag for action in self._actions for flag in action.option_strings}
            for word in self._given:
                if word.startswith("--") and word.split("=")[0] not in flags:
                    message = f"unrecognized arguments: {word}"
                    break
        if unknown := re.fullmatch(r"unrecognized arguments: (.*)", message):
            word = unknown[1].split()[0]
            flags = [flag for action in self._actions for flag in action.option_strings]
            message = f"unknown argument {word!r}{_guess(word.split('=')[0], flags)}"
        elif choice := re.fullmatch(
            r"argument (.*): invalid choice: '([^']*)' \(choose from (.*)\)", message
        ):
            allowed = [name.strip(" '") for name in choice[3].split(",")]
            what = "verb" if choice[1] == "VERB" else choice[1]
            message = (
                f"unknown {what} {choice[2]!r}{_guess(choice[2], allowed)}: choose from {', '.join(allowed)}"
            )
        sys.stderr.write(f"sprat: error: {message}\n")
        sys.stderr.write(f"try: {self.prog} --help\n")
        raise SystemExit(2)


def _guess(word: str, allowed: list[str]) -> str:
    match = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""
