"""The bytes of code that running a golf's file takes, beside the file: the modules of sprat that doing so loads."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from sprat.errors import SpratError

#: Open the file, predict one token, and say what was loaded for it.
_NATIVE = """
import json, sys
from pathlib import Path
from sprat.coding import container
from sprat.run.engine import open_engine
from sprat.run.tokenizer import open_tokenizer
with container.open(Path(sys.argv[1])) as artifact:
    engine, tokenizer = open_engine(artifact, threads=1), open_tokenizer(artifact)
engine.step_all([engine.session()], [tokenizer.encode("a")])
"""
_NAIVE = """
import json, sys
from pathlib import Path
import torch
from sprat.golf import int8
model, _, tokenizer = int8.unpack(Path(sys.argv[1]).read_bytes())
model(torch.tensor([tokenizer.encode("a").ids]))
"""
_TELL = """
print(json.dumps({n: f for n, m in list(sys.modules.items()) if (f := getattr(m, "__file__", None))}))
"""


@dataclass(frozen=True)
class Code:
    """nbytes of sprat's own `files`, sources and native core; others: the packages that they stand on, not counted."""

    nbytes: int
    files: int
    others: tuple[str, ...]


def code(path: Path) -> Code:
    """Of the file at `path`, by running it in a process of its own. SpratError where it cannot be run."""
    from sprat.golf import int8

    script = _NAIVE if int8.written(path) else _NATIVE
    done = subprocess.run([sys.executable, "-c", script + _TELL, str(path)], capture_output=True, text=True)
    if done.returncode:
        raise SpratError(f"{path} cannot be run: {done.stderr.strip().splitlines()[-1]}")
    loaded = {name: Path(file).resolve() for name, file in json.loads(done.stdout.splitlines()[-1]).items()}
    # By the module's name: an editable install keeps the native core apart from the sources.
    mine = {file for name, file in loaded.items() if name.partition(".")[0] == "sprat"}
    packages = {
        file.parts[file.parts.index("site-packages") + 1].removesuffix(".py")
        for file in loaded.values()
        if "site-packages" in file.parts and file not in mine
    }
    others = sorted(name for name in packages if not name.startswith("_"))
    return Code(sum(file.stat().st_size for file in mine), len(mine), tuple(others))
