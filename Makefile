# `make` alone lists what can be made.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
JOBS ?= 5 # test processes: more than there are cores, since tests wait a lot
PYTEST := pytest -n $(JOBS) --dist worksteal # who has nothing left takes over what others have not begun
UV := uv>=0.13,<0.14 # another version may write the lock files in another form
LOCK = UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	pyproject.toml --extra server --extra embedded --extra jwks $(ARGS)

unexport PYTHONDONTWRITEBYTECODE # each test process and each command that a test starts would compile everything again

.DEFAULT_GOAL := help
.PHONY: help setup run chat game adder test test-all draws test-lowest check fmt docs lock bench faults load clean

help: ## list what can be made
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

$(VENV)/ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kvstore needs Python 3.11 or newer; set PYTHON=")'
	@echo "setting up $(VENV), once" >&2
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -r requirements.txt
	@$(PIP) --no-deps --editable .
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready requirements-dev.txt
	@$(PIP) -r requirements-dev.txt
	@touch $@

setup: $(VENV)/ready ## prepare .venv and start nothing

run: $(VENV)/ready ## serve http://127.0.0.1:8000
	@exec $(BIN)/kvstore

# The examples. Each has its store in a data/ of its own, unless REDIS_URL names another. What they need is pinned for the tests.

chat: $(VENV)/ready-dev ## the example of a chat on http://127.0.0.1:5000; FLASK_RUN_PORT for another port
	@echo "chat: log in as Pablo, Joe, Mary or Alex with password123, or as somebody new" >&2
	@cd examples/chat && exec ../../$(BIN)/flask --app app run

game: $(VENV)/ready-dev ## the example of a game on http://127.0.0.1:5001
	@cd examples/game && exec ../../$(BIN)/uvicorn --port 5001 --no-access-log --timeout-graceful-shutdown 1 app:app

adder: $(VENV)/ready ## the example of a worker that adds, on http://127.0.0.1:5000/add?a=1&b=2
	@echo "adder: ask /add?a=1&b=2, then /add-result in the same browser" >&2
	@cd examples/adder && { ../../$(BIN)/flask --app app kvstore worker & worker=$$!; \
		trap "kill $$worker" EXIT; ../../$(BIN)/flask --app app run; }

test: $(VENV)/ready-dev ## run the tests, in about a minute; ARGS="-k name" for some of them
	@$(BIN)/$(PYTEST) -m "not slow" $(ARGS)

test-all: $(VENV)/ready-dev ## run all tests, the slow ones included
	@$(BIN)/$(PYTEST) -m "not alone" $(ARGS)
	@$(BIN)/pytest -m alone $(ARGS) || test $$? = 5 # no test of ARGS is

draws: $(VENV)/ready-dev ## hold 100,000 random queries against a second reading, and 100,000 requests against the express lane
	@KVSTORE_DRAWS=100000 $(BIN)/$(PYTEST) tests/http/test_query_draws.py tests/serving/test_express.py $(ARGS)

test-lowest: $(VENV)/ready-dev ## run the tests with the lowest versions that pyproject.toml allows
	@$(PIP) '$(UV)'
	@$(BIN)/uv venv --quiet --clear build/lowest
	@$(BIN)/uv pip install --quiet --python build/lowest --resolution lowest-direct --editable '.[server,embedded,jwks]'
	@$(BIN)/uv pip install --quiet --python build/lowest --group test
	@build/lowest/bin/$(PYTEST) -m "not slow" $(ARGS)

check: $(VENV)/ready-dev ## ruff, mypy, and whether the lock files fit pyproject.toml
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/pytest tests/project/test_requirements.py

fmt: $(VENV)/ready-dev ## format the code, and fix what ruff can fix
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: $(VENV)/ready-dev ## build the documentation into site/
	@$(BIN)/mkdocs build --strict

lock: $(VENV)/ready-dev ## write requirements*.txt from pyproject.toml; ARGS=--upgrade for the newest versions
	@$(PIP) '$(UV)'
	@$(LOCK) --output-file requirements.txt
	@$(LOCK) --group dev --constraint requirements.txt --output-file requirements-dev.txt

bench: $(VENV)/ready-dev ## measure beside webdis, nchan and a plain Flask app, about 20 minutes
	@$(BIN)/python -m bench.peers
	@$(BIN)/python -m bench.inside
	@$(BIN)/python -m bench.access
	@$(BIN)/python -m bench.durability
	@$(BIN)/python -m bench.cluster
	@$(BIN)/python -m bench.containers
	@$(BIN)/python -m bench.queries
	@$(BIN)/python -m bench.live
	@$(BIN)/python -m bench.jobs
	@$(BIN)/python -m bench.attacks

faults: $(VENV)/ready-dev ## run every fault for some rounds and write docs/faults.md; ARGS="--rounds 30 --seed 1"
	@$(BIN)/python -m tests.faults.report $(ARGS)

load: ## PUT and GET 2,000 things at a server that runs; URL=http://127.0.0.1:8000
	@bench/load.sh $(URL)

clean: ## remove .venv, caches and what was built; data stays
	rm -rf $(VENV) build dist site *.egg-info .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
