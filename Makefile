# Set-up, demonstration and tests on a fresh machine. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP_ARGS ?=
# Not compiled: what is imported compiles itself, once, and most never is.
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile $(PIP_ARGS)
# The pins are for Python 3.11 and newer.
CONSTRAINTS = $(shell $(PYTHON) -c 'import sys; print("-c constraints.txt" if sys.version_info >= (3, 11) else "")')

# Other versions of transformers, each in a virtual environment of its own; the rest is the main one's. The first, the
# oldest, is for `make test`.
VERSIONS = $(sort $(patsubst tests/environments/%.txt,%,$(wildcard tests/environments/transformers-*.txt)))
ENVIRONMENTS = $(VERSIONS:%=.environments/%/.installed)
PACKAGES_OF = $$($(1)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

# gradio and playwright, for the page: gradio wants an older pillow than `constraints.txt` has.
APP = .environments/app

# The loading tests, on the installed transformers or on another; they check that it is the one that was asked for.
LOADING_TESTS = -m pytest tests/model/test_loading.py -n 2 --dist worksteal
ON_VERSION = LVNAR_TRANSFORMERS=$(1:transformers-%=%) OMP_NUM_THREADS=1 .environments/$(1)/bin/python $(LOADING_TESTS)

# Losses, reference, text, batches, recipes and documents: what needs neither a compiler nor a trained model.
QUICK_TESTS = tests/model/test_config.py tests/model/test_losses.py tests/model/test_reference.py tests/model/test_ctc.py tests/model/test_generation.py \
	tests/model/test_repetitions.py tests/model/test_text.py tests/data/test_batching.py tests/loop/test_schedules.py \
	tests/loop/test_recipe.py tests/quality/test_spans.py tests/reports tests/test_rooms.py

.PHONY: help demo test thorough quick matrix lint train-tools clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

demo: $(VENV)/.demo  ## translate with the model that ships: 0 and 1 refinement steps, times, BLEU
	$(BIN)/python model_cards/demo.py

# A file's tests stay in one process, which makes its graphs and models once; tests/conftest.py has the files' order.
test:  ## run the tests, on the oldest supported transformers too
	$(MAKE) --no-print-directory -j 2 $(VENV)/.dev $(firstword $(ENVIRONMENTS)) $(APP)/.installed
	LVNAR_ENVIRONMENTS=$(CURDIR)/.environments OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

thorough: $(VENV)/.dev $(ENVIRONMENTS) $(APP)/.installed  ## run every case, on every supported transformers
	LVNAR_ENVIRONMENTS=$(CURDIR)/.environments OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not fuzz"

quick: $(VENV)/.dev  ## run the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(QUICK_TESTS)

matrix: $(VENV)/.dev $(ENVIRONMENTS)  ## run the loading tests on each supported transformers
	$(foreach version,$(VERSIONS),$(call ON_VERSION,$(version)) &&) OMP_NUM_THREADS=1 $(BIN)/python $(LOADING_TESTS)

lint: $(VENV)/.dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

train-tools: $(VENV)/.dev  ## install what training and evaluation need

clean:  ## remove what the other targets made
	rm -rf $(VENV) .environments .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	$(PIP_INSTALL) $(CONSTRAINTS) -e '.[demo]'
	touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(PIP_INSTALL) $(CONSTRAINTS) -e '.[dev]'
	touch $@ $(VENV)/.demo

# Its own packages come first. `addsitedir`, not the bare path: this package is there as an editable install.
.environments/%/.installed: tests/environments/%.txt $(BIN)/python
	rm -rf $(@D)
	$(BIN)/python -m venv --without-pip $(@D)
	$(PIP_INSTALL) --no-deps --target "$(call PACKAGES_OF,$(@D)/bin)" -r $<
	echo "import site; site.addsitedir('$(call PACKAGES_OF,$(BIN))')" > "$(call PACKAGES_OF,$(@D)/bin)/main.pth"
	touch $@
