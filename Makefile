# Two commands are enough: `make serve` and `make test`.
PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/quickstart.yaml
JOBS ?= 2
BIN := $(VENV)/bin
CPP := $(wildcard inference/backends/cpu/*.h inference/backends/cpu/*.cpp tests/inference/backends/cpu/*.cpp tests/inference/backends/cpu/*/*.h)
# Each installation leaves its report, for make audit.
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt \
	--report $(VENV)/installed-$$(date +%s).json

.PHONY: help serve test eval bench chaos peers lint audit format clean

help:
	@echo "make serve   set up and serve the embedded model on http://127.0.0.1:8000 (CONFIG=$(CONFIG))"
	@echo "make test    set up and run all tests, JOBS=$(JOBS) at a time"
	@echo "make eval    measure what steering does; writes docs/steering-evaluation.md"
	@echo "make bench   measure throughput and latency under load, beside the peers that are installed"
	@echo "make chaos   ten minutes of load while the worker is killed and stopped at random"
	@echo "make peers   install llama.cpp and vLLM into .peers, for make bench"
	@echo "make lint    set up and run ruff, mypy and import-linter"
	@echo "make audit   set up and check that what was installed is what is locked"
	@echo "make format  let ruff format the code"
	@echo "make clean   remove the virtual environment"

serve: $(VENV)/.serve
	@exec $(BIN)/tiller serve --config $(CONFIG)

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadscope --no-loadscope-reorder

eval: $(VENV)/.eval
	$(BIN)/python -m benchmarks.steering

bench: $(VENV)/.eval
	$(BIN)/python -m benchmarks.peers $(BENCH)

chaos: $(VENV)/.eval
	$(BIN)/python -m benchmarks.chaos

peers:
	PYTHON=$(PYTHON) benchmarks/peers/install.sh

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: $(VENV)/.dev
	$(BIN)/python dependencies/audit.py $(VENV)/installed-*.json

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CPP)

clean:
	rm -rf $(VENV)

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tiller needs Python 3.11 or later; name one with make PYTHON=…")'
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.serve: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing what the server needs (some minutes the first time)"
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.serve
	@echo "Installing what development needs"
	@$(INSTALL) --editable '.[dev]'
	@# An oracle of the tests. It asks for transformers < 5, but works with ours.
	@$(INSTALL) --no-deps steering-vectors
	@touch $@

$(VENV)/.eval: $(VENV)/.dev
	@echo "Installing what the evaluation needs"
	@$(INSTALL) --editable '.[dev,eval]'
	@touch $@
