# Two commands do everything on a fresh Debian machine:
#   make demo   sets up and runs the main job: an S3 dataset, cached, mounted, trained on
#   make test   sets up and passes every check and test
# Both are quick the second time. `make help` lists the rest.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types imports unit format bench clean

help:  ## what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup:  ## Debian packages and a virtual environment, where they are missing
	@PYTHON=$(PYTHON) scripts/setup $(VENV)

demo: setup  ## the main job, end to end, on this machine
	@$(BIN)/python examples/quickstart.py

test: setup lint types imports  ## every check and every test
	@scripts/announce "tests"
	@scripts/test $(BIN)/python

lint: setup
	@scripts/announce "style: ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup
	@scripts/announce "types: mypy, strict"
	@$(BIN)/mypy

imports: setup
	@scripts/announce "who imports whom: import-linter"
	@$(BIN)/lint-imports

unit: setup  ## only the tests that need neither Ray nor sockets
	@$(BIN)/python -m pytest tests/unit

format: setup  ## rewrite the code the way `make lint` wants it
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: setup  ## measure, and write benchmarks/RESULTS.md
	@scripts/bench-packages
	@$(BIN)/python benchmarks/epoch.py
	@$(BIN)/python benchmarks/mount.py

clean:  ## remove the virtual environment and what the demo made
	rm -rf $(VENV) demo-out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
