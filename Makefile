# Everything a newcomer needs. Each target sets up .venv by itself (Python 3.11 or newer, pip, a package index).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread for each test process: two processes with two threads each on two cores run far slower.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4

.PHONY: demo test test-slow lint clean

demo: $(VENV)/.installed  ## attack RAM-LPM and CNN baselines on real data and rank them
	$(BIN)/lpmbench run demo

test: lint  ## lint, types, import rules and the fast tests
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.installed-dev  ## what needs longer, a build, or more installed
	$(PYTEST) -m slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lpmbench needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ $(VENV)/.installed

clean:  ## forget the environment and everyday runs
	rm -rf $(VENV) runs
