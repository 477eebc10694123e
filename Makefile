# Each target sets up what it needs. `make help` lists them.
#
#   PYTHON=python3.12   the Python that .venv is made from
#   TORCH=system        use the torch that PYTHON has, not the pinned one
#   ARGS='...'          further arguments of the command that the target runs

PYTHON ?= python3
TORCH ?= $(shell ls .venv/.stamp-system >/dev/null 2>&1 && echo system || echo pinned)
VENV := .venv/.stamp-$(TORCH)
TOOLS := .tools/.stamp
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env report test test-full lint format tools amd lab bench clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{ printf "  make %-10s %s\n", $$1, $$2 }'

env: $(VENV) ## create .venv
$(VENV): pyproject.toml constraints.txt .ci/env.sh .ci/apt_unpack.sh
	PYTHON=$(PYTHON) .ci/env.sh $(TORCH)

report: $(VENV) ## run experiments/quick.yaml and make its report
	$(BIN)/cc1d report experiments/quick.yaml $(ARGS)

test: lint $(TOOLS) ## lint, tests, AMD compile sample
	CC1D_NO_SKIP=1 $(PYTEST) -n 2 $(ARGS)

test-full: lint $(TOOLS) ## the same with the tests that take minutes
	CC1D_NO_SKIP=1 $(PYTEST) -n 2 -m "not gpu" $(ARGS)

lint: $(VENV) ## ruff, its format, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV) ## let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tools: $(TOOLS) ## bring a clang that compiles for AMD GPUs into .tools
$(TOOLS): .ci/get_clang.sh .ci/get_hip.sh .ci/apt_unpack.sh
	.ci/get_hip.sh
	.ci/get_clang.sh

amd: $(VENV) $(TOOLS) ## compile every variant and dtype for every AMD arch; the last line counts built and failed
	$(BIN)/cc1d build --backend amd --arch all $(ARGS)

lab: $(VENV) ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks $(ARGS)

bench: $(VENV) ## run experiments/ceiling.yaml, for a GPU, and make its report
	$(BIN)/cc1d report experiments/ceiling.yaml $(ARGS)

clean: ## remove what make made here: .venv, .tools, caches. Reports stay
	rm -rf .venv .tools build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
