# `make test` and `make demo` need nothing but Python 3.11 or newer; PYTHON=... chooses one.
# ARGS=... is passed on to pytest or to the demo; WORKERS=... is how many of pytest's processes share the tests.

VENV   := .venv
BIN    := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest

PYTHON  ?=
# Tests of real processes wait more than they work, so there are more of them than cores.
WORKERS ?= 4
PYTHON_CANDIDATES := $(if $(PYTHON),$(PYTHON),python3.13 python3.12 python3.11 python3 python $(sort $(wildcard $(HOME)/.pyenv/versions/3.1[1-9]*/bin/python)))

# pip reads the dependencies from setup.cfg, so a stamp older than it means: install again.
TEST_STAMP := $(VENV)/.installed-for-test
DEMO_STAMP := $(VENV)/.installed-for-demo

.DEFAULT_GOAL := help
.PHONY: help test demo check lint types layers docs dashboards pictures bench soak format build clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: $(TEST_STAMP) ## Run all tests, the long ones scaled down
	@$(PYTEST) -n $(WORKERS) --dist loadfile -m "not benchmark" $(ARGS)

demo: $(DEMO_STAMP) ## Watch a real worker at work, in this terminal (ARGS="--for 30" ends by itself)
	@$(BIN)/chaperone demo $(ARGS)

check: lint types layers docs ## Lint, types, layers and the tables in the docs, in seconds

lint: $(TEST_STAMP)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo "make format puts these in shape:" >&2; $(BIN)/ruff format --check . >&2; exit 1; }
	@echo "lint: ok"

types: $(TEST_STAMP)
	@$(BIN)/mypy --no-error-summary
	@echo "types: ok"

layers: $(TEST_STAMP)
	@out=$$($(BIN)/lint-imports --no-logo --no-cache 2>&1) || { echo "$$out" >&2; exit 1; }
	@echo "layers: ok"

docs: $(TEST_STAMP)
	@out=$$($(PYTEST) -q tests/unit/test_docs.py 2>&1) || { echo "$$out" >&2; exit 1; }
	@echo "docs: ok"

dashboards: $(TEST_STAMP) ## Write grafana/dashboards from the code beside them
	@$(BIN)/python -m grafana

pictures: $(TEST_STAMP) ## Draw the dashboards for docs/ from the data of a real fleet, in six minutes
	@$(PYTEST) -q -m benchmark tests/e2e/test_pictures.py $(ARGS)

bench: $(TEST_STAMP) ## Print the figures of docs/performance.md
	@$(PYTEST) -q -s --timeout=1800 -m benchmark tests/benchmarks $(ARGS)

soak: $(TEST_STAMP) ## Run the long tests at full size
	@CHAPERONE_TEST_SCALE=1 $(PYTEST) --timeout=7200 -m soak $(ARGS)

format: $(TEST_STAMP) ## Put the code in shape
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .

build: $(TEST_STAMP) ## Build the wheel and the source archive in dist/
	@$(BIN)/python -m build --outdir dist .

clean: ## Remove what was built or cached, and .venv
	@rm -rf $(VENV) build dist *.egg-info .coverage .coverage.* htmlcov .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(TEST_STAMP): setup.cfg | $(BIN)/python
	@echo "Installing what the tests need into $(VENV) (once; about a minute) ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable ".[dev,postgres,mysql,ulid,rabbitmq]"
	@touch $@

$(DEMO_STAMP): setup.cfg | $(BIN)/python
	@echo "Installing what the demo needs into $(VENV) (once; about half a minute) ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable ".[demo]"
	@touch $@

# Each candidate is run, not just looked up: version managers put commands on the PATH that only print an error,
# and a Python without ensurepip cannot make an environment.
$(BIN)/python:
	@for candidate in $(PYTHON_CANDIDATES); do \
		if "$$candidate" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
			echo "Making $(VENV) with $$("$$candidate" --version) ..."; \
			exec "$$candidate" -m venv $(VENV); \
		fi; \
	done; \
	echo "dramatiq-chaperone needs Python 3.11 or newer, with its venv module; none of these is one:" >&2; \
	echo "  $(PYTHON_CANDIDATES)" >&2; \
	echo "Install one (on Debian and Ubuntu: apt-get install python3 python3-venv), or name it: make test PYTHON=/path/to/python" >&2; \
	exit 1
