# The front door. Every target sets up what is missing and is then one `inv` or `nox` line; `make` alone lists them.
# PYTHON names the interpreter for a new environment: make ci PYTHON=/opt/python/bin/python3.12

ENVIRONMENT := .venv
LOCK := requirements/ci.txt
PYTHON ?=
PYTHONS := python3.13 python3.12 python3.11 python3
# A candidate is started before it counts: pyenv has shims for versions that are not selected, which only print an
# error, and Debian packages venv and ensurepip apart from Python.
FITS := -I -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'

# Many images set it. Without bytecode on disk each process compiles all its libraries anew: `make ci` took twice as long.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help ci test lint coverage doctor ui lock clean setup

ci: setup ## every stage on this machine, then a table of the stages
	@$(ENVIRONMENT)/bin/inv ci

test: setup ## the whole test suite, on every Python that is here
	@$(ENVIRONMENT)/bin/nox

lint: setup ## flake8, types, import rules
	@$(ENVIRONMENT)/bin/inv lint

coverage: setup ## what the last tests covered, and a floor
	@$(ENVIRONMENT)/bin/inv coverage

doctor: setup ## check settings, disk, port and libraries before anything runs
	@$(ENVIRONMENT)/bin/inv doctor

ui: setup ## runs, metrics and models in the browser
	@$(ENVIRONMENT)/bin/inv ui

lock: setup ## compiles requirements/*.txt from pyproject.toml
	@$(ENVIRONMENT)/bin/nox --session lock

clean: setup ## removes test environments, caches and reports; keeps .venv and .mlops
	@$(ENVIRONMENT)/bin/nox --session clean

setup: ## make .venv as the lock says; usually there is nothing to do
	@$(ENVIRONMENT)/bin/python -I -S requirements/sync.py --check $(ENVIRONMENT) $(LOCK) 2>/dev/null || { \
	  made_with=$$($(ENVIRONMENT)/bin/python -I -S -c 'import sys; print(sys._base_executable)' 2>/dev/null); \
	  for python in $(or $(PYTHON),$$made_with $(PYTHONS)); do \
	    "$$python" $(FITS) 2>/dev/null && exec "$$python" requirements/sync.py $(ENVIRONMENT) $(LOCK); \
	  done; \
	  echo "setup: $(or $(PYTHON),each of $(PYTHONS)) is missing, or is not Python 3.11, 3.12 or 3.13 with venv" >&2; \
	  echo "next: install one: apt-get install python3 python3-venv · brew install python@3.13 · uv python install 3.13" >&2; \
	  echo "      · pyenv install 3.13 && pyenv local 3.13; or name one: make $(or $(MAKECMDGOALS),setup) PYTHON=/path/to/python3.13" >&2; \
	  exit 4; }

help:
	@echo "usage: make TARGET [PYTHON=python3.13]"
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' Makefile
	@echo "all tasks: $(ENVIRONMENT)/bin/inv --list"
