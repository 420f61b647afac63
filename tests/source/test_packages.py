"""Models inside installed packages, whole and in parts."""

from __future__ import annotations

import hashlib
import re

import pytest

from sprat.errors import SourceError
from sprat.source import packages, places
from sprat.source.packages import PACKAGES, Package

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Two packages with the halves of a file, which nobody may import."""
    site = tmp_path / "site"
    for i, half in enumerate((CONTENT[:5000], CONTENT[5000:])):
        folder = site / f"half{i}"
        (folder / "data").mkdir(parents=True)
        (folder / "__init__.py").write_text("raise RuntimeError('imported')")
        (folder / "data" / "x").write_bytes(half)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("SPRAT_CACHE", str(tmp_path / "cache"))
    whole = Package(
        "halves.gguf",
        (("half0", "data/x"), ("half1", "data/x")),
        "pip install halves",
        hashlib.sha256(CONTENT).hexdigest(),
    )
    monkeypatch.setitem(PACKAGES, "halves", whole)
    return site


def refused(name, pattern):
    with pytest.raises(SourceError, match=pattern):
        places.find(name)


def test_a_file_in_one_package_is_used_where_it_lies(installed, monkeypatch):
    monkeypatch.setitem(PACKAGES, "one", Package("x.gguf", (("half0", "data/x"),), "pip install one"))
    place = places.find("ONE")
    assert (place.kind, place.path) == ("package", installed / "half0" / "data" / "x")


def test_parts_are_joined_once(installed, tmp_path, monkeypatch):
    place = places.find("halves")
    assert (place.kind, place.name) == ("package", "halves")
    assert place.path == tmp_path / "cache" / "models" / "halves.gguf"
    assert place.path.read_bytes() == CONTENT
    monkeypatch.setattr(packages.tempfile, "mkstemp", lambda **_: pytest.fail("joined again"))
    assert places.find("halves") == place
    assert [path.name for path in place.path.parent.iterdir()] == ["halves.gguf"]


def test_a_cut_file_is_joined_again(installed):
    path = places.find("halves").path
    path.write_bytes(CONTENT[:-1])
    assert places.find("halves").path.read_bytes() == CONTENT


def test_parts_of_something_else_are_refused_and_leave_nothing(installed, tmp_path):
    (installed / "half1" / "data" / "x").write_bytes(b"else")
    refused("halves", r"parts of 'halves' do not make the file .*pip install halves")
    assert not list((tmp_path / "cache" / "models").iterdir())


def test_what_is_missing_is_named_with_the_command_that_installs_it(installed, monkeypatch):
    (installed / "half1" / "data" / "x").unlink()
    refused("halves", r"the package half1 does not hold data/x: pip install halves")
    monkeypatch.setitem(
        PACKAGES, "nobody-1b", Package("x.gguf", (("no_such_module", "x.gguf"),), "pip install x")
    )
    refused("nobody-1b", r"is not installed: pip install x \(looked for no_such_module\)")


@pytest.mark.parametrize("name", PACKAGES)
def test_the_table_is_whole(name):
    package = PACKAGES[name]
    assert (
        name == name.lower() and package.file.endswith(".gguf") and package.install.startswith("pip install ")
    )
    assert len(set(package.parts)) == len(package.parts)
    if len(package.parts) > 1:
        assert package.sha256 is not None and re.fullmatch("[0-9a-f]{64}", package.sha256)
