# One environment, in .venv, with the exact versions of constraints.txt; everything runs from it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ROOMS := src exporter models passes runtime trt_plugins
MAKEFLAGS += --no-builtin-rules --no-print-directory

.DEFAULT_GOAL := help
.PHONY: help env test quick lint types pytest gpu demo clean FORCE

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: $(VENV)/installed ## Create or refresh the environment in .venv

test: lint types pytest ## Run every check: ruff, mypy --strict, pytest

quick: lint ## Run what answers soon: ruff, and the tests that export nothing
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m 'not slow'

lint: env
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: env
	$(BIN)/mypy -p intaglio
	$(BIN)/mypy tests $(wildcard benchmarks/*.py)

pytest: env # two workers of one thread each: more threads run slower on models this small
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

gpu: ## Compare and time every kernel on this machine's GPU, from the checkout alone
	@mkdir -p build
	$(PYTHON) benchmarks/gpu_kernels.py --json > build/gpu_kernels.json
	mv build/gpu_kernels.json benchmarks/results/gpu_kernels.json

demo: env ## Export a trained checkpoint, verify it, stream text from it
	rm -rf demo
	$(BIN)/intaglio export models/checkpoints/gated_deltanet.pt -o demo/bundle
	$(BIN)/intaglio verify demo/bundle --against models/checkpoints/gated_deltanet.pt
	$(BIN)/intaglio run demo/bundle --prompt 'def ' --steps 400 --temperature 0.7 --seed 1

clean: ## Remove the environment and everything built
	rm -rf $(VENV) build dist demo *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The strict editable install is a tree of links, which type checkers can read; it does not see
# files that come or go, hence the list of them as a prerequisite.
$(VENV)/installed: pyproject.toml constraints.txt $(VENV)/files
	$(BIN)/pip install -c constraints.txt --no-build-isolation -C editable_mode=strict -e '.[dev]'
# Triton's server for the tests.  Its own Python, which they do not use, asks for an older numpy.
	@if [ "$$(uname -sm)" = "Linux x86_64" ]; then \
	$(BIN)/pip install -c constraints.txt --no-deps nvidia-pytriton; fi
	@touch $@

$(VENV)/files: FORCE $(BIN)/pip
	@find $(ROOMS) -name '*.py' -o -name '*.json' -o -name '*.css' -o -name '*.hpp' -o -name py.typed | sort > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "intaglio needs Python 3.11 or newer; $(PYTHON) is not. Say which: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt pip setuptools
