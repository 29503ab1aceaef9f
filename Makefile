# The whole house in three words: `make setup`, `make serve`, `make test`. Needs Python 3.11, gcc/g++, make.

PYTHON ?= $(or $(shell command -v python3.11),python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# What the compiled part and the installation depend on. Not Python files: the installation is editable.
NATIVE := pyproject.toml $(shell find src -name '*.cpp' -o -name '*.h' -o -name CMakeLists.txt)

.PHONY: setup serve test lint docs clean

setup: .venv/.installed

# The build tools live in the environment too: with pip's throw-away ones every build would start from nothing.
.venv/.made:
	$(PYTHON) -m venv .venv
	$(PIP) 'scikit-build-core>=1.0' 'nanobind>=2.9' cmake ninja
	touch $@

.venv/.installed: .venv/.made $(NATIVE)
	$(PIP) --no-build-isolation -e .
	touch $@

.venv/.tools: .venv/.made $(NATIVE)
	$(PIP) --no-build-isolation -e '.[test,lint,hub]'
	touch .venv/.installed $@

serve: setup
	$(BIN)/tokenworks serve

test: .venv/.tools
	$(BIN)/python -m pytest

lint: .venv/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Regenerates the pages that are made from the code.
docs: .venv/.tools
	$(BIN)/python docs/generate.py

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
