# Reproduction of Adachi (2022). `make` alone lists what there is.

PYTHON = python3
PRESET = smoke
CHAPTER =
LAB =

BIN := .venv/bin
STAMP := .venv/.stamp

# A notebook's kernel is the one of .venv, also where the user has another python3 kernel.
export JUPYTER_PREFER_ENV_PATH := 1

# Threads that wait sleep (see thesis_repro/__init__.py); said here too because a notebook may import torch first.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup reproduce test lab lock baseline readme clean FORCE

help:
	@echo 'make reproduce   every table and figure into outputs/$(PRESET)/  (PRESET=fast, CHAPTER=7 or advprop)'
	@echo 'make test        all checks: export, clean, parameters, README, lint, chapters, notebooks and their outputs, baseline, other arithmetic, pytest'
	@echo 'make lab         JupyterLab on the notebooks  (LAB="--no-browser --port 8899")'
	@echo 'make setup       .venv with the locked packages; the other commands do it by themselves  (PYTHON=python3.12, TORCH=cpu)'
	@echo 'make arithmetic  everything under the arithmetic of other processors; a table  (WRITE=yes: how far numbers may move)'
	@echo 'make outputs     keep in the notebooks what they show, the chapters at smoke'
	@echo 'make readme      README.md from nbs/index.ipynb, docs/atlas.md from the library'
	@echo 'make baseline    keep the numbers behind the smoke tables and figures, for make check-baseline  (STRICT=yes: every digit)'
	@echo 'make lock        requirements.lock from pyproject.toml  (UPGRADE=yes: newest versions)'
	@echo 'make clean       remove .venv and caches; data/ and outputs/ stay'

reproduce: $(STAMP)
	$(BIN)/thesis-repro reproduce --preset $(PRESET) $(if $(CHAPTER),--chapter '$(CHAPTER)')

lab: $(STAMP)
	$(BIN)/python -m jupyter lab --ServerApp.root_dir='$(CURDIR)' --LabApp.default_url=/lab/tree/nbs/index.ipynb $(LAB)


## Environment

# What keeps us from making one, in one line; empty where all is well.
FAULT = $(shell \
  if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
    echo "Python 3.11 or newer is needed, but $(PYTHON) is $$($(PYTHON) -c 'import platform; print(platform.python_version())' 2>/dev/null || echo missing): name another, as in PYTHON=python3.12"; \
  elif ! $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null; then \
    echo "$(PYTHON) has no venv: install it (on Debian and Ubuntu: apt install python3-venv)"; \
  fi)

# The build of torch: cuda, or cpu where there is no GPU. An environment stays what it is unless one is named.
KEPT := $(shell cat .venv/.torch 2>/dev/null || echo cuda)
TORCH = $(KEPT)
ifeq ($(filter cpu cuda,$(TORCH)),)
$(error TORCH = $(TORCH): must be cpu or cuda)
endif

# The stamp is written last and names the folder it was made in:
# an interrupted, moved or broken environment is made again, a sound one is only brought up to date.
SOUND := $(shell $(BIN)/python -c 'print(open("$(STAMP)").read().strip())' 2>/dev/null)
ifneq ($(SOUND) $(KEPT),$(CURDIR) $(TORCH))
$(STAMP): FORCE
RENEW := yes
endif

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	$(if $(RENEW),$(if $(FAULT),$(error $(FAULT))))
	@rm -f $@
	$(if $(RENEW),$(PYTHON) -m venv --clear .venv)
	$(INSTALL_$(TORCH))
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --quiet --editable .
	@echo $(TORCH) > .venv/.torch
	@printf '%s\n' '$(CURDIR)' > $@

