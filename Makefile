# Two commands do everything: `make run` and `make test`. Both set up `.venv` first.
# `make help` lists the others.
PYTHON ?= python3
CORES ?= 2
KILLS ?= 400
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
GENERATORS := .generators/.installed
DOCS := .venv-docs
# The rooms that a machine needs which only trains and evaluates.
LOWEST := $(addprefix tests/,arc config data evaluation models storage training)
# One thread a job: two jobs side by side are faster than one job on two cores at these sizes.
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# A study starts an interpreter for each job, the tests for each copy: they share bytecode.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup run demo worlds test test-slurm test-lowest soak lint docs docs-generated

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

setup: $(STAMP) $(GENERATORS) ## create .venv with the pinned requirements, and .generators beside it

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, found {v.major}.{v.minor}: call make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# The library that generates pairs asks for packages that ours must not have: it has its own folder.
$(GENERATORS): envs/generators.txt $(STAMP)
	$(BIN)/python -c 'from etrm.data.generate import install_library; install_library()'
	@touch $@

run: setup ## run the mini study, and print where its results are
	$(THREADS) $(BIN)/snakemake --cores $(CORES)

demo: setup ## run a small part of the smoke study, and make its page: the pipeline in a minute or two
	$(THREADS) $(BIN)/snakemake page --cores $(CORES) --configfile config/demo.yaml

worlds: setup ## run the study of rule worlds: which encoders learn to read a rule, and what decides it
	$(THREADS) $(BIN)/snakemake --cores $(CORES) --configfile config/worlds.yaml

test: setup ## run all tests but those on a real SLURM
	$(THREADS) $(BIN)/python -m pytest -n $(CORES) --dist loadscope --no-loadscope-reorder --ignore tests/slurm tests

test-slurm: setup ## run the tests on a real SLURM of two nodes, as root on Debian or Ubuntu
	ETRM_TEST_SLURM=1 $(THREADS) $(BIN)/python -m pytest tests/slurm

test-lowest: ## run the core tests with the lowest declared versions, in .venv-lowest
	$(PYTHON) -m venv .venv-lowest
	$(PYTHON) tests/lowest.py > .venv-lowest/requirements.txt
	.venv-lowest/bin/python -m pip install --quiet --requirement .venv-lowest/requirements.txt
	.venv-lowest/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(THREADS) .venv-lowest/bin/python -m pytest --quiet $(LOWEST)

soak: setup ## run the fault tests for long: training is killed KILLS times
	ETRM_SOAK=$(KILLS) $(THREADS) $(BIN)/python -m pytest tests/faults

lint: setup docs ## check style, types and the workflow, and build the documentation strictly
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/snakemake --lint
	$(BIN)/mypy

docs: $(DOCS)/.installed ## build the documentation as a site, into site/
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

$(DOCS)/.installed: docs/requirements.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --requirement docs/requirements.txt
	@touch $@

docs-generated: setup ## write the generated pages again: configuration reference, schema, code map
	$(BIN)/python -m etrm.config.reference config/README.md
	$(BIN)/python -m etrm.config.json_schema config/schema.json
	$(BIN)/python docs/code_map.py docs/code-map.md
