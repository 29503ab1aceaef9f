# The whole house in three words: `make setup`, `make serve`, `make test`. Needs Python 3.11, gcc/g++, make.

PYTHON ?= python3.11
BIN := .venv/bin
SOURCES := $(shell find src -name '*.py' -o -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name CMakeLists.txt)
# What the compiled part and the installation depend on. Python files are not here: the installation is editable.
NATIVE := $(filter-out %.py,$(SOURCES)) pyproject.toml

.PHONY: setup serve test lint docs clean

setup: .venv/.installed

.venv/.made:
	$(PYTHON) -m venv .venv
	touch $@

.venv/.installed: .venv/.made $(NATIVE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/.tools: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,lint,hub]'
	touch $@

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
