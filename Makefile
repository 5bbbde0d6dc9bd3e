# Thin names for the commands that CONTRIBUTING.md explains. PYTHON is the interpreter of your virtual environment.
PYTHON ?= python3
# A folder of public kernels for `make bench-gpu PEERS=DIR` to compare ours with (what it may hold: bench/contrastive.py).
# Without it the one peer linear in memory is a plain loop over chunks, and target 1a cannot pass.
PEERS ?=

.PHONY: help build test test-long test-lowest docs lint workflows bench bench-gpu bench-gpu-quick

help:            ## this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## +/\t/' | sort

build:           ## compile the extension and install varalign in place, with the tools for work on it
	$(PYTHON) -m pip install -e '.[dev]'

# Two processes of one thread each; `pytest` alone runs the same tests in one.
test:            ## the Python tests and the Rust tests
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2
	cargo test --release

test-long:       ## the tests marked `long`: before a release, and after a change to what they test
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m long

test-lowest:     ## tests with the oldest versions of the dependencies, in an environment made for it
	PYTHON=$(PYTHON) .ci/lowest

docs:            ## the pages of docs/ as HTML into docs/_build/html; a warning is an error
	$(PYTHON) -m sphinx -q -W --keep-going -b html docs docs/_build/html

lint:            ## ruff, mypy, the extension's stubs, rustfmt, clippy
	$(PYTHON) -m ruff check python kernels tests bench
	$(PYTHON) -m ruff format --check python kernels tests bench
	$(PYTHON) -m mypy
	$(PYTHON) -m mypy.stubtest varalign._core
	cargo fmt --check
	cargo clippy --release --all-targets -- -D warnings

workflows:       ## the hosted workflows: their form, and what is unsafe in them
	check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	zizmor --offline --no-progress .github

bench:           ## every benchmark that runs on this machine, as JSON lines into bench/results/
	mkdir -p bench/results
	for script in tokens decode stats pipeline shards reading data_wait training_step features contrastive canonical recall tsne commands serve; do \
	  $(PYTHON) bench/$$script.py --json > bench/results/$$script-$$(uname -m).json || exit 1; \
	done

CUDA_CHECK = $(PYTHON) -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "$@: torch sees no CUDA device")'
CONTRASTIVE = $(PYTHON) bench/contrastive.py $(if $(PEERS),--peers '$(PEERS)') \
	  --out bench/results/contrastive-cuda.json --plot bench/results/contrastive-cuda.png
FAIL_IF_ANY = if [ -n "$$failed" ]; then echo "$@: failed:$$failed" >&2; exit 1; fi

# One failure does not stop what follows; the last line names them all and fails.
bench-gpu:       ## GPU tests, the kernel's and the images' benchmarks into bench/results/, on a machine with CUDA
	mkdir -p bench/results
	@$(CUDA_CHECK)
	@failed=; \
	$(PYTHON) -m pytest -m gpu || failed="$$failed tests"; \
	$(CONTRASTIVE) || failed="$$failed contrastive"; \
	for script in pipeline data_wait; do \
	  $(PYTHON) bench/$$script.py --out bench/results/$$script-cuda.json || failed="$$failed $$script"; \
	done; \
	$(FAIL_IF_ANY)

# The cells of the targets and two small sizes.
bench-gpu-quick: ## the same in short: GPU tests without the whole grid, and the kernel's targets; no images
	mkdir -p bench/results
	@$(CUDA_CHECK)
	@failed=; \
	VARALIGN_GPU_GRID=pairs $(PYTHON) -m pytest -m gpu || failed="$$failed tests"; \
	$(CONTRASTIVE) --sizes 32768,262144,1024,4096 --dimensions 512 --dtypes bfloat16 --kinds 'forward and backward' \
	  || failed="$$failed contrastive"; \
	$(FAIL_IF_ANY)
