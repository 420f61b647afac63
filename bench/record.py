"""A record on disk: a JSON that gains a row the moment it is measured, so that a run can be resumed."""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import json
import subprocess
from pathlib import Path
from typing import Any

from sprat.errors import SpratError

SCHEMA = "sprat.quality/1"


def command_line(module: str, name: str, description: str | None, examples: str) -> argparse.ArgumentParser:
    """The command line of `python -m bench.MODULE`, whose record is records/TODAY-NAME unless --record says another."""
    made = argparse.ArgumentParser(
        prog=f"python -m bench.{module}",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Path("records") / f"{datetime.date.today().isoformat()}-{name}"
    made.add_argument(
        "--record", type=Path, default=default, help="rows that it has are kept (default %(default)s)"
    )
    return made


class Record:
    """result.json of a folder in records/."""

    def __init__(self, folder: Path, settings: dict[str, Any], schema: str = SCHEMA):
        """Open or begin. Raises SpratError when the folder's rows were measured under other settings."""
        self.path = folder / "result.json"
        self.data: dict[str, Any] = {"schema": schema, "settings": settings, "commands": [], "rows": {}}
        if self.path.exists():
            self.data = json.loads(self.path.read_text(encoding="utf-8"))
            if self.data.get("schema") != schema:
                raise SpratError(f"{self.path} has schema {self.data.get('schema')!r}, not {schema!r}")
            old = self.data["settings"]
            if other := [k for k in settings | old if old.get(k) != settings.get(k)]:
                k = other[0]
                raise SpratError(
                    f"{self.path} was measured with {k} = {old.get(k)!r}, now it is {settings.get(k)!r}: "
                    "rows would not compare; give another --record"
                )

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        return self.data["rows"]

    def forget(self, patterns: str) -> None:
        """Rows of these names, patterns by commas, are to be measured again."""
        for name in [
            name for name in self.rows if any(fnmatch.fnmatch(name, p) for p in patterns.split(","))
        ]:
            del self.rows[name]

    def add(self, name: str, row: dict[str, Any]) -> None:
        self.rows[name] = row
        self.save()

    def begin(self, command: str, versions: dict[str, str], machine: dict[str, Any]) -> None:
        """Note a run: what was called, with which code, on what."""
        run = {"command": command, "commit": commit(), "versions": versions, "machine": machine}
        if run not in self.data["commands"]:
            self.data["commands"].append(run)
        self.save()

    def save(self) -> None:
        save_json(self.path, self.data)


def save_json(path: Path, data: dict[str, Any]) -> None:
    """Write atomically, making the folder; NaN and infinity are refused."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
    part.replace(path)


def commit() -> str:
    """The commit of the checkout, "+" behind it where src or csrc differ from it; "" where there is none."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--", "src", "csrc") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*arguments: str) -> str:
    root = Path(__file__).parent
    return subprocess.run(
        ["git", *arguments], cwd=root, check=True, capture_output=True, text=True
    ).stdout.strip()
