# `make demo` makes a small video on the CPU, `make test` runs the tests; both set up what they need in .venv.

VENV := .venv
PYTHON_IN_VENV := $(VENV)/bin/python
PIP_INSTALL := $(PYTHON_IN_VENV) -m pip install --quiet --constraint constraints.txt --editable
REQUIREMENTS := pyproject.toml setup.py constraints.txt

DEMO_VIDEO := outputs/demo.mp4
DEMO_PROMPT := A red ball moves to the left on a dark background.

PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo nano test slurm-test lint format typecheck clean container-test container-emulate

help:
	@echo "make setup      .venv with what inference needs"
	@echo "make demo       a small video, made on the CPU: $(DEMO_VIDEO), and its frames as a picture"
	@echo "make test       the tests (PYTEST_ARGS='-m gpu' and the like are passed on)"
	@echo "make slurm-test the tests on a Slurm cluster of two nodes, started on this machine (Slurm must be installed)"
	@echo "make lint       ruff, and hadolint for the Dockerfile, without changing anything"
	@echo "make format     ruff, mending what it can"
	@echo "make typecheck  mypy on the package"
	@echo "make nano       the embedded models, trained from nothing (on a GPU)"
	@echo "make container-test     smoke test, inside the image or with IMAGE=NAME through docker or podman"
	@echo "make container-emulate  the Dockerfile's steps and the smoke test in a virtual environment (6 minutes, 8 GB)"
	@echo "make clean      remove .venv and build/; outputs/ stays"

setup: $(VENV)/.core

# PYTHON=... chooses an interpreter; else it is the first of these that is 3.11 or 3.12 and can make a venv.
CANDIDATES := $(strip $(PYTHON) python3.11 python3.12 python3)

$(VENV)/.empty:
	@for candidate in $(CANDIDATES); do \
		if $$candidate -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then \
			echo "Making $(VENV) with $$($$candidate --version)"; \
			exec $$candidate -m venv $(VENV) --prompt cosmos-nemo; \
		fi; \
	done; \
	echo "Python 3.11 or 3.12 with its venv module is needed; none of '$(CANDIDATES)' is one. Install it, or pass PYTHON=/path/to/it." >&2; \
	exit 1
	@touch $@

$(VENV)/.core: $(VENV)/.empty $(REQUIREMENTS)
	@echo "Installing what inference needs (a minute or two)"
	@$(PIP_INSTALL) .
	@touch $@

$(VENV)/.test: $(VENV)/.empty $(REQUIREMENTS)
	@echo "Installing everything, NeMo too (about three minutes)"
	@$(PIP_INSTALL) ".[nemo,test]"
	@touch $(VENV)/.core $@

$(VENV)/.dev: $(VENV)/.core
	@$(PIP_INSTALL) ".[dev]"
	@touch $@

demo: setup
	$(PYTHON_IN_VENV) inference/general.py --model Cosmos-Nano-Text2World \
		--prompt "$(DEMO_PROMPT)" --video_save_path $(DEMO_VIDEO)
	$(VENV)/bin/cosmos-nemo sheet $(DEMO_VIDEO) $(DEMO_VIDEO:.mp4=.png)
	@echo "The video is $(DEMO_VIDEO), its frames are $(DEMO_VIDEO:.mp4=.png)"

# The embedded models from nothing: 40 minutes and more on an H200. Stopped, it goes on with the same command.
nano: setup
	$(VENV)/bin/cosmos-nemo make-nano outputs/nano
	@for model in Text2World Video2World WorldInterpolator Predict2-Video2World Autoregressive; do \
		echo "Judging Cosmos-Nano-$$model"; \
		PYTHONPATH=. $(PYTHON_IN_VENV) benchmarks/nano_quality.py --model Cosmos-Nano-$$model \
			--assets_dir outputs/nano/assets --require || exit 1; \
	done
	@echo "To ship them: cp -r outputs/nano/assets/. cosmos_nemo/assets"

# One thread each: two workers share two cores. The plug-ins' options stand here, not in pyproject.toml, so that
# pytest alone is enough elsewhere.
test: $(VENV)/.test
	@OMP_NUM_THREADS=1 $(PYTHON_IN_VENV) -m pytest -n 2 --dist loadfile --timeout 300 $(PYTEST_ARGS)

# The cluster's ranks take all cores: one test after the other. Slurm's programs are looked for first.
slurm-test: $(VENV)/.test
	@PYTHONPATH=. $(PYTHON_IN_VENV) -m tests.slurm.cluster
	@OMP_NUM_THREADS=1 $(PYTHON_IN_VENV) -m pytest -m slurm --timeout 600 --durations 5 $(PYTEST_ARGS) tests/slurm

lint: $(VENV)/.dev
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/hadolint Dockerfile

format: $(VENV)/.dev
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

typecheck: $(VENV)/.dev
	@$(VENV)/bin/mypy

# Without an engine, and not inside the image, it says so and fails.
container-test:
	@IMAGE="$(IMAGE)" ENGINE="$(ENGINE)" .ci/container/test

# PYTHON=... chooses an interpreter; else it is the container's own version, which must be installed.
container-emulate:
	@$(if $(PYTHON),$(PYTHON),python3) .ci/container/emulate.py $(if $(PYTHON),--python $(PYTHON))

clean:
	rm -rf $(VENV) build *.egg-info
