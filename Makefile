# Two commands on a bare machine: `make demo` and `make test`. Each sets up all it needs in .venv.
# EXTRAS of pyproject.toml land in one environment; a stamp per set remembers what is there.

VENV := .venv
BIN := $(VENV)/bin
LOCK := deploy/locks/constraints.txt
# 3.10 to 3.12 (see pyproject.toml): the first interpreter that is one of them.
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && { echo $$p; break; }; done)

# Nothing here phones home, whoever imports ONNX Runtime.
export ORT_DISABLE_TELEMETRY := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test lint types unit zoo bench methods lock reference clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.10, 3.11 or 3.12 is needed and was not found on PATH; name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@bash deploy/system-packages.sh base
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: $(VENV)/bin/python pyproject.toml $(LOCK)
	@case "$*" in test|bench) bash deploy/system-packages.sh;; esac
	$(BIN)/python -m pip install --quiet --constraint $(LOCK) --editable '.[$*]'
	@touch $@

demo: $(VENV)/.installed-demo  ## serve the three reference models and decide on real images
	$(BIN)/python -m equipoise_deploy.demo

test: lint types unit  ## everything CI runs

lint: $(VENV)/.installed-test  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test  ## mypy, strict on the core
	$(BIN)/mypy

# Other people's networks that the exporter is tried on. Apart from the environment and without their dependencies: a
# torchvision from PyPI would replace a CPU build of torch.
build/zoo/.installed: $(VENV)/.installed-test deploy/locks/zoo.txt
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target build/zoo --requirement deploy/locks/zoo.txt
	@touch $@

unit: $(VENV)/.installed-test  ## every test, slow ones and the pipeline against the real server included
	$(BIN)/python -m pytest -m "not zoo"

zoo: $(VENV)/.installed-test build/zoo/.installed  ## export and prove some 40 networks of other people (slow)
	$(BIN)/python -m pytest -m zoo -n0

bench: $(VENV)/.installed-bench  ## what T samples cost, in process and served, against what people write today
	$(BIN)/python tests/benchmarks/bench_export_cost.py
	$(BIN)/python tests/benchmarks/bench_serving.py
	$(BIN)/python tests/benchmarks/bench_load_generator.py
	for what in flat large volume; do $(BIN)/python tests/benchmarks/bench_memory.py $$what || exit 1; done
	$(BIN)/python tests/benchmarks/bench_faults.py
	mkdir -p build && $(BIN)/python tests/benchmarks/bench_soak.py --json build/soak.json --plot build/soak.png

reference: $(VENV)/.installed-test  ## rebuild and republish the reference pairs (RETRAIN=--retrain: train their weights first)
	$(BIN)/python -m equipoise_lab.reference.build $(RETRAIN)

# What the README's comparison rests on: 91 processor minutes of training, resumable, and more to measure it all.
METHODS := mc_dropout deterministic mc_unetpp mc_transunet ensemble dropout_ensemble calibrated heteroscedastic segwithu student cascade
methods: $(VENV)/.installed-test  ## train every uncertainty method from scratch, compare them, measure what they cost
	$(BIN)/equipoise train --into build/methods --from-scratch --no-calibrate
	for data in hippocampus nuclei; do \
		$(BIN)/equipoise compare $(addprefix $${data}_,$(METHODS)) --repository build/methods \
			--data reference:$$data --report build/methods/$$data.html || exit 1; \
	done
	$(BIN)/python tests/benchmarks/bench_methods.py
	$(BIN)/python tests/benchmarks/bench_volumes.py

lock: $(VENV)/bin/python  ## pin every dependency anew
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --extra bench --no-header --no-annotate \
		pyproject.toml --output-file $(LOCK)

clean:  ## remove what was built and installed
	rm -rf $(VENV) build dist
