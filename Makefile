# Everything here works from a fresh clone with only Python (3.11 or later), pip and make. Each target makes the environment
# that it needs, once, in a folder of its own, and again when pyproject.toml has changed.

.DEFAULT_GOAL := help
.PHONY: help demo docs test test-all soak bench conformance lint clean
SHELL := /bin/bash

# The first interpreter that is new enough; `make PYTHON=/path/to/python` names another. Looked for only when needed.
PYTHON ?= $(shell for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$candidate" && break; done)

# Arguments for pytest (`make test PYTEST="-k recall"`), the demo and the benchmarks.
PYTEST ?=
DEMO ?=
BENCH ?=

help:
	@echo "make demo      run the flights pipeline on real daemons; results and a picture in demo-output/"
	@echo "make test      ruff, mypy and the whole test suite (under ten minutes on two cores)"
	@echo "make test-all  the same, then the suite without the fast paths, the planted faults, and two minutes of make soak"
	@echo "make soak      the simulator with fresh seeds, until interrupted or for SOAK_SECONDS (default 600)"
	@echo "make bench     every figure beside its peers (Dask, joblib, concurrent.futures, Ray where it installs)"
	@echo "make conformance  other projects' own tests of their interfaces, run on a cluster; hours; goes on where it stopped"
	@echo "make docs      the documentation as web pages, in docs/_build/html"
	@echo "make lint      ruff and mypy alone"
	@echo "make clean     remove the environments and what the tools left"

# $(call environment,FOLDER,EXTRA): a virtual environment with this package in it, editable. Where Python comes without
# `venv` (some Linux distributions split it off), virtualenv is fetched into a folder of its own and does the same.
define environment
	@test -n "$(PYTHON)" || { echo "No Python of 3.11 or later was found: install one, or say make PYTHON=/path/to/python"; exit 1; }
	@echo "Preparing $(1) with $(PYTHON) (once; a minute or two)"
	@test -x $(1)/bin/python || "$(PYTHON)" -m venv $(1) 2>/dev/null || { rm -rf $(1); \
		"$(PYTHON)" -m pip install --quiet --target .venv-virtualenv virtualenv && \
		PYTHONPATH=.venv-virtualenv "$(PYTHON)" -m virtualenv --quiet $(1); }
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[$(2)]'
endef

.venv/installed: pyproject.toml
	$(call environment,.venv,test)
	@touch $@

.venv-demo/installed: pyproject.toml
	$(call environment,.venv-demo,demo)
	@touch $@

.venv-bench/installed: pyproject.toml
	$(call environment,.venv-bench,bench)
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check ray || echo "Ray does not install here: its column stays empty"
	@touch $@

.venv-conformance/installed: pyproject.toml
	$(call environment,.venv-conformance,conformance)
	@touch $@

demo: .venv-demo/installed
	.venv-demo/bin/python notebooks/flights.py --output demo-output $(DEMO)

docs: .venv/installed
	.venv/bin/python -m sphinx --fail-on-warning --quiet docs docs/_build/html
	@echo "docs/_build/html/index.html"

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/mypy

test: lint
	.venv/bin/python -m pytest -m "not soak and not planted" $(PYTEST)

test-all: test
	CLUSTER__FAST_PATHS=0 .venv/bin/python -m pytest -m "not soak and not planted" $(PYTEST)
	.venv/bin/python -m pytest -m planted $(PYTEST)
	$(MAKE) soak SOAK_SECONDS=120

SOAK_SECONDS ?= 600
soak: .venv/installed
	SOAK_SECONDS=$(SOAK_SECONDS) .venv/bin/python -m pytest -m soak --timeout 0 $(PYTEST)

bench: .venv-bench/installed
	.venv-bench/bin/python -m benchmarks.run $(BENCH)

# `make conformance SUITES="dask --again"` runs one suite anew.
SUITES ?=
conformance: .venv-conformance/installed
	.venv-conformance/bin/python -m tests.conformance.run $(SUITES)

clean:
	rm -rf .venv .venv-demo .venv-bench .venv-conformance .conformance .venv-virtualenv build dist demo-output docs/_build
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
