# `make demo` and `make test` set up everything they need in .venv; nothing outside this folder is changed.
PYTHON ?= python3
BIN := .venv/bin
# test files run side by side in as many processes, one thread each
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: demo test quick gpu docs mutations chaos fuzz lint format clean

.venv/ready: pyproject.toml setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/ready
	$(BIN)/python -m inference.svi_sib

# everything: style, types and all tests
test: lint
	$(PYTEST)

# style, types and the tests that take under a minute together
quick: lint
	$(PYTEST) -m 'not slow'

# the tests of a GPU
gpu: .venv/ready
	SIBYL_GPU_TESTS=1 $(BIN)/python -m pytest -m gpu

# the documentation site, in build/site; a warning is an error
docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# break one line at a time and see that a test notices; see CONTRIBUTING.md
mutations: .venv/ready
	$(BIN)/python -m tests.mutations

# kill, terminate, interrupt and fill disks; see benchmarks/chaos.py. CHAOS has its options, which default to a few trials
chaos: .venv/ready
	$(BIN)/python -m benchmarks.chaos $(CHAOS)

# hostile input for every command and the Python interface; see benchmarks/fuzz.py. FUZZ has its options
fuzz: .venv/ready
	$(BIN)/python -m benchmarks.fuzz $(FUZZ)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
