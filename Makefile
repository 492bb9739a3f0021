# make env | demo | test | test-all | lint | ops | clean, each with PYTHON=/path/to/python3.11 where
# python3 is another, and with STACK=onedl on the maintained fork of OpenMMLab's libraries.
PYTHON ?= python3
STACK ?= openmmlab
VENV := .venv$(patsubst %,-%,$(filter-out openmmlab,$(STACK)))
BIN := $(VENV)/bin
# The environment of the demo, and the one that has tests and linter too.
READY := $(VENV)/.ready
DEV := $(VENV)/.ready-dev
SETUP := STACK=$(STACK) PYTHON="$(PYTHON)" bash tools/dev/setup_env.sh $(CURDIR)/$(VENV)
# Tests run side by side, each process on one core. Files come in the order of their names: by the
# number of their tests, the longest ones would come last, and leave one core idle.
JOBS ?= 2
TESTS ?=
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
LINTED := deim_mmdet configs tools benchmarks tests setup.py
# The lowest supported version of Python: ruff finds newer syntax (pyproject.toml states the version
# for it), vermin newer parts of the library.
LOWEST_PYTHON := $(shell sed -n "s/.*python_requires='>=\([0-9.]*\)'.*/\1/p" setup.py)
# What an environment is made from: it is brought up to date when one of these changes.
MADE_FROM := tools/dev/setup_env.sh setup.py $(wildcard deim_mmdet/ops/csrc/*) \
	$(addprefix requirements/,build.txt pins.txt mim.txt $(STACK).txt)
# Without byte code every start of Python, of which the tests make hundreds, takes twice as long.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: env demo test test-all lint ops clean

env: $(READY)

$(READY): $(MADE_FROM)
	@$(SETUP)
	@touch $@

$(DEV): $(MADE_FROM) requirements/dev.txt
	@$(SETUP) --dev
	@touch $(READY) $@

demo: $(READY)
	@$(BIN)/python tools/demo/run.py

# Networks, losses, operator, transforms, recipe, checkpoints; or those that TESTS names.
test: $(DEV)
	@$(PYTEST) $(or $(TESTS),-m 'not slow')

# The rest: whole trainings, killed runs, damaged data, tools, export.
test-all: $(DEV)
	@$(PYTEST) -m slow

lint: $(DEV)
	@$(BIN)/ruff check $(LINTED)
	@$(BIN)/ruff format --check $(LINTED)
	@$(BIN)/vermin --quiet --violations --eval-annotations -t=$(LOWEST_PYTHON)- $(LINTED)

# MMCV with its operators, for models of MMDetection that need them (RoI heads).
ops: $(READY)
	@STACK=$(STACK) bash tools/dev/build_mmcv.sh $(CURDIR)/$(VENV)

# Not what lies outside the clone, for the next one: compiled operators.
clean:
	rm -rf .venv .venv-onedl build dist work_dirs *.egg-info deim_mmdet/.mim .pytest_cache .ruff_cache
	rm -f deim_mmdet/ops/_C.so
	find deim_mmdet configs tools benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
