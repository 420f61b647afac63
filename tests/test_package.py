"""What `import sprat` gives and costs."""

import subprocess
import sys
from pathlib import Path

import pytest

import sprat


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_is_light():
    heavy = python("import sys, sprat; print([m for m in ('torch', 'numpy', 'rich') if m in sys.modules])")
    assert heavy.strip() == "[]"


def test_the_command_line_starts_without_torch():
    code = "import sys; from sprat.cli.main import parser; parser(); print('torch' in sys.modules)"
    assert python(code).strip() == "False"


def test_it_runs_as_a_module():
    said = subprocess.run(
        [sys.executable, "-m", "sprat", "--version"], capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == ["sprat", sprat.__version__]


def test_opening_needs_no_torch(tiny):
    code = f"import sys, sprat; a = sprat.open({str(tiny.file)!r}); a.verify(); print('torch' in sys.modules)"
    assert python(code).strip() == "False"


@pytest.mark.parametrize(("folder", "above"), [("equations", ("golf", "search")), ("golf", ("search",))])
def test_a_folder_imports_nothing_that_is_built_on_it(folder, above):
    files = [*(Path(sprat.__file__).parent / folder).rglob("*.py")]
    assert files
    for file in files:
        assert not [name for name in above if f"sprat.{name}" in file.read_text(encoding="utf-8")], file


def test_a_verb_stays_a_function_when_its_folder_is_imported():
    code = """
import sprat, sprat.fit, sprat.plan, sprat.prove.metrics, sprat.sweep
print(*(callable(verb) for verb in (sprat.fit, sprat.plan, sprat.prove, sprat.sweep)))
"""
    assert python(code).strip() == "True True True True"


@pytest.mark.parametrize("verb", ["load", "fit", "plan", "open", "prove", "export"])
def test_every_verb_is_there(verb):
    assert callable(getattr(sprat, verb))
    assert verb in dir(sprat)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'fits'"):
        _ = sprat.fits


def test_without_torch_the_install_is_named(tiny):
    code = """
import sys
sys.modules["torch"] = None  # as if it were not installed
sys.modules["transformers"] = None
from sprat.cli.main import main
print(main(["export", {file!r}, "--to", "hf", "never"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code.format(file=str(tiny.file))], capture_output=True, text=True
    )
    assert done.stdout.strip() == "2"
    assert done.stderr == "sprat: error: this needs torch: pip install 'sprat[fit]'\n"


def test_a_missing_extra_is_told_apart_from_other_failures():
    torch = sprat.missing(ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn"))
    assert str(torch) == "this needs torch: pip install 'sprat[fit]'"
    other = ModuleNotFoundError("No module named 'left_pad'", name="left_pad")
    assert sprat.missing(other) is other
