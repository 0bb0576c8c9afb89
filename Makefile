# Needs Python 3.11 or newer and nothing else. Every target sets up what it needs first; see scripts/install.py.

# The first on the PATH that is new enough, or the one that .venv was made with. Or: make PYTHON=/path/to/python
PYTHON ?= $(shell for each in python3 python3.14 python3.13 python3.12 python3.11 .venv/bin/python; do \
	"$$each" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$each" && break; done)
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install run lab test test-faults notebooks bench bench-growth lint

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: ## set everything up in .venv: packages, jars, the page (once; nothing is installed elsewhere)
	@test -n "$(PYTHON)" || { echo "cannot install: no Python 3.11 or newer on the PATH; install one, or say: make PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" scripts/install.py

run: install ## feed, Kafka, Spark, PostgreSQL and the live page, until Ctrl-C
	@$(BIN)/stocks run

lab: install ## JupyterLab with the notebooks
	@$(BIN)/jupyter lab notebooks/00_start_here.ipynb

test: install ## all tests, on real services
	@$(BIN)/pytest

test-faults: install ## every fault as often as it takes to believe it, hours; SOAK=5 for a soak of five minutes instead of 30
	@$(BIN)/pytest tests/faults --repeats full --soak-minutes $(or $(SOAK),30)

notebooks: install ## run the notebooks in order and record what they show
	@$(BIN)/python scripts/run_notebooks.py

bench: install ## measure what the pipeline takes, and write benchmarks/results.md
	@$(BIN)/python -m benchmarks

bench-growth: install ## measure how cost grows, and write benchmarks/growth.md
	@$(BIN)/python -m benchmarks.growth

lint: install ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
