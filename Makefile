# Gridmesh. `make run` and `make test` set themselves up on a machine with Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTOS := $(wildcard protos/gridmesh/v1/*.proto)

.DEFAULT_GOAL := help
.PHONY: help run test soak screenshots rush-hour bench bench-envoy check lint types contract protos dashboards drift unit requirements clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

# --- set-up: the services' packages, and on top of them those of the tests -----------------------

$(VENV)/.run: requirements.txt deploy/source_roots.py
	@command -v $(PYTHON) >/dev/null || { echo "install Python 3.11 or later (or set PYTHON=...)"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed, $(PYTHON) is older (set PYTHON=...)"; exit 2; }
	@echo "setting up $(VENV) (once)"
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --require-hashes --disable-pip-version-check -r requirements.txt
	@$(BIN)/python deploy/source_roots.py
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.run
	@echo "setting up $(VENV) for the tests (once)"
	@$(BIN)/python -m pip install --quiet --require-hashes --disable-pip-version-check -r requirements-dev.txt
	@touch $@

.venv-bench/.bench: requirements-bench.txt
	@echo "setting up .venv-bench for the benchmarks (once)"
	@test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/python -m pip install --quiet --require-hashes --disable-pip-version-check -r requirements-bench.txt
	@.venv-bench/bin/python deploy/source_roots.py
	@touch $@

# --- use -----------------------------------------------------------------------------------------

run: $(VENV)/.run ## three substations, a balancer and a gateway on loopback; Ctrl-C drains
	@exec $(BIN)/python -m deploy.local

rush-hour: $(VENV)/.run ## 30 equal cars in 3 s through a running gateway, and where they went
	@$(BIN)/python -m fleet rush-hour

bench: .venv-bench/.bench ## the tables and plots of benchmarks/README.md, made anew (hours)
	@.venv-bench/bin/python -m benchmarks.tables

bench-envoy: .venv-bench/.bench ## our mesh beside Envoy in front of the same substations; table g (ROUNDS=5, SECONDS=4 a cell)
	@.venv-bench/bin/python -m benchmarks.envoy --record $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECONDS),--seconds $(SECONDS))

# --- tests ---------------------------------------------------------------------------------------

test: check unit ## lint, types, contract, drift, and every test

check: lint types contract drift ## all that needs no running process

lint: $(VENV)/.dev ## ruff, and the import rules
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports --no-cache

types: $(VENV)/.dev ## mypy --strict
	@$(BIN)/mypy

contract: $(VENV)/.dev ## buf lint
	@$(BIN)/python deploy/protos.py lint

drift: $(VENV)/.dev ## generated/ is what protos/ says, the dashboards are what their code says
	@$(BIN)/python deploy/protos.py check && $(BIN)/python -m observability.dashboards check

unit: $(VENV)/.dev
	@$(BIN)/python -m pytest -n 2 --dist loadfile

screenshots: $(VENV)/.dev ## docs/page-*.png of the live page, from a mesh at work (needs chromium; 5 minutes)
	@$(BIN)/python -m tests.page

soak: $(VENV)/.dev ## faults on a real mesh for MINUTES=10, drawn from SEED=n, and whether a promise was broken
	@$(BIN)/python -m tests.faults --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

# --- upkeep --------------------------------------------------------------------------------------

protos: $(VENV)/.dev ## regenerate generated/ from protos/
	@$(BIN)/python deploy/protos.py write

dashboards: $(VENV)/.dev ## render observability/grafana/dashboards/*.json from observability/dashboards/*.py
	@$(BIN)/python -m observability.dashboards write

requirements: ## compile requirements*.in into hashed requirements*.txt (needs uv)
	@for set in requirements requirements-dev requirements-bench; do \
	  uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	    --no-emit-index-url --no-emit-find-links $$set.in -o $$set.txt; done

clean: ## remove what set-up and runs made (not the ledgers in data/)
	@rm -rf $(VENV) .venv-bench .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
