# make demo   build the demo catalog, index it, show answers
# make test   lint, types, import contract, tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# These load OpenVINO, onnxruntime and what exports to them, which disable loggers of others and
# do not get on with the native libraries of the rest: a process of their own.
RUNTIMES = tests/indexing/test_optimized.py tests/indexing/test_builtin_graphs.py tests/benchmarks/test_optimizing.py tests/search/test_asking.py

.PHONY: demo test check clean

demo: $(VENV)/.installed
	$(BIN)/shoplens demo --out demo-out

test: $(VENV)/.installed-dev
	$(MAKE) check

check:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/*.py
	set -e; for part in indexing search training benchmarks; do \
	  $(BIN)/pytest -q tests/$$part $(addprefix --ignore=,$(RUNTIMES)); done
	$(BIN)/pytest -q $(RUNTIMES)

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "shoplens needs Python >= 3.10; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cpu]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cpu,train,bench,serve,dev]'
	touch $@

clean:
	rm -rf $(VENV) demo-out
