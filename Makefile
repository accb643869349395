# make run: the closed loop on the demo data; make test: the tests. Both set up .venv first, from requirements.lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Above this the suite counts as hung; 600 s is what it may take on two cores.
TEST_SECONDS ?= 900
TEST_ARGS ?=
CDIFF_HOME ?= $(HOME)/cdiff
MLFLOW_TRACKING_URI ?= sqlite:///$(CDIFF_HOME)/mlflow.db
MLFLOW_PORT ?= 5000

.DEFAULT_GOAL := help
.PHONY: help setup run test long chaos check format mlflow lock clean

help:  ## Show the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

setup: $(STAMP)  ## Make .venv from requirements.lock

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cdiff needs Python 3.11 or later; name one: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $(STAMP)

run: $(STAMP)  ## Run the closed loop on the demo data
	$(BIN)/python jobs/loop.py

test: $(STAMP)  ## Run the tests
	timeout --kill-after=20 $(TEST_SECONDS) $(BIN)/python -m pytest -q $(TEST_ARGS)

long: $(STAMP)  ## Run the tests that take minutes each: a whole benchmark, the service under load
	$(BIN)/python -m pytest -q -m long

chaos: $(STAMP)  ## Run the tests that kill, fill and cut things, and write their table (25 minutes)
	$(BIN)/python -m pytest -q -m chaos tests/chaos --table docs/reliability.md

check: $(STAMP)  ## Lint, format check and type check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## Format and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

mlflow: export MLFLOW_TRACKING_URI := $(MLFLOW_TRACKING_URI)
mlflow: $(STAMP)  ## Open the MLflow UI on loopback, over the database under the cdiff home
	@case "$$MLFLOW_TRACKING_URI" in http://*|https://*) echo "An MLflow server has its own page: open it" >&2; exit 2;; *://*://*) echo "A home on S3 has no database: give MLFLOW_TRACKING_URI, the store that the run named at its start." >&2; exit 2;; esac
	@mkdir -p $(CDIFF_HOME)
	@echo "MLflow at http://127.0.0.1:$(MLFLOW_PORT)"
	@# by the environment: a database's URI may hold a password, and arguments are there for all to see
	@export MLFLOW_BACKEND_STORE_URI="$$MLFLOW_TRACKING_URI" MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true; exec $(BIN)/mlflow ui --host 127.0.0.1 --port $(MLFLOW_PORT)

lock:  ## Pin everything anew, from a fresh environment
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet '.[dev]'
	{ echo "# Every package of the project and its checks, pinned. Made by 'make lock'."; \
	  build/lock/bin/python -m pip freeze --all --exclude pip --exclude wheel --exclude cdiff | sed -E 's/^(torch==[0-9.]+)\+.*/\1/'; } > requirements.lock
	rm -rf build

clean:  ## Remove what the targets made; runs under the cdiff home stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
