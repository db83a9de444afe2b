# Everything a newcomer needs. Each target sets up .venv by itself (Python 3.11 or newer, pip, a package index).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread for each test process: two processes with two threads each on two cores run far slower.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4

.PHONY: demo test test-slow verify-results docs docs-serve bench bench-full lint lock clean

demo: $(VENV)/.installed  ## attack RAM-LPM and CNN baselines on real data and rank them
	$(BIN)/lpmbench run demo

test: lint  ## lint, types, import rules and the fast tests
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.installed-dev  ## what needs longer, a build, or more installed
	$(PYTEST) -m slow

verify-results: $(VENV)/.installed  ## recompute what every record in results/ claims; whatever fails must not enter
	$(BIN)/lpmbench verify results --strict --threads 1 --part 1/2 & first=$$!; \
	$(BIN)/lpmbench verify results --strict --threads 1 --part 2/2; second=$$?; \
	wait $$first && exit $$second

docs: $(VENV)/.installed-docs  ## the documentation as a site: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

docs-serve: $(VENV)/.installed-docs  ## the same at http://127.0.0.1:8000, renewed when a page changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

bench: $(VENV)/.installed-peers  ## speed beside other libraries, in under 10 minutes on 2 quiet cores
	$(BIN)/python -m benchmarks --small --out runs/benchmarks-small.json

bench-full: $(VENV)/.installed-peers  ## the same with more images and passes
	$(BIN)/python -m benchmarks --out runs/benchmarks.json

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lock: $(VENV)/.installed-dev  ## requirements/lock.txt: the versions that are installed here, which CI installs
	$(BIN)/python -m tools.lock requirements/lock.txt

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lpmbench needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $@ $(VENV)/.installed

# Constraints hold for the environments in which pip builds packages: older versions read the first, newer the second.
$(VENV)/.installed-peers: pyproject.toml benchmarks/constraints.txt | $(VENV)/bin/python
	PIP_CONSTRAINT=$(CURDIR)/benchmarks/constraints.txt PIP_BUILD_CONSTRAINT=$(CURDIR)/benchmarks/constraints.txt \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[peers]'
	touch $@ $(VENV)/.installed

clean:  ## forget the environment and everyday runs
	rm -rf $(VENV) runs site
