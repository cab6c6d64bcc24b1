# make train   train PPO on CartPole until it is solved, and show the result (installs first)
# make test    format check, lint, types, tests (installs first)
# make docs    the documentation as a site: build/site/index.html
# make clean   remove what these made

# The first Python that really starts (a pyenv shim may not), is new enough and can make a venv.
PYTHON ?= $(shell for python in python3.12 python3.11 python3 python; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
# Tests that start processes wait most of the time, so four files at once keep two cores busy.
JOBS := 4
TRAIN := train configs/cartpole_ppo.yaml evaluation.stop_at=475

.PHONY: help install train test docs clean

help:
	@sed -n 's/^# //p;/^$$/q' Makefile

install: $(INSTALLED)

train: $(INSTALLED)
	@$(BIN)/fastrl $(TRAIN)

# The tests start hundreds of processes. Even where PYTHONDONTWRITEBYTECODE is set, they share bytecode.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(INSTALLED)
	@echo "== format" && $(BIN)/ruff format --check --quiet .
	@echo "== lint" && $(BIN)/ruff check --quiet .
	@# Beside mypy, the other core compiles kernels and test modules once for all processes.
	@echo "== types" && { { $(BIN)/python -W ignore -m tests.compile_kernels; \
	$(BIN)/python -m pytest -q --collect-only >/dev/null; } & \
	$(BIN)/mypy --no-error-summary; types=$$?; wait; exit $$types; }
	@echo "== tests" && $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder
	@echo "== tests of clusters" && $(BIN)/python -m pytest -q -m "ray and not slow" tests/cluster
	@echo "== notebooks" && $(BIN)/python -m pytest -q -m notebook tests/test_notebooks.py

docs: $(INSTALLED)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs --quiet build && echo "build/site/index.html"

$(INSTALLED): requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: needs Python 3.11 or newer with venv; on Debian: \
	apt install python3 python3-venv; or name one: make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "== installing into $(VENV) with $$($(PYTHON) --version); takes some minutes, once"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install -r requirements.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find fastrl tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
