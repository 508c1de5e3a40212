# `make demo` and `make test` do everything on a fresh machine with Python 3.10+; VENV=/some/venv uses another environment.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# One thread per process is fastest when both cores are busy, and makes runs repeatable.
export OMP_NUM_THREADS ?= 1
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadgroup -q $(COVERAGE)

.PHONY: demo docs lint test test-more test-all format clean install install-demo install-docs install-test
.DEFAULT_GOAL := help

help:
	@echo "make demo       install, then the whole method on rendered characters (4 to 6 minutes on two cores)"
	@echo "make test       install, then lint, types, doctests and tests (under 10 minutes)"
	@echo "make test-more  install, then the slow tests (under 30 minutes)"
	@echo "make test-all   test and test-more, with coverage"
	@echo "make docs       install, then the site, into site/"
	@echo "VENV=/some/venv with any of them uses that environment"

# What an environment was installed from, and for what; unchanged means nothing to do. Who has more has enough.
WANTED = $(CURDIR) $$(cat setup.cfg pyproject.toml | cksum)
define install
	@if ! grep -qsE "^$(WANTED) ($(2))$$" $(VENV)/.lightning-mvp; then \
		set -e; \
		[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV); \
		$(BIN)/python -c 'import sys; assert sys.version_info >= (3, 10), "Python 3.10 or newer is needed"'; \
		$(BIN)/python -m pip install --disable-pip-version-check -q -e '$(1)'; \
		echo "$(WANTED) $(firstword $(subst |, ,$(2)))" >> $(VENV)/.lightning-mvp; \
	fi
endef
install-demo:
	$(call install,.,demo|test|all)
install-docs:
	$(call install,.[docs],docs|all)
install-test:
	$(call install,.[test],test|all)
install:
	$(call install,.[dev],all)

demo: install-demo
	$(BIN)/mvp-compare experiment=demo

docs: install-docs
	$(BIN)/mkdocs build

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(PYTEST) -m "not slow and not full"

test-more: install
	$(PYTEST) -m "slow and not full"

test-all: install
	$(MAKE) test COVERAGE="--cov --cov-report="
	$(MAKE) test-more COVERAGE="--cov --cov-append --cov-report=term:skip-covered"

format: install-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
