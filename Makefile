# make run    start duly here with the examples loaded, and watch them
# make test   the whole test suite
# make check  the gate: format, lint, types, layers, tests (CI runs exactly this)
# make soak   the long versions of what the gate cuts short; each prints its own report
# make versus duly beside its peers (bench/versus/README.md); 20 to 30 minutes
# make docs   the references in docs/reference, written anew from what they describe
# Each target does its own set-up in .venv; only Python >= 3.11 and make are needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: run test check soak docs format bench clean help
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# make /make /p' $(MAKEFILE_LIST)

$(VENV)/run.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("duly needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("duly needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/run.stamp

run: $(VENV)/run.stamp
	$(BIN)/python examples/run.py

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

soak: $(VENV)/dev.stamp
	$(BIN)/python tests/simulation/soak.py --hours 100
	$(BIN)/python tests/soak/crash_rounds.py
	$(BIN)/python tests/soak/crash_rounds.py 10 7 2
	$(BIN)/python tests/soak/cluster_faults.py
	$(BIN)/python tests/soak/hostile_table.py
	$(BIN)/python tests/soak/power_loss.py
	$(BIN)/python tests/soak/dst_year.py
	$(BIN)/python tests/soak/steady_load.py

format: $(VENV)/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/run.stamp
	$(BIN)/duly bench

versus: $(VENV)/run.stamp
	$(BIN)/python bench/versus/run.py --write docs/comparison.md

docs: $(VENV)/run.stamp
	$(BIN)/python docs/reference/generate.py

clean:
	rm -rf $(VENV) bench/versus/.venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
