# Everything runs in .venv, which the first target makes. Another interpreter:  make PYTHON=python3.12 test
PYTHON ?= python3
ARGS ?=
# An unpinned torch may be a newer build that brings gigabytes of CUDA libraries.
TORCH = 2.13.0

BIN = .venv/bin
PIP = $(BIN)/python -m pip install -qq --disable-pip-version-check

.DEFAULT_GOAL = help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test peers lint gradients mutants cpu-mutants faults fuzz optimum cuda-sim cuda-compile cuda-mutants check-gpu clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo "  Options go through ARGS, as in  make test ARGS='-k attention'"

demo: .venv/.core  ## train a small model on the flights that come along, and show what it learned
	@$(BIN)/ttr demo $(ARGS)

# Most of its time goes into compiling kernels, which one process does on one core.
test: .venv/.extra-test  ## run the test suite
	@$(BIN)/python -m pytest --numprocesses 2 --dist worksteal $(ARGS)

peers: .venv/.torch-$(TORCH) .venv/.extra-test .venv/.extra-peers  ## compare with PyTorch
	@$(BIN)/python -m pytest tests/peers $(ARGS)

lint: .venv/.extra-lint .venv/.extra-test  ## run ruff and mypy
	$(BIN)/ruff check
	$(BIN)/mypy

gradients: .venv/.extra-test  ## check every gradient of the oracle by complex step
	@$(BIN)/python -m tests.gradients $(ARGS)

mutants: .venv/.extra-test  ## seed errors into the oracle and see that the tests catch each
	@$(BIN)/python -m tests.mutants $(ARGS)

cpu-mutants: .venv/.extra-test  ## seed errors into the kernels and see that the test named for each catches it
	@$(BIN)/python -m tests.mutants --cpu $(ARGS)

fuzz: .venv/.extra-test  ## damage files for every reader and see that each gets one sentence
	@$(BIN)/python -m tests.fuzz $(ARGS)

faults: .venv/.extra-test  ## kill processes, let system calls fail, fill disks, flip bits: nothing may be lost
	@$(BIN)/python -m tests.faults kills $(ARGS)
	@$(BIN)/python -m tests.faults calls $(ARGS)
	@$(BIN)/python -m tests.faults disks $(ARGS)
	@$(BIN)/python -m tests.faults bits $(ARGS)
	@$(BIN)/python -m tests.faults resume $(ARGS)

optimum: .venv/.extra-test  ## train on processes whose entropy is known: how near does a model come?
	@$(BIN)/python -m tests.optimum $(ARGS)

cuda-sim: .venv/.extra-test  ## run the kernels for the GPU in a simulator, against the oracle
	@NUMBA_ENABLE_CUDASIM=1 $(BIN)/python -m pytest tests/cuda --numprocesses 2 --dist worksteal $(ARGS)

# An environment of its own: numba-cuda changes what `numba.cuda` is, and it and its libraries are 400 MB. With a GPU, the kernels run on it too.
cuda-compile: .venv-cuda/.extra-cuda  ## compile the kernels for three GPUs, none needed, and check registers, stack and shared memory
	@.venv-cuda/bin/python -m pytest tests/cuda --numprocesses 2 --dist worksteal $(ARGS)

cuda-mutants: .venv/.extra-test  ## seed errors into the kernels for the GPU and see that the test named for each catches it
	@$(BIN)/python -m tests.mutants --cuda $(ARGS)

check-gpu:  ## on a machine with an NVIDIA GPU: tests and benchmarks on it, and what of all that was asked is met
	@"$(PYTHON)" scripts/check_gpu.py $(ARGS)

clean:  ## remove .venv, caches and build outputs; runs/ stays
	@rm -rf .venv .venv-cuda build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
	@find ttr_ref ttr_fast tests scripts tutorials -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# One stamp for the environment and one for each install: nothing is installed again until pyproject.toml changes.
.venv/.made:
	@version=$$("$(PYTHON)" -c 'import platform; print("Python " + platform.python_version())' 2>/dev/null) || version="not there"; \
	"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed, but $(PYTHON) is $$version: name another, as in  make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments: install its venv module (on Debian and Ubuntu, the package python3-venv) and try again" >&2; exit 2; }
	@"$(PYTHON)" -m venv .venv
	@touch $@

.venv/.core: pyproject.toml .venv/.made
	@echo "Installing into .venv; the first time takes a minute or two."
	@$(PIP) -e .
	@touch $@

.venv/.extra-%: pyproject.toml .venv/.made
	@echo "Installing with the extra '$*' into .venv; the first time takes a minute or two."
	@$(PIP) -e '.[$*]'
	@touch $@

.venv-cuda/.extra-cuda: pyproject.toml .venv/.made
	@echo "Installing numba-cuda and the compiler's libraries into .venv-cuda; this may take some minutes."
	@"$(PYTHON)" -m venv .venv-cuda
	@.venv-cuda/bin/python -m pip install -qq --disable-pip-version-check -e '.[cuda,cuda-test,test]'
	@touch $@

.venv/.torch-$(TORCH): .venv/.made
	@echo "Installing PyTorch $(TORCH) into .venv; this may take some minutes."
	@$(PIP) torch==$(TORCH)
	@touch $@
