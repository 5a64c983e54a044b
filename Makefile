# Set-up, demonstration and tests on a fresh machine. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP_ARGS ?=
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)
# The pins are for Python 3.11 and newer.
CONSTRAINTS = $(shell $(PYTHON) -c 'import sys; print("-c constraints.txt" if sys.version_info >= (3, 11) else "")')

# Other versions of transformers, laid over the virtual environment by PYTHONPATH for single tests.
OVERLAYS = $(patsubst tests/overlays/%.txt,.overlays/%/.installed,$(wildcard tests/overlays/*.txt))

# The loading tests, on the installed transformers or on another; they check that it is the one that was asked for.
LOADING_TESTS = OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_loading.py
ON_VERSION = PYTHONPATH=$(CURDIR)/.overlays/$(1) LVNAR_TRANSFORMERS=$(1:transformers-%=%) $(LOADING_TESTS)
VERSIONS = $(sort $(patsubst tests/overlays/%.txt,%,$(wildcard tests/overlays/*.txt)))

.PHONY: help demo test matrix lint train-tools clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

demo: $(VENV)/.demo  ## translate with the model that ships: 0 and 1 refinement steps, times, BLEU
	$(BIN)/python training/demo.py

test: $(VENV)/.dev $(OVERLAYS)  ## run the tests, on the oldest supported transformers too
	LVNAR_OVERLAYS=$(CURDIR)/.overlays OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup
	$(call ON_VERSION,$(firstword $(VERSIONS)))

matrix: $(VENV)/.dev $(OVERLAYS)  ## run the loading tests on each supported transformers
	$(foreach version,$(VERSIONS),$(call ON_VERSION,$(version)) &&) $(LOADING_TESTS)

lint: $(VENV)/.dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

train-tools: $(VENV)/.dev  ## install what training and evaluation need

clean:  ## remove what the other targets made
	rm -rf $(VENV) .overlays .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	$(PIP_INSTALL) $(CONSTRAINTS) -e '.[demo]'
	touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(PIP_INSTALL) $(CONSTRAINTS) -e '.[dev]'
	touch $@ $(VENV)/.demo

.overlays/%/.installed: tests/overlays/%.txt $(BIN)/python
	rm -rf $(@D)
	$(PIP_INSTALL) --no-deps --target $(@D) -r $<
	touch $@
