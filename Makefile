# Every target sets the checkout up first (scripts/bootstrap.py; instant once done).
#   make test                 the tests, without the slow ones
#   make test ARGS="-k home"  some of them
#   make devnet               a market on this machine: two agents, fifty epochs
#   make bench NAME=gas       one benchmark; all of them without NAME

SHELL := /bin/bash
BIN := .venv/bin

# The first Python that runs and is recent enough; PYTHON=... chooses another.
ifndef PYTHON
PYTHON := $(shell for candidate in python3.11 python3.12 python3.13 python3.14 python3; do \
	"$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo "$$candidate" && break; done)
endif

.PHONY: help test test-slow test-all devnet lint format bench data setup clean

help:
	@sed -n 's/^#   //p' Makefile

setup:
	@$(if $(PYTHON),,$(error Python 3.11 or later is needed: apt-get install -y python3.11 python3.11-dev python3.11-venv))
	@$(PYTHON) scripts/bootstrap.py

# A process more than there are cores: most tests wait for a network or a chain. Files stay
# together, for some set a market up once. Memory, at 0.7 GB a process, is why there are no more
# than four.
# Bytecode is kept, whatever the shell says: a test that starts nodes would compile all of ours in
# each of them, and every process the asserts of all tests.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest
WORKERS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores < 3 ? cores + 1 : 4)))
test: setup
	@$(PYTEST) -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: setup
	@$(PYTEST) -m slow $(ARGS)

test-all: setup
	@$(PYTEST) -m "" $(ARGS)

devnet: setup
	@$(BIN)/pm-node devnet $(ARGS)

lint: setup
	@status=0; \
	$(BIN)/ruff check . || status=1; \
	$(BIN)/ruff format --check . || status=1; \
	$(BIN)/mypy || status=1; \
	$(BIN)/lint-imports || status=1; \
	$(BIN)/python scripts/compile_contracts.py --check || status=1; \
	$(BIN)/python scripts/document_contracts.py --check || status=1; \
	exit $$status

format: setup
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: setup
	@$(BIN)/python scripts/bench.py $(or $(NAME),--all) $(ARGS)

data: setup
	@$(BIN)/python scripts/fetch_data.py

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
