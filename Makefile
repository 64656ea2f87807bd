# Everything a fresh machine needs: `make demo` (a clip from the bundled model) and `make test` (the whole suite).
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
PYTEST_ARGS ?=
UV ?= uv

.PHONY: help install demo test test-install test-pythons slow lint format bench lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(VENV)/.installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[train,mlx,studio,ray]" --group dev
	@touch $@

install: $(VENV)/.installed  ## make the virtual environment and install all packages, editable

demo: install  ## make a clip with the bundled model in out/; replaces nothing there
	@mkdir -p out
	cd out && $(BIN)/ltx demo

# One thread per process and one process per core: twice as fast as two threads in one process on small tensors.
test slow: export OMP_NUM_THREADS := $(or $(strip $(OMP_NUM_THREADS)),1)

test: install  ## run every test that takes less than a minute: some 7 minutes on two cores with bfloat16 units
	@echo "All tests but the slow ones: expect some 7 minutes on two cores with bfloat16 units."
	$(BIN)/python -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

slow: install  ## run the long tests
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

test-install:  ## build the wheels, install them in a clean environment, make clips: about 2 minutes
	$(PYTHON) tests/install_check.py

test-pythons:  ## the same with every supported Python of this machine; says which it has not
	$(PYTHON) tests/install_check.py 3.11 3.12 3.13

lint: install  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## let ruff rewrite the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install  ## print the benchmark tables
	$(BIN)/python -m benchmarks

lock:  ## bring uv.lock up to date, at the versions in constraints.txt
	$(UV) lock $(addprefix --upgrade-package ,$(shell cat constraints.txt))

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
