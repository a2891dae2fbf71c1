# make demo   a trained YOLACT from checkpoint to masks and figures
# make test   lint, types, fast tests; make test-all: the slow ones too
# make hooks  the same checks before every commit
# make test-kernels   the CUDA kernels alone, without a GPU
# make test-pythons   the fast tests on the other Pythons
# make fuzz   changed files for minutes (MINUTES=10, or INPUTS=100000; SEED=n repeats a run)
# make pycuda   build pycuda into the environment, so that the tests prove its driver too
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS := export,cpu,rtx,draw,dev
PYTHONS ?=
PARTS ?=
MINUTES ?= 10
INPUTS ?=
SEED ?=

.PHONY: demo test test-all lint types tests tests-all hooks test-kernels fuzz pycuda test-install test-pythons wheel kernel-costs gpu-kit gpu-rehearsal figures runtimes readme docs clean
.DEFAULT_GOAL := test

demo: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/shapes/demo.sh

test: lint types tests

test-all: lint types tests-all

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(VENV)/installed
	$(BIN)/mypy

tests: $(VENV)/installed
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow"

tests-all: $(VENV)/installed
	$(BIN)/pytest -n 2 --dist worksteal

# Lint, types and imports before every commit: git runs .pre-commit-config.yaml.
hooks: $(VENV)/installed
	$(BIN)/pre-commit install

# The CUDA kernels on the CPU: emulator, race detector, sanitizers, planted bugs, and NVRTC for every GPU generation.
test-kernels: $(VENV)/installed
	$(BIN)/pytest -n 2 --dist worksteal tests/unit/cuda

# Changed files of every kind that others may have written; what breaks a promise is kept in fuzz-failures.
fuzz: $(VENV)/installed
	$(BIN)/python -m tests.fuzz $(if $(INPUTS),--inputs $(INPUTS),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

# pycuda from source, without a CUDA toolkit: 1 to 2 minutes. Tests of its driver skip without it.
pycuda: $(VENV)/pycuda-built
$(VENV)/pycuda-built: $(VENV)/installed tests/install/build_pycuda.py
	$(BIN)/python tests/install/build_pycuda.py
	touch $@

# The wheel, alone and with each extra, in fresh environments: what is missing must be said with its pip install.
test-install: wheel
	$(BIN)/python -m tests.install.check_extras $(VENV)/wheel

# The fast tests on every other Python that is supported and at hand.
test-pythons: wheel
	$(BIN)/python -m tests.install.check_pythons $(VENV)/wheel $(PYTHONS)

wheel: $(VENV)/installed
	rm -rf $(VENV)/wheel
	$(BIN)/python -m build --wheel --outdir $(VENV)/wheel . >/dev/null

# What the kernels cost on the emulator: blocks, bytes, barriers and steps of recorded and crowded scenes, without a GPU.
kernel-costs: $(VENV)/installed
	$(BIN)/python -m tests.emulator.costs

# What travels to a GPU machine to be proven and measured there, and the command to run: PARTS=probe,smoke,... takes some parts.
gpu-kit: $(VENV)/installed
	$(BIN)/python -m benchmarks.figures.gpu_kit $(if $(PARTS),--parts $(PARTS))

# That visit without a GPU: from the kit, with what a bare machine has, over a stand-in for the driver. Minutes; it measures nothing.
gpu-rehearsal: $(VENV)/installed
	$(BIN)/python -m tests.emulator.rehearsal $(if $(PARTS),--parts $(PARTS))

# The figures of README.md, measured on this machine.
figures: $(VENV)/installed
	$(BIN)/python -m benchmarks.figures.cpu
	$(BIN)/python -m benchmarks.figures.side_by_side

# The tables of docs/runtimes.md: every exported form in every runtime that can be had here. Takes Node and npm, and the network.
runtimes: $(VENV)/installed
	$(BIN)/python -m benchmarks.figures.runtimes

# The pages that show figures, again from the files in benchmarks/results.
readme: $(VENV)/installed
	$(BIN)/python -m benchmarks.figures.results_page

# What commands print in docs/ and in the README, again.
docs: $(VENV)/installed
	$(BIN)/python -m tests.doc_outputs

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "Installing into $(VENV), PyTorch included: some minutes without a word."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info demo-output
