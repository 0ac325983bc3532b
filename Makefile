# The front door. Every target sets up what is missing and is then one `inv` or `nox` line; `make` alone lists them.
# PYTHON names the interpreter for a new environment: make ci PYTHON=/opt/python/bin/python3.12

PYTHON ?= python3.11
ENVIRONMENT := .venv
LOCK := requirements/ci.txt

.DEFAULT_GOAL := help
.PHONY: help ci test lint coverage doctor ui lock clean setup

ci: setup ## every stage on this machine, then a table of the stages
	@$(ENVIRONMENT)/bin/inv ci

test: setup ## the whole test suite, on every Python that is here
	@$(ENVIRONMENT)/bin/nox

lint: setup ## flake8, types, import rules
	@$(ENVIRONMENT)/bin/inv lint

coverage: setup ## the tests with coverage, and a floor
	@$(ENVIRONMENT)/bin/inv coverage

doctor: setup ## what would fail later, said now
	@$(ENVIRONMENT)/bin/inv doctor

ui: setup ## runs, metrics and models in the browser
	@$(ENVIRONMENT)/bin/inv ui

lock: setup ## compiles requirements/*.txt from pyproject.toml
	@$(ENVIRONMENT)/bin/nox --session lock

clean: setup ## removes test environments, caches and reports; keeps .venv and .mlops
	@$(ENVIRONMENT)/bin/nox --session clean

setup: ## .venv as the lock says; nothing to do is the usual case
	@$(ENVIRONMENT)/bin/python -I -S requirements/sync.py --check $(ENVIRONMENT) $(LOCK) 2>/dev/null || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "setup: $(PYTHON) is missing or older than Python 3.11" >&2; \
	    echo "next: install Python 3.11, or name another one: make $(or $(MAKECMDGOALS),setup) PYTHON=/path/to/python3.12" >&2; \
	    exit 4; }; \
	  $(PYTHON) requirements/sync.py $(ENVIRONMENT) $(LOCK); }

help:
	@echo "usage: make TARGET [PYTHON=python3.12]"
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' Makefile
	@echo "all tasks: $(ENVIRONMENT)/bin/inv --list"
