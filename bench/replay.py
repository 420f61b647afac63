"""Every proof in records/ measured again: does it hold?

A proof names its model, its file, its texts and tasks. What is no package and no hub's is looked for in the folder
`--files` by the path that the record has. Records of other kinds are named with the commands that measure them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from sprat.cli.terminal import bars
from sprat.errors import SourceError, SpratError
from sprat.folders import write_whole
from sprat.progress import Progress
from sprat.prove.proof import RESULT, SCHEMA, original
from sprat.prove.record import load
from sprat.prove.replay import replay
from sprat.source.load import Source

#: (reference, type) -> the model: proofs of one model load it once
Models = dict[tuple[str, str], Source]

EXAMPLES = """\
examples:
  python -m bench.replay --files ~/proof-files                     every proof in records/
  python -m bench.replay records/X/50MB --files ~/proof-files      one
  python -m bench.replay --files ~/proof-files --fresh             the original is asked again too

Exit status: 0 where every proof holds, 1 where a figure of one differs, 2 where one could not be measured.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.replay",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("records", nargs="*", type=Path, default=[Path("records")], help="folders (default %(default)s)")
    add("--files", type=Path, default=Path(), help="where the records' files, texts and tasks lie")
    add("--fresh", action="store_true", help="believe nothing that the cache holds of the original")
    add("--write", action="store_true", help="leave replay.json in the folder of each proof")
    options = parser.parse_args(arguments)
    if not options.files.is_dir():
        parser.error(f"there is no folder {options.files}")
    proofs, others = find(options.records)
    with fresh_cache() if options.fresh else contextlib.nullcontext(), bars() as progress:
        models: Models = {}
        worst = max(
            [one(folder, options.files, models, options.write, progress) for folder in proofs], default=0
        )
    for folder, said in others:
        print(f"{folder}: no proof. {said}")
    return worst


def find(places: Sequence[Path]) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Folders with a proof, and those of other records with what measures them again."""
    found = (path.parent.resolve() for place in places for path in sorted(place.rglob("*.json")))
    folders = list(dict.fromkeys(found))
    proofs, others = [], []
    for folder in folders:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if json.loads((folder / RESULT).read_text("utf-8"))["schema"] == SCHEMA:
                proofs.append(folder)
                continue
        try:
            load(folder)
        except SpratError as error:
            others.append((folder, str(error)))
    return proofs, others


def one(folder: Path, files: Path, models: Models, write: bool, progress: Progress) -> int:
    """Replay the proof in `folder` and say what came of it; the exit status that it asks for."""
    try:
        with contextlib.chdir(files):  # the record's paths are those of the folder that it was made in
            said = load(folder)
            place = said["against"]["ref"], said["settings"]["dtype"]
            with contextlib.suppress(SourceError):  # which replay says better
                models[place] = models.get(place) or original(*place)
            again = replay(folder, against=models.get(place), progress=progress)
    except SpratError as error:
        print(f"{folder}: could not be measured: {error}")
        return 2
    another = "" if again.same_file else ", of another file"
    print(f"{folder}: {'holds' if again.holds else 'DIFFERS'}. {again.summary()}{another}", flush=True)
    for row in again.rows:
        if row.verdict in ("different", "missing"):
            print(f"  {row.name}: {row.then:.6g} then, {'not measured' if row.now is None else row.now} now")
    if write:
        write_whole(folder / "replay.json", json.dumps(again.to_json(), indent=1) + "\n")
    return 0 if again.holds else 1


@contextlib.contextmanager
def fresh_cache() -> Iterator[None]:
    """An empty cache folder for as long as this lasts: five proofs of one model still run it once."""
    before = os.environ.get("SPRAT_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SPRAT_CACHE"] = folder
        try:
            yield
        finally:
            os.environ.pop("SPRAT_CACHE")
            if before is not None:
                os.environ["SPRAT_CACHE"] = before


if __name__ == "__main__":
    sys.exit(main())
