# make demo: install, simulate a small ICU cohort, run the whole pipeline.  make test: the default test suite.
# Needs Python 3.11 or newer, git and make. PYTHON=python3.12 make demo chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# DVC's commands say `python`: it must be the environment's.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
# Nothing below needs the hub; HF_HUB_OFFLINE=0 make ... lets pretrained encoders be fetched.
export HF_HUB_OFFLINE ?= 1

# The data set that params.yaml chooses, for the closing lines of the demo.
DATASET = $(shell sed -n '/^dataset:/,/name:/s/^  name: *\([A-Za-z0-9_-]*\).*/\1/p' params.yaml)

.PHONY: demo test slow lint clean

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11. Run: PYTHON=python3.11 make $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# The stamps make a second run install nothing; a changed pyproject.toml installs again.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $@

data/raw/icu: | $(VENV)/.installed
	$(BIN)/selfmask simulate icu --stays 600 --out $@

demo: $(VENV)/.installed data/raw/icu
	$(BIN)/dvc repro
	@echo
	@cat reports/$(DATASET)/report.md
	@echo "Pictures:"
	@ls $(CURDIR)/reports/$(DATASET)/*.png

# Two processes of one thread: more threads each would only wait for one another.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Removes what can be built again; data/raw is kept, because it may be yours.
clean:
	rm -rf $(VENV) models metrics reports
	[ ! -d data ] || find data -mindepth 1 -maxdepth 1 ! -name raw -exec rm -rf {} +
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
