# Two commands do everything: `make run` and `make test`. Both set up `.venv` first.
PYTHON ?= python3
CORES ?= 2
KILLS ?= 400
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One thread a job: two jobs side by side are faster than one job on two cores at these sizes.
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: setup run test test-slurm soak lint

setup: $(STAMP)

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, found {v.major}.{v.minor}: call make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

run: setup
	$(THREADS) $(BIN)/snakemake --cores $(CORES)
	@$(BIN)/etrm summary

test: setup
	$(THREADS) $(BIN)/python -m pytest -n $(CORES) --dist loadscope --no-loadscope-reorder --ignore tests/slurm tests

# On a real SLURM of one node, which this installs, starts and stops: as root, on Debian or Ubuntu.
test-slurm: setup
	ETRM_TEST_SLURM=1 $(THREADS) $(BIN)/python -m pytest tests/slurm

# The fault tests alone, for long: training is killed that many times.
soak: setup
	ETRM_SOAK=$(KILLS) $(THREADS) $(BIN)/python -m pytest tests/faults

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/snakemake --lint
	$(BIN)/mypy
