# Every target sets itself up in .venv; `make help` lists them.
PYTHON ?= python3
CONFIG ?= configs/tiny_cpu.yaml
RUN ?= runs/tiny_cpu
ARGS ?=
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help train train-tpu plan test test-slow lint clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lpo-jax needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install -r requirements.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(BIN)/pip install -r requirements-dev.txt
	touch $@

$(RUN)_data/manifest.json: .venv/installed data_pipeline/seed/pairs.jsonl
	$(BIN)/lpo-data build data_pipeline/seed/pairs.jsonl --train-tokenizer 1024 --row-tokens 1024 --heldout 0.2 --out $(RUN)_data --force

train: $(RUN)_data/manifest.json ## the main job on the embedded default: build, SFT, LPO, report (CPU, minutes)
	$(BIN)/lpo train $(CONFIG) $(ARGS)

train-tpu: .venv/installed ## the same job on the TPU host this runs on; CONFIG=... ARGS="key=value ..."
	$(BIN)/pip install --quiet --editable '.[tpu]'
	$(BIN)/lpo train $(CONFIG) $(ARGS)

plan: .venv/installed-dev ## compile every config of configs/pods/ for its TPU slice (no TPU needed; minutes each) and write docs/plans.md
	$(BIN)/lpo plan configs/pods/*.yaml --table docs/plans.md $(ARGS)

test: .venv/installed-dev ## the default test suite
	$(BIN)/python -m pytest -n 2 -m 'not slow' $(ARGS)

test-slow: .venv/installed-dev ## the tests that take minutes each
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: .venv/installed-dev ## ruff and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean: ## remove the virtual environment and caches; runs/ stays
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
