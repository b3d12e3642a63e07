PYTHON ?= $(shell command -v python3.11 || command -v python3)
# A Python that is asked for has a venv of its own: `make quickstart PYTHON=python3.13` makes .venv-3.13
VENV := .venv$(if $(filter file,$(origin PYTHON)),,-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

# What a second Python and JAX could break: the numerical core, a killed run, a sweep, an export.
PART := tests/method tests/program/test_training_step.py tests/runs/test_export.py \
  tests/runs/test_kill_and_resume.py::test_killed_and_asked_to_stop_in_training_and_in_evaluation \
  tests/sweep/test_sweep.py::test_every_trial_is_accounted_for --ignore=tests/method/test_double_precision.py

unexport PYTHONDONTWRITEBYTECODE  # tests start many processes, which need not compile llrflow each

.PHONY: help quickstart methods zoo accelerator accelerator-dry test test-long test-fast test-part figures lint format install docs docs-links clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: $(VENV)/.installed  ## Install llrflow in .venv and run specs/quickstart.yaml
	$(BIN)/llrflow run specs/quickstart.yaml

methods: $(VENV)/.installed  ## Train and attack every method on digits; prints the table of docs/methods.md
	for spec in specs/methods/*.yaml plugins/*/*.yaml; do $(BIN)/llrflow run $$spec --out runs/methods/$$(basename $$spec .yaml) || exit 1; done
	$(BIN)/llrflow runs runs/methods --markdown

ZOO_SPECS ?= specs/quickstart.yaml specs/methods/llr.yaml specs/methods/pgd_training.yaml

zoo: $(VENV)/.installed  ## Train ZOO_SPECS and publish them in the folder zoo
	for spec in $(ZOO_SPECS); do name=$$(basename $$spec .yaml); \
	  $(BIN)/llrflow run $$spec --out runs/zoo/$$name || exit 1; \
	  $(BIN)/llrflow zoo add runs/zoo/$$name --to zoo --name $$name || exit 1; done

test: $(VENV)/.installed-test  ## Run all tests, slow ones included, but for long ones and those that time something
	$(BIN)/python -m pytest -n 3 --dist worksteal -m "not alone and not long"

test-long: $(VENV)/.installed-test  ## Run the rest: sweeps whose processes die, networks and data of some size
	$(BIN)/python -m pytest -m "long and not alone"

accelerator:  ## Look at one GPU in at most 7 minutes, with the packages of PYTHON; options in KIT
	$(PYTHON) tests/accelerator $(KIT)

accelerator-dry: $(VENV)/.installed-test  ## Run the same in tiny sizes on a CPU
	$(BIN)/python tests/accelerator --dry $(KIT)

figures: $(VENV)/.installed-test  ## Time what is promised: steps, start-up, quickstart; on a machine with nothing else to do
	$(BIN)/python -m pytest -m alone

test-fast: $(VENV)/.installed-test  ## Run the tests that take less than 20 s each
	$(BIN)/python -m pytest -n 3 --dist worksteal -m "not slow and not alone and not long"

test-part: $(VENV)/.installed-test  ## Run the part of the tests that CI runs with a second Python and the newest JAX
	$(BIN)/python -m pytest -n 3 --dist worksteal -m "not alone and not long" $(PART)

lint: $(VENV)/.installed-test  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.installed-test  ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs  ## Build the documentation site in docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx -q -b html -n -W --keep-going docs docs/_build/html
	$(BIN)/python docs/check_links.py docs/_build/html

docs-links: $(VENV)/.installed-docs  ## Check the links that lead out of the documentation; needs a network
	$(BIN)/python -m sphinx -q -b linkcheck docs docs/_build/links

install: $(VENV)/.installed  ## Install llrflow in .venv

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[report]'
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) -e '.[test]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) -e '.[report,docs]'
	touch $@

clean:  ## Remove .venv and caches, never runs
	rm -rf .venv .venv-* build *.egg-info .pytest_cache .ruff_cache .hypothesis docs/_build docs/reference
