# Two commands on a bare machine: `make demo` and `make test`. Each sets up all it needs in .venv.
# A stamp per extra of pyproject.toml remembers what is installed there.

VENV := .venv
BIN := $(VENV)/bin
LOCKS := deploy/locks
LOCK := $(LOCKS)/constraints.txt
# 3.10 to 3.12 (see pyproject.toml): the first interpreter that is one of them.
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && { echo $$p; break; }; done)

# Nothing here phones home, whoever imports ONNX Runtime.
export ORT_DISABLE_TELEMETRY := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export UV_SYSTEM_CERTS := 1
# WHEELS=folder: everything is installed from there, nothing is fetched; `make wheels` fills it.
ifdef WHEELS
export PIP_NO_INDEX := 1
export PIP_FIND_LINKS := $(abspath $(WHEELS))
export UV_NO_INDEX := 1
export UV_FIND_LINKS := $(abspath $(WHEELS))
endif

.PHONY: help install demo test test-all lint types unit rest zoo bench gpu containers wheels durations reference methods lock \
	clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.10, 3.11 or 3.12 is needed and was not found on PATH; name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@bash deploy/system-packages.sh base
	$(PYTHON) -m venv $(VENV)

# The two that have to be quick have complete locks: nothing is resolved, and uv fetches in parallel. It reads no
# pip.conf, so where only a mirror is reachable, pip does it.
PIP := $(BIN)/python -m pip install --quiet --no-compile
define pinned
	@$(PIP) uv || true
	$(BIN)/uv pip install --quiet --no-deps --python $(BIN)/python --requirement $(1) || \
		$(PIP) --no-deps --requirement $(1)
endef

$(VENV)/.installed-demo: $(VENV)/bin/python pyproject.toml $(LOCKS)/demo.txt
	$(call pinned,$(LOCKS)/demo.txt)
	$(PIP) --no-deps --editable .
	@touch $@

# torch by pip alone: where a CPU build lies among pip's `find-links`, pip takes it; PyPI's comes with CUDA.
$(VENV)/.installed-test: $(VENV)/bin/python pyproject.toml $(LOCKS)/test.txt $(LOCK)
	@bash deploy/system-packages.sh
	$(call pinned,$(LOCKS)/test.txt)
	$(PIP) --constraint $(LOCK) torch
	$(PIP) --no-deps --editable .
	@touch $@

# ONNX Runtime's GPU build takes the place of the CPU's, since both install one module; where there is no GPU, nothing.
GPU_WHEELS := 'onnxruntime-gpu[cuda,cudnn]>=1.21,<2'
$(VENV)/.installed-gpu: $(VENV)/.installed-test
	@test ! -e /dev/nvidiactl || { $(BIN)/python -m pip uninstall --quiet --yes onnxruntime && $(PIP) $(GPU_WHEELS); }
	@touch $@

$(VENV)/.installed-%: $(VENV)/bin/python pyproject.toml $(LOCK)
	$(PIP) --constraint $(LOCK) --editable '.[$*]'
	@touch $@

# Other people's networks that the exporter is tried on. Apart from the environment and without their dependencies: a
# torchvision from PyPI would replace a CPU build of torch.
build/zoo/.installed: $(VENV)/.installed-test $(LOCKS)/zoo.txt
	$(PIP) --no-deps --upgrade --target build/zoo --requirement $(LOCKS)/zoo.txt
	@touch $@

install: $(VENV)/.installed-client,export,embedded  ## export, serve and ask from .venv: for a network of yours
	@echo "Installed. Now: . $(VENV)/bin/activate, then: equipoise --help, or export/examples"

demo: $(VENV)/.installed-demo  ## serve the three reference models and decide on real images
	$(BIN)/equipoise demo

test: lint types unit  ## lint, types and the quick tests: at most 15 minutes with installation, no root

test-all: test rest  ## `make test`, then the rest: slow tests, soak, faults, PACS, viewer, ten networks of the zoo

lint: $(VENV)/.installed-test  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test  ## mypy, strict on the core
	$(BIN)/mypy

unit: $(VENV)/.installed-test  ## the quick tests, as a plain `.venv/bin/pytest` runs them
	@echo "Left to \`make test-all\`: tests marked slow, root (network namespaces, file systems, containers) or zoo."
	@test -n "$$EQUIPOISE_DATA" || echo "EQUIPOISE_DATA is not set: tests on the reference data are skipped."
	$(BIN)/python -m pytest

