# Thin names for the commands that CONTRIBUTING.md explains. PYTHON is the interpreter of your virtual environment.
PYTHON ?= python3
# A folder of public kernels for `make bench-gpu PEERS=DIR` to compare ours with (what it may hold: bench/contrastive.py).
# Without it the one peer linear in memory is a plain loop over chunks, and target 1a cannot pass.
PEERS ?=

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
	for script in tokens decode stats pipeline data_wait contrastive canonical; do \
	  $(PYTHON) bench/$$script.py --json > bench/results/$$script-$$(uname -m).json || exit 1; \
	done

# One failure does not stop what follows; the last line names them all and fails.
bench-gpu:       ## GPU tests, tile sizes, the kernel's and the images' benchmarks into bench/results/, on a machine with CUDA
	mkdir -p bench/results
	@$(PYTHON) -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "bench-gpu: torch sees no CUDA device")'
	@failed=; \
	$(PYTHON) -m pytest -m gpu || failed="$$failed tests"; \
	$(PYTHON) bench/tune_contrastive.py --out bench/results/launches-cuda.json || failed="$$failed tune_contrastive"; \
	launches=; if [ -s bench/results/launches-cuda.json ]; then launches="--launches bench/results/launches-cuda.json"; fi; \
	$(PYTHON) bench/contrastive.py $$launches $(if $(PEERS),--peers '$(PEERS)') \
	  --out bench/results/contrastive-cuda.json --plot bench/results/contrastive-cuda.png || failed="$$failed contrastive"; \
	for script in pipeline data_wait; do \
	  $(PYTHON) bench/$$script.py --out bench/results/$$script-cuda.json || failed="$$failed $$script"; \
	done; \
	if [ -n "$$failed" ]; then echo "bench-gpu: failed:$$failed" >&2; exit 1; fi
