# Every target makes the virtual environment when it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# How many processes share the tests; each works with one thread. `make test WORKERS=0`: all in one.
WORKERS ?= 2

# How many inputs of the fuzz, and which: `make soak FUZZ=100000 SEED=1`.
FUZZ ?= 10000
SEED ?= 0

.PHONY: demo docs test soak bench check format clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[demo,dev,docs]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/perdure demo

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=worksteal

soak: $(VENV)/installed
	-$(BIN)/python -m pip install --quiet --editable '.[ray]'  # without it, sweeps on Ray are not tried
	PERDURE_SOAK=1 PERDURE_FUZZ=$(FUZZ) PERDURE_SEED=$(SEED) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s --durations=0 \
		tests/runs/test_faults.py tests/runs/test_fuzz.py tests/runs/test_crash.py tests/cli/test_writing.py tests/models/test_model_folder.py tests/checkpoints/test_merge_crash.py tests/sweeps/test_ray.py tests/learning/test_methods_in_processes.py

bench: $(VENV)/installed
	-$(BIN)/python -m pip install --quiet --editable '.[bench]'  # what cannot be installed is not compared
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python bench/inflora.py
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python bench/combination.py
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python bench/saving.py
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python bench/methods.py
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python bench/language.py
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python bench/sweep.py
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python bench/sharding.py
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python bench/training.py
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python bench/predicting.py
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python bench/posterior.py

# Into `site/`; what is not right (a link, a page that is missing) is an error.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python tools/budgets.py

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache dist site