# Without root, only the tests that do not need it run, and a message says so.
AS_ROOT := $(shell test "$$(id -u)" = 0 || echo " and not root")
rest: $(VENV)/.installed-test build/zoo/.installed  ## what `make test` leaves out (a third of it: REST="--shard 1/3")
	@test -z "$(AS_ROOT)" || echo "You are not root: tests marked root are left out. As root: make rest"
	$(BIN)/python -m pytest -m "(slow or root or zoo) and not exhaustive$(AS_ROOT)" $(REST)

zoo: $(VENV)/.installed-test build/zoo/.installed  ## export and prove some 50 networks of other people (slow)
	$(BIN)/python -m pytest -m zoo -n0

# The longest files start first, and CI's shards are equally long.
durations: $(VENV)/.installed-test build/zoo/.installed  ## measure how long each test file takes (an hour)
	EQUIPOISE_SOAK_MINUTES=10 $(BIN)/python -m pytest -m "not exhaustive$(AS_ROOT)" --measure tests/durations.json

bench: $(VENV)/.installed-test  ## measure and write tests/benchmarks/RESULTS.md (QUICK=1: small sizes)
	$(BIN)/python -m tests.benchmarks.run $(if $(QUICK),--quick) --into build/benchmarks
	$(BIN)/python -m tests.benchmarks.results build/benchmarks

reference: $(VENV)/.installed-test  ## rebuild and republish the reference pairs (RETRAIN=--retrain: train their weights first)
	$(BIN)/python -m equipoise_lab.reference.build $(RETRAIN)

# Nothing is fetched while it measures. On a GPU without network: WHEELS=folder, and a torch with CUDA in it.
gpu: $(VENV)/.installed-gpu  ## measure on this machine's GPU, at most 8 minutes; without one on the CPU, and marked so
	$(BIN)/python -m tests.gpu.run --into build/gpu $(GPU)

containers: $(VENV)/.installed-test  ## build the images and run compose and chart in containers here (as root, podman; half an hour)
	$(BIN)/python -m tests.containers.run $(CONTAINERS)

wheels: $(VENV)/bin/python  ## download what `make gpu WHEELS=folder` installs, on a machine like that one
	@test -n "$(WHEELS)" || { echo "Name the folder: make wheels WHEELS=/path/to/folder"; exit 1; }
	env -u PIP_NO_INDEX $(BIN)/python -m pip download --dest $(WHEELS) --constraint $(LOCK) \
		--requirement $(LOCKS)/test.txt torch uv hatchling editables $(GPU_WHEELS)

# What the comparison in export/equipoise_lab/README.md rests on: 91 processor minutes of training, resumable, and more to measure it all.
METHODS := mc_dropout deterministic mc_unetpp mc_transunet ensemble dropout_ensemble calibrated heteroscedastic segwithu student cascade
methods: $(VENV)/.installed-test  ## train every uncertainty method from scratch, compare them, measure what they cost
	$(BIN)/python -m equipoise_lab.methods.command --into build/methods --from-scratch --no-calibrate
	for data in hippocampus nuclei; do \
		$(BIN)/equipoise compare $(addprefix $${data}_,$(METHODS)) --repository build/methods \
			--data reference:$$data --report build/methods/$$data.html || exit 1; \
	done
	$(BIN)/python -m tests.benchmarks.bench_methods
	$(BIN)/python -m tests.benchmarks.bench_volumes

# The locks of demo and test leave out torch and what only torch needs: see .installed-test.
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.10 --no-header --no-annotate pyproject.toml
lock: $(VENV)/bin/python  ## pin every dependency anew
	$(PIP) uv
	$(COMPILE) --extra test --output-file $(LOCK)
	echo "torch ; sys_platform == 'never'" > $(VENV)/without-torch.txt
	for extra in demo test; do \
		$(COMPILE) --extra $$extra --constraint $(LOCK) --override $(VENV)/without-torch.txt \
			--output-file $(LOCKS)/$$extra.txt || exit 1; \
	done
	sed -i "s/ and implementation_name == 'cpython' and platform_python_implementation == 'CPython'//" \
		$(LOCK) $(LOCKS)/demo.txt $(LOCKS)/test.txt

clean:  ## remove what was built and installed
	rm -rf $(VENV) build dist
