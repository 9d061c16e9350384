# make demo: install, simulate a small ICU cohort, run the whole pipeline.  make test: the default test suite.
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test slow lint clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet 'torch>=2.6,<2.14'
	$(VENV)/bin/python -m pip install --quiet -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet -e '.[dev]'
	touch $@

data/raw/icu: | $(VENV)/.installed
	selfmask simulate icu --stays 600 --out $@

demo: $(VENV)/.installed data/raw/icu
	dvc repro
	@cat reports/icu/report.md
	@echo "pictures: reports/icu/*.png"

test: $(VENV)/.installed-dev
	python -m pytest

slow: $(VENV)/.installed-dev
	python -m pytest -m slow

lint: $(VENV)/.installed-dev
	ruff check .
	ruff format --check .
	mypy
	lint-imports

clean:
	rm -rf $(VENV) data models metrics reports .mypy_cache .ruff_cache .pytest_cache
