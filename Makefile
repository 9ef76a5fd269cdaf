# Two commands set everything up: make demo, make test. Any Python of at least 3.11 will do: make PYTHON=python3.12 test
PYTHON ?= python3
VENV ?= .venv
# Most of a test's time goes into compiling on one core; a file's tests stay together and share what they compiled.
WORKERS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test test-mission test-all fuzz faults audit lint bench bench-env clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/adaptax demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-mission: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m mission

test-all: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "slow or not slow"

# How many examples the fuzz tests take, as a multiple; the ordinary suite takes 20.
FUZZ ?= 100
fuzz: $(VENV)/.installed-test
	ADAPTAX_FUZZ=$(FUZZ) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile tests/fuzz

# Kills, errors of the system and damaged bytes in short runs; each must end bit for bit as if undisturbed.
FAULTS ?= 1000
faults: $(VENV)/.installed-test
	$(BIN)/python benchmarks/faults.py --faults $(FAULTS)

# Known vulnerabilities of the tested versions, by pip-audit in an environment of its own.
audit:
	$(PYTHON) benchmarks/audit.py

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest tests/test_imports.py

bench: $(VENV)/.installed-test .venv-bench/.installed
	$(BIN)/python benchmarks/all.py --minutes 40

bench-env: .venv-bench/.installed

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("adaptax needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -q -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -q -c constraints.txt -e '.[test]'
	touch $@ $(VENV)/.installed

.venv-bench/.installed: benchmarks/requirements-peers.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip --disable-pip-version-check install -q -r benchmarks/requirements-peers.txt
	touch $@

clean:
	rm -rf $(VENV) .venv-bench build dist
