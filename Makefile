# `make demo` and `make test` do everything on a fresh machine with Python 3.10+; VENV=/some/venv uses another environment.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# One thread per process is fastest when both cores are busy, and makes runs repeatable.
export OMP_NUM_THREADS ?= 1

.PHONY: install demo test test-all lint format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       install, then the whole method on rendered characters (about 5 minutes on two cores)"
	@echo "make test       install, then lint, types, doctests and tests"
	@echo "make test-all   the same with the slow tests"
	@echo "VENV=/some/venv with any of them uses that environment"

# What the environment was installed from; unchanged means nothing to do.
WANTED = $(CURDIR) $$(cat setup.cfg pyproject.toml | cksum)
install:
	@if [ "$$(cat $(VENV)/.lightning-mvp 2>/dev/null)" != "$(WANTED)" ]; then \
		set -e; \
		[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV); \
		$(BIN)/python -c 'import sys; assert sys.version_info >= (3, 10), "Python 3.10 or newer is needed"'; \
		$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[dev]'; \
		echo "$(WANTED)" > $(VENV)/.lightning-mvp; \
	fi

demo: install
	$(BIN)/mvp-compare experiment=demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow" --cov --cov-report=term:skip-covered

test-all: lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup --cov --cov-report=term:skip-covered

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
