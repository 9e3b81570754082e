# `make demo` and `make test` set up everything: a virtual environment in .venv with the versions of the lock files.
# Stamps in .venv record what was installed, so that a second run installs nothing.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin
RUN := .venv/installed-run
DEV := .venv/installed-dev
PROJECTS := proto/pyproject.toml store/pyproject.toml server/pyproject.toml worker/pyproject.toml client/pyproject.toml local/pyproject.toml
SOURCES := proto store server worker client local tests bench scripts deploy

.PHONY: help setup demo test stress check lint type format proto sdk proto-check compose-check bench bench-gpu bench-app screenshots peers truth lock clean
.PHONY: docs docs-check

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(RUN): scripts/setup requirements.lock requirements-redis.lock $(PROJECTS)
	@scripts/setup run

$(DEV): scripts/setup requirements-dev.lock $(RUN)
	@scripts/setup dev

setup: $(DEV) ## Install everything for development into .venv

demo: $(RUN) ## Train two crosscoders on the spot and browse them (ARGS=--once: end with a summary)
	@$(BIN)/crosscope demo --recipes recipes $(ARGS)

test: $(DEV) ## Run the tests (ARGS="tests/client -k name": some of them)
	@scripts/run-tests $(ARGS)

stress: $(DEV) ## Measure under attack and overload, minutes long (ARGS="--minutes 1 --only hostile")
	@scripts/run-stress $(ARGS)

check: lint type proto-check compose-check docs-check ## Everything that checks the code without running it

lint: $(DEV) ## Lint, and check the formatting
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

type: $(DEV) ## Check the types
	@$(BIN)/basedpyright

format: $(DEV) ## Format, and fix what ruff can fix
	@$(BIN)/ruff check --fix --exit-zero --quiet
	@$(BIN)/ruff format

proto: $(DEV) ## Generate the Python code of the .proto files
	@$(BIN)/python proto/generate.py

sdk: $(DEV) ## Write the blocking half of the SDK from the asynchronous one
	@$(BIN)/python client/generate.py

proto-check: $(DEV) ## Lint the .proto files, and find breaking changes and stale generated code
	@scripts/check-proto

compose-check: $(DEV) ## Check docker-compose.yml against the Compose schema
	@scripts/check-compose

docs: $(DEV) ## Build the site of docs/ into site/ (ARGS=serve: show it and rebuild on changes)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs $(or $(ARGS),build --strict)

docs-check: $(DEV) ## Build the site and throw it away: broken links and missing files fail
	@scripts/check-docs

bench: $(DEV) ## Measure against references (ARGS="--list": the benches; ARGS="--quick": only a trial run)
	@$(BIN)/python -m bench $(ARGS)

bench-gpu: $(DEV) ## Measure on a GPU, beside what it should reach (ARGS=--dry: tiny, on the CPU)
	@$(BIN)/python -m bench.gpu $(ARGS)

bench-app: $(DEV) ## Measure the app in a headless Chromium (ARGS="--json FILE": lines of JSON too)
	@CHROMIUM=$$(scripts/find-chromium) $(BIN)/python -m bench.app $(ARGS)

screenshots: $(DEV) ## Take the pictures of docs/ from a copy of the finished demo (ARGS="--home DIR": another home)
	@CHROMIUM=$$(scripts/find-chromium) $(BIN)/python scripts/screenshots $(ARGS)

peers: $(DEV) ## Install published trainers apart, and measure a training step against them
	@$(BIN)/pip install --quiet --no-deps --upgrade --target .venv/peers -r bench/peers.txt
	@$(BIN)/python -m bench --only peers $(ARGS)

truth: $(RUN) ## Train on planted latents and score what is found (ARGS="--seeds 1 --steps 1500": a quick run)
	@$(BIN)/python -m bench.truth $(ARGS)

lock: $(DEV) ## Resolve the dependencies anew and write the lock files
	@$(BIN)/python scripts/lock.py

clean: ## Remove .venv, caches and build leftovers
	rm -rf .venv site .pytest_cache .ruff_cache .hypothesis */*.egg-info */build
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
