# make demo [RAW=DIR]    the whole path on drawn (or real) data, with figures
# make test              the whole test suite
# make check             style and types
# PYTHON names the interpreter that .venv is made with (3.11 or 3.12).

PYTHON ?= python3
BIN := .venv/bin
RAW ?=
DEMO := demo/$(if $(RAW),real,drawn)

.PHONY: demo test check clean

.venv/.installed: pyproject.toml data_prep/augment/_remap.c
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
		{ echo "$(PYTHON) is not Python 3.11 or 3.12: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: .venv/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/demo $(DEMO) $(RAW)

# The tests on a real Slurm and in a real browser need them installed, which takes root and Debian's
# packages
test: .venv/.installed
	@if ! command -v slurmd >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		slurm/dev_cluster.py install || echo "left out: the tests on a real Slurm"; fi
	@if ! command -v chromium >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium || \
		echo "left out: the tests in a real browser"; fi
	$(BIN)/python -m pytest

check: .venv/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf demo
