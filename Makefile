# `make` alone lists what can be made.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup run test check bench load clean

help: ## list what can be made
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' $(MAKEFILE_LIST)

$(VENV)/ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kvstore needs Python 3.11 or newer; set PYTHON=")'
	@echo "setting up $(VENV), once" >&2
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready requirements-dev.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

setup: $(VENV)/ready ## prepare .venv and start nothing

run: $(VENV)/ready ## serve http://127.0.0.1:8000
	@exec $(BIN)/kvstore

test: $(VENV)/ready-dev ## run the tests
	@$(BIN)/pytest -n 6 --dist worksteal

check: $(VENV)/ready-dev ## ruff, mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(VENV)/ready-dev ## measure beside webdis, nchan and a plain Flask app, about 20 minutes
	@$(BIN)/python bench/peers
	@$(BIN)/python bench/inside
	@$(BIN)/python bench/containers
	@$(BIN)/python bench/live
	@$(BIN)/python bench/jobs

load: ## PUT and GET 2,000 things at a server that runs; URL=http://127.0.0.1:8000
	@bench/load.sh $(URL)

clean: ## remove .venv and caches; data stays
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
