# Everything a fresh machine needs: `make demo` (a clip from the bundled model) and `make test` (the whole suite).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PACKAGES := packages/ltx-core packages/ltx-media packages/ltx-pipelines packages/ltx-trainer packages/ltx-tiny
PYTEST_ARGS ?=
# One thread per process and one process per core: twice as fast as two threads in one process on small tensors.
export OMP_NUM_THREADS ?= 1

.PHONY: help install demo test slow lint format bench clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(VENV)/.installed: constraints.txt pyproject.toml $(PACKAGES:=/pyproject.toml)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt $(PACKAGES:%=-e %) --group dev
	@touch $@

install: $(VENV)/.installed  ## make the virtual environment and install the five packages

test: install  ## run every test that takes less than a minute
	$(BIN)/python -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

slow: install  ## run the long tests
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

lint: install  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## let ruff rewrite the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install  ## print the benchmark tables
	OMP_NUM_THREADS= $(BIN)/python -m benchmarks

demo: install  ## generate demo.mp4 with the bundled model
	OMP_NUM_THREADS= $(BIN)/ltx demo

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
