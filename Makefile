# make env | demo | test | lint | clean, each with PYTHON=/path/to/python3.11 where python3 is another.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Tests run side by side, each process on one core.
JOBS ?= 2
LINTED := deim_mmdet configs tools benchmarks tests setup.py
# The lowest supported version of Python: ruff finds newer syntax (pyproject.toml states the version
# for it), vermin newer parts of the library.
LOWEST_PYTHON := $(shell sed -n "s/.*python_requires='>=\([0-9.]*\)'.*/\1/p" setup.py)

.PHONY: env demo test lint clean

env: $(READY)

# Rebuilt when what it was made from changes; otherwise every run reuses it.
$(READY): tools/dev/setup_env.sh $(wildcard requirements/*.txt) setup.py $(wildcard deim_mmdet/ops/csrc/*)
	@PYTHON="$(PYTHON)" bash tools/dev/setup_env.sh
	@touch $@

demo: $(READY)
	@$(BIN)/python tools/demo/run.py

test: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

lint: $(READY)
	@$(BIN)/ruff check $(LINTED)
	@$(BIN)/ruff format --check $(LINTED)
	@$(BIN)/vermin --quiet --violations --eval-annotations -t=$(LOWEST_PYTHON)- $(LINTED)

# Not MMCV's compiled operators: they lie outside the clone, for the next one.
clean:
	rm -rf .venv build dist work_dirs *.egg-info deim_mmdet/.mim .pytest_cache .ruff_cache
	rm -f deim_mmdet/ops/_C.so
	find deim_mmdet configs tools tests -name __pycache__ -type d -prune -exec rm -rf {} +
