# make setup      the virtual environment .venv, and DeepSpeed's CPU Adam compiled once
# make run        the matrix on what is there, and a report: on a GPU profile 24gb; without one smoke, trained on the CPU, beside 24gb-short, predicted
# make test       the tests, but for slow ones, in a process per core, four at most; those that measure a GPU alone, after the others
# make test-slow  the slow ones: whole programs in several processes, searches, training until it learns
# make lint       ruff, mypy, and no import that runs back
# make gate       our own predictions against .ci/baseline.json: a change of one byte fails, until it is approved by
# make baseline   .ci/baseline.json written anew
# make trackers   the tests that tell Weights & Biases, Trackio and MLflow, installed apart: TRL and accelerate import what they find
# make benchmark  what the harness itself costs
# make accuracy   docs/accuracy.md written again: predictions against published figures
# make gpu        on a machine with CUDA: tests, measurements and their results as one archive under $$OUT
# make wheel      dist/: a wheel of the tree as it is
# make clean      removes all that the others made here, but for runs and results
.PHONY: setup run test test-slow lint gate baseline predicted trackers benchmark accuracy wheel gpu clean

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.stamp
ARGS   ?=

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@mkdir -p $(VENV)/src/vrambench
	@for name in __init__.py bench methods reports; do ln -sfn ../../../$$name $(VENV)/src/vrambench/$$name; done
	$(BIN)/vrambench doctor --prepare || echo "some cells cannot run on this machine: the lines above say which, and why"
	@touch $(STAMP)

run: setup
	$(BIN)/vrambench run $(ARGS)

PYTEST := $(BIN)/python -m pytest --benchmark-skip -rs --ignore=tests/gpu -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: setup
	$(PYTEST) -m "not slow" $(ARGS)
	$(BIN)/python -m pytest -rs -q tests/gpu

test-slow: setup
	$(PYTEST) -m slow $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=$(VENV)/src $(BIN)/lint-imports --no-cache

gate: predicted
	$(BIN)/vrambench check runs/gate --baseline .ci/baseline.json --across-versions --two-sided $(ARGS)

baseline: predicted
	$(BIN)/vrambench baseline runs/gate -o .ci/baseline.json --force

predicted: setup
	rm -rf runs/gate
	$(BIN)/vrambench run .ci/gate.yaml --out runs/gate --device predicted

TRACKERS := $(VENV)/trackers

trackers: setup
	$(BIN)/python -m venv $(TRACKERS)
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')')" \
	    > $$($(TRACKERS)/bin/python -c 'import site; print(site.getsitepackages()[0])')/setup.pth
	$(TRACKERS)/bin/python -m pip install --quiet --constraint constraints.txt wandb trackio mlflow-skinny
	$(TRACKERS)/bin/python -m pytest -rs tests/reports/test_trackers.py $(ARGS)

benchmark: setup
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only $(ARGS)

accuracy: setup
	$(BIN)/python docs/accuracy.py

# setuptools would pack what an earlier build left in build/, deleted modules too.
wheel: setup
	rm -rf build
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

gpu:
	tests/gpu/run $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
