# Everything a checkout can do. Paths are relative, so that a space in the checkout's own path does no harm; programs are
# started as `python -m`, so that none depends on the first line of a script.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet
# Arguments for pytest, as in: make test TESTS='tests/unit -x'
TESTS ?=
# Tests that run at the same time. They wait more than they compute: more of them than there are cores do no harm.
WORKERS ?= 4
# Arguments for the demo, as in: make demo DEMO='--procs 2'
DEMO ?=

# The tests start a thousand interpreters: what one has compiled, the others need not compile again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check format bench bench-full clean

help: ## print these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 18

demo: .venv/installed ## analyse Python's standard library on all cores, with a Postgres of its own
	@$(BIN)/python -m tasuki_mp demo $(DEMO)

# A process that is killed while it writes down what it saw leaves a file that can't be combined: it goes without a word.
test: .venv/installed-dev ## run all tests and print what they cover
	@$(BIN)/python -m coverage erase
	@status=0; \
	$(BIN)/python -m coverage run -m pytest --numprocesses $(WORKERS) --dist worksteal $(TESTS) || status=$$?; \
	$(BIN)/python -W 'ignore:Data file' -m coverage combine --quiet || status=$$?; \
	rm -f .coverage.*; \
	$(BIN)/python -m coverage report $(if $(TESTS),--fail-under=0) || status=$$?; \
	exit $$status

check: .venv/installed-dev ## what must hold without running: format, lint, types, layers, generated files
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m mypy
	@$(BIN)/python -m mypy tests/support tests/conftest.py
	@$(BIN)/lint-imports
	@$(BIN)/python scripts/dump_schema.py --check
	@$(BIN)/python -m scripts.bench.report --check

format: .venv/installed-dev ## put the sources into their canonical form
	@$(BIN)/python -m ruff check --fix-only --quiet .
	@$(BIN)/python -m ruff format .

bench: .venv/installed-dev ## measure the program beside bare references, less than twenty minutes
	@$(BIN)/python -m scripts.bench all --pairs 3 --seconds 3 --idle 15

bench-full: .venv/installed-dev ## all of that, the largest tables, and the peers pgqueuer and Celery
	@$(BIN)/python -m scripts.bench full

clean: ## remove the virtual environment and what tools have left
	@rm -rf .venv .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist

# The stamps are older than pyproject.toml only if something may have to be installed.
.venv/installed: pyproject.toml | $(BIN)/python
	@echo "installing tasuki-mp into .venv"
	@$(PIP) install --editable '.[embedded]'
	@touch $@

.venv/installed-dev: pyproject.toml | $(BIN)/python
	@echo "installing tasuki-mp and its tools into .venv"
	@$(PIP) install --editable '.[dev]'
	@touch .venv/installed $@

$(BIN)/python:
	@command -v "$(PYTHON)" > /dev/null || { echo "$(PYTHON) is not there: install Python 3.11 or later, or name it: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$$("$(PYTHON)" --version) is too old: tasuki-mp needs 3.11 or later; name another: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2> /dev/null || { \
		echo "$(PYTHON) can't make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@"$(PYTHON)" -m venv .venv
