# The one task runner. `make help` lists what there is; each target is one line of work.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# As pip, in a third of the time, but by its own settings: where only pip's lead anywhere, pip it is.
UV := $(BIN)/uv --quiet pip install --python $(BIN)/python --compile-bytecode
COMPILE := $(BIN)/uv pip compile --quiet --universal --no-annotate --no-header --python-version 3.11
UP ?=
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install compile up test rig lint types check evidence bench-gateway ray lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: compile  ## make .venv and install the product from requirements.lock

# Looks at the sources by itself, and is quick when nothing changed.
compile: $(VENV)/installed  ## compile what is on a request's path, where a C compiler is there
	@$(BIN)/python tools/compile/build.py

up: compile  ## start the whole cloud here (options: make up UP='--port 4100')
	@exec $(BIN)/isochrone up $(UP)

test: $(VENV)/installed-dev lint  ## everything that must pass: lint, types, all tests
	@$(BIN)/python tools/tests/run.py

rig: $(VENV)/installed-dev compile  ## only the tests against the real cloud
	$(BIN)/python -m pytest -m rig

lint: $(VENV)/installed-dev  ## ruff
	$(BIN)/ruff check .

types: $(VENV)/installed-dev  ## mypy --strict
	$(BIN)/mypy

check: test  ## the same as test

evidence: compile  ## measure everything, and play the experiments in full (hours), see benchmarks/
	$(BIN)/python benchmarks/local_cloud/run.py
	$(BIN)/python -m benchmarks.choose.run
	$(BIN)/python -m benchmarks.streams.run
	$(BIN)/python -m benchmarks.gateway.run
	$(BIN)/python -m benchmarks.booking.run
	$(BIN)/python -m benchmarks.limits.run
	$(BIN)/python -m benchmarks.console.run
	$(BIN)/python -m benchmarks.twin.run
	$(BIN)/python -m benchmarks.experiments.run --full
	IDLE_CONNECTIONS=10000 SLOW_SECONDS=30 STREAM_MB=100 $(BIN)/python -m pytest -q -s -m rig tests/rig/test_idle_connections.py
	ISOCHRONE_EVENTS=1000000 $(BIN)/python -m pytest -q tests/contract/test_settling.py -k oracle
	$(BIN)/python -m pytest -q tests/contract
	$(BIN)/isochrone twin chaos --seeds 3000
	$(BIN)/python -m benchmarks.chaos.run
	$(BIN)/python -m tools.calibrate.judge tests/unit/excerpts
	$(MAKE) ray
	$(BIN)/python -m benchmarks.calibration.run all --folder benchmarks/calibration/out

ray: $(VENV)/installed-dev  ## the tests that need the extra isochrone[ray], in an environment of their own
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python -m pip --disable-pip-version-check --quiet install -r requirements-dev.lock -c requirements-dev.lock 'ray>=2.40'
	.venv-ray/bin/python -m pip --disable-pip-version-check --quiet install --no-deps --no-build-isolation -e .
	.venv-ray/bin/python -m pytest -q tests/contract/test_twin_cluster.py

bench-gateway: compile  ## measure the gateway beside its peers (options: ARGS=--help)
	@$(BIN)/python -m benchmarks.gateway.run $(ARGS)

lock: $(VENV)/installed-dev  ## make the lock files from pyproject.toml
	$(COMPILE) pyproject.toml --group build -o requirements.lock
	$(COMPILE) pyproject.toml --group build --group dev -o requirements-dev.lock

clean:  ## remove .venv and caches
	rm -rf $(VENV) .venv-ray src/isochrone/_compiled .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "isochrone needs Python 3.11 or newer, this is %s; name another with make PYTHON=..." % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# The stamps hold back the installation until a lock file or the project's metadata changes.
$(VENV)/installed: requirements.lock pyproject.toml | $(VENV)/bin/python
	@$(PIP) install $$(grep ^uv== $<)
	$(UV) -r $< || $(PIP) install -r $<
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/installed-dev: requirements-dev.lock $(VENV)/installed
	$(UV) -r $< || $(PIP) install -r $<
	@touch $@
