# make demo [RAW=DIR]    the whole path on drawn (or real) data, with figures
# make test              the test suite
# make test-all          the same, and faults at random and at each instant, again and again
# make check             style and types
# PYTHON names the interpreter that .venv is made with (3.11 or later).

PYTHON ?= python3
BIN := .venv/bin
RAW ?=
DEMO := demo/$(if $(RAW),real,drawn)

PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 25

.PHONY: demo test test-all test-tools check clean

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/demo $(DEMO) $(RAW)

test: test-tools
	$(PYTEST) -m "not repeats"

test-all: test-tools
	$(PYTEST)

# The tests on a real Slurm and in a real browser need them installed, which takes root and Debian's
# packages
test-tools: .venv/.installed
	@if ! command -v slurmd >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		slurm/dev_cluster.py install || echo "left out: the tests on a real Slurm"; fi
	@if ! command -v chromium >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium || \
		echo "left out: the tests in a real browser"; fi

check: .venv/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf demo
