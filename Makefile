# Each target sets up what it needs first. GNU make 3.81 and a POSIX shell are enough; see docs/contributing.md.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check format bench bench-peers bench-full bench-report bench-baseline corpus clean

# With it each of the processes that tests start would compile what it imports.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

setup: ## Make or update the environment .venv (PYTHON=/path/to/python to choose)
	@sh scripts/setup.sh

demo: setup ## Do the whole job on an archive made on the spot (KEEP=1 leaves the server running)
	@$(BIN)/cube demo $(if $(KEEP),--keep)

test: setup ## Run the tests (ARGS="tests/test_project.py -k name" to choose)
	@$(PYTEST) --numprocesses auto --dist loadfile -m "not slow" $(ARGS)

test-all: setup ## Run the tests with their full matrices
	@$(PYTEST) --numprocesses auto --dist loadfile $(ARGS)

check: setup ## Check format, lint, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Format the code and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

corpus: setup ## Compare every TIFF of a folder with rasterio, as a table (CORPUS=/some/folder TO=build/corpus.md)
	@$(BIN)/python -m scripts.corpus $(or $(CORPUS),$(CUBE_TEST_DATA),../shared/data) $(if $(TO),--to $(TO))

bench: setup ## Run the benchmarks, the important workloads at 50 ms (ARGS="-k scan" to choose)
	@$(PYTEST) benchmarks --benchmark-enable --benchmark-only $(ARGS)

bench-peers: setup ## Make an environment for each system that the benchmark compares (some 2 GB)
	@$(BIN)/python -m benchmarks.environments

bench-full: bench-peers ## Run all workloads by all peers at 0, 10, 50 and 100 ms, and write docs/performance.md: hours
	@$(PYTEST) benchmarks/bench_peers.py benchmarks/bench_scaling.py --benchmark-enable --benchmark-only --everything \
		--benchmark-json .benchmarks/full.json $(ARGS)
	@$(BIN)/python -m benchmarks.report .benchmarks/full.json

bench-report: setup ## Write docs/performance.md of the last `make bench-full` (JSON="files" for other runs)
	@$(BIN)/python -m benchmarks.report $(or $(JSON),.benchmarks/full.json)

bench-baseline: setup ## Record requests and bytes of our workloads as what the tests allow
	@$(BIN)/python -m benchmarks.baseline --renew
	@$(BIN)/python -m benchmarks.baseline --renew --full

clean: ## Delete what these targets made, .venv and the demo's archive included
	rm -rf .venv .tools demo dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .benchmarks
	find cube scripts server tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