INSTALL_cuda = $(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r requirements.lock

# On Linux the package index has torch for CUDA alone, and that build does not start without CUDA's libraries.
# uv knows where the PyTorch project keeps the other one; its hash is not in the lock.
define INSTALL_cpu
$(MAKE) --no-print-directory .make/uv .make/requirements-cpu.lock
.make/uv/bin/uv pip install --no-config --quiet --python $(BIN)/python --torch-backend cpu --no-deps \
  $(shell sed -n 's/^\(torch\|torchvision\)==\([^ ;]*\).*/\1==\2/p' requirements.lock) || \
  { echo 'no CPU build of torch: uv asks the PyTorch project for it and must reach it; or make setup TORCH=cuda' >&2; exit 1; }
$(BIN)/python -m pip install --disable-pip-version-check --require-hashes --no-deps -r .make/requirements-cpu.lock
endef

# The lock without torch and what only its CUDA build needs.
.make/requirements-cpu.lock: requirements.lock
	@mkdir -p .make
	awk '/^[a-z]/ { kept = !/^(torch==|torchvision==|triton==|nvidia-|cuda-)/ } kept' $< > $@

.make/uv:
	$(PYTHON) -m venv --clear $@
	$@/bin/python -m pip install --disable-pip-version-check --quiet uv

# For Linux and Python 3.11 to 3.13, with the CUDA build of torch. uv's own settings, and with them
# any private index, stay out of the file.
lock:
	$(if $(FAULT),$(error $(FAULT)))
	rm -rf .make/uv
	$(MAKE) --no-print-directory .make/uv
	.make/uv/bin/uv pip compile pyproject.toml --extra notebooks --extra dev --extra eval --extra metrics --extra tensorboard --extra ray --extra slurm --extra export --extra retrieval --extra peers \
	  --universal --python-version 3.11 --generate-hashes --no-config --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command 'make lock' --quiet $(if $(UPGRADE),--upgrade) --output-file requirements.lock


## Checks

CHECKS := check-export check-clean check-parameters check-readme lint chapters check-outputs check-baseline check-arithmetic

.PHONY: $(CHECKS) pytest arithmetic mutations outputs

# One after the other, with the seconds each took; pytest comes last and counts its own.
test: $(STAMP)
	@for check in $(CHECKS); do \
	  echo "== $$check"; begin=$$(date +%s); \
	  $(MAKE) --no-print-directory --silent $$check || exit 1; \
	  echo "== $$check: ok, $$(( $$(date +%s) - begin )) s"; \
	done
	@echo "== pytest"
	@$(MAKE) --no-print-directory --silent pytest

# check-outputs executes the other notebooks too, and compares what all of them keep with what they show today.
check-export check-clean check-parameters check-readme check-outputs: check-%: $(STAMP)
	$(BIN)/python tests/checks.py $*

# What people write; the rest of the library is made from the notebooks.
WRITTEN = nbs tests setup.py thesis_repro/__init__.py

lint: $(STAMP)
	$(BIN)/ruff check $(WRITTEN)
	$(BIN)/ruff format --check $(WRITTEN)

chapters: $(STAMP)
	$(BIN)/thesis-repro reproduce --preset smoke

# The numbers behind the smoke tables and figures against those that were kept: which moved, and beyond the seeds' noise or not.
# On another machine a short training may end elsewhere: data/elsewhere.csv says how far that was seen to go.
check-baseline: $(STAMP)
	$(BIN)/thesis-repro diff tests/baseline/smoke.csv smoke $(if $(STRICT),--strict)

# Numerical tests under the arithmetic of another processor: the fastest variant of make arithmetic.
check-arithmetic: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/arithmetic.py --variants "ATen default" --parts tests --few

# All notebooks, chapters and numerical tests under other arithmetic (hours); WRITE=yes notes how far numbers move.
arithmetic: $(STAMP)
	$(BIN)/python tests/arithmetic.py $(if $(WRITE),--write)

# Small faults, made on purpose, that a test must notice (hours); tests/mutations.txt lists those that may survive.
mutations: $(STAMP)
	$(BIN)/python tests/mutations.py $(MODULES)

# Each test file in a process of its own, one thread each; what is skipped is listed with the reason.
pytest: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs -n auto --dist loadfile --no-loadscope-reorder


## The rest

baseline: $(STAMP)
	$(BIN)/thesis-repro diff smoke --keep tests/baseline/smoke.csv

readme: $(STAMP)
	$(BIN)/python tests/checks.py --write readme

outputs: $(STAMP)
	$(BIN)/python tests/checks.py --write outputs

clean:
	rm -rf .venv .make .pytest_cache .ruff_cache _docs _proc thesis_repro.egg-info
	find nbs tests thesis_repro -name __pycache__ -prune -o -name .ipynb_checkpoints -prune | xargs rm -rf
