# Thin names for the commands that CONTRIBUTING.md explains. PYTHON is the interpreter of your virtual environment.
PYTHON ?= python3

.PHONY: help build test lint bench bench-gpu

help:            ## this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## +/\t/' | sort

build:           ## compile the extension and install varalign in place, with the tools for work on it
	$(PYTHON) -m pip install -e '.[dev]'

test:            ## the Python tests and the Rust tests
	$(PYTHON) -m pytest
	cargo test --release

lint:            ## ruff, mypy, the extension's stubs, rustfmt, clippy
	$(PYTHON) -m ruff check python kernels tests bench
	$(PYTHON) -m ruff format --check python kernels tests bench
	$(PYTHON) -m mypy
	$(PYTHON) -m mypy.stubtest varalign._core
	cargo fmt --check
	cargo clippy --release --all-targets -- -D warnings

bench:           ## every benchmark that runs on this machine, as JSON lines into bench/results/
	mkdir -p bench/results
	for script in tokens decode stats pipeline contrastive canonical; do \
	  $(PYTHON) bench/$$script.py --json > bench/results/$$script-$$(uname -m).json || exit 1; \
	done

bench-gpu:       ## the GPU tests and the kernel's benchmark, on a machine with CUDA
	$(PYTHON) -m pytest -m gpu
	mkdir -p bench/results
	$(PYTHON) bench/contrastive.py --json > bench/results/contrastive-cuda.json
