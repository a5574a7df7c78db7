# Every target sets itself up: `make demo` and `make test` are the first commands on a fresh machine.
# Python 3.11 or newer with venv is all that must be there.

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,\
	$(if $(shell $(name) -c 'import sys, venv, ensurepip; print(sys.version_info >= (3, 11) or "")' \
	2>/dev/null | grep True),$(name))))
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
READY := $(VENV)/.ready
PACKAGES := coordinator client_node model_core privacy deploy
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	--constraint constraints.txt

FUZZ_S ?= 60

# A file's tests stay in one process, for what they set up together; each process computes on one core.
ON_EVERY_CORE := --numprocesses logical --maxprocesses 4 --dist loadfile

export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

.PHONY: help setup demo test test-slow test-faults fuzz check bench clean
.DEFAULT_GOAL := help

help: ## what each target does
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## make .venv with the tested versions

# torch goes first and by exact version: a range would take a newer build, gigabytes of CUDA with it.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with venv was found." \
	"Install it (on Debian: apt-get install python3 python3-venv), or set PYTHON." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch==2.13.0
	$(PIP_INSTALL) --editable '.[demo]'
	@touch $@

$(READY): $(INSTALLED)
	$(PIP_INSTALL) --editable '.[demo,dev,onnx,plots,postgresql]'
	@touch $@

demo: $(INSTALLED) ## the whole thing on this machine: three sites, private rounds, a release (ARGS=...)
	$(BIN)/auricle demo $(ARGS)

test: $(READY) ## every test that takes seconds (ARGS=...)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' --hypothesis-profile repeatable \
	$(ON_EVERY_CORE) $(ARGS)

test-slow: $(READY) ## the tests that take minutes (ARGS=...)
	$(BIN)/python -m pytest -m slow $(ARGS)

test-faults: $(READY) ## every row of docs/faults.md, slow or not (ARGS=...)
	$(BIN)/python -m pytest -m faults $(ARGS)

fuzz: $(READY) ## every parser of bytes from outside, FUZZ_S seconds each (ARGS=...)
	AURICLE_FUZZ_S=$(FUZZ_S) $(BIN)/python -m pytest -m faults tests/faults/test_fuzz.py $(ARGS)

check: $(READY) ## format, lint, types, the rooms' import rules, links in the documents
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict $(foreach room,$(PACKAGES),-p $(room))
	$(BIN)/lint-imports
	$(BIN)/python -m docs.check_links

bench: $(READY) ## every benchmark, a claim each
	$(PIP_INSTALL) --editable '.[bench]'
	@set -e; for file in $$(grep -l -- '"--json"' benchmarks/*.py); do \
	$(BIN)/python -m benchmarks.$$(basename $$file .py); done

clean: ## remove .venv and caches; homes of coordinators and sites stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .import_linter_cache build *.egg-info
