PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin

.PHONY: help setup train test coverage lint format oracle bench docs tensorboard wheel clean

help: ## list these targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# The stamp is newer than pyproject.toml as long as the environment fits it.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev,sweep,codecs,monai]'
	@touch $@

setup: $(VENV)/installed ## virtual environment with the program and its extras dev, sweep, codecs, monai

# One thread, since with more each waits for the slowest, which beside other work is a busy core's.
train: setup ## train on synthetic data to the end: a first run of minutes, without any download
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m brats_lightning.train experiment=first seed=0

# A file of tests stays in one process, since its tests share what they make.
test: setup ## the test suite
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

coverage: setup ## the test suite with line coverage
	$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered

lint: setup ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy brats_lightning

format: setup ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

oracle: setup ## compare the brats2026 scores with the official program, in an environment of its own
	$(BIN)/python -m tests.oracle.brats2026

# The peers want torchvision for what is not measured here, and its wheel doesn't load beside a CPU build of torch.
.venv-bench/installed: pyproject.toml
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --upgrade pip
	.venv-bench/bin/python -m pip install --quiet -e '.[dev,sweep,codecs,bench]'
	.venv-bench/bin/python -m pip uninstall --quiet --yes torchvision
	@touch $@

bench: .venv-bench/installed ## time data, training, inference and start against MONAI and nnU-Net; BENCH="patches --cases DIR"
	.venv-bench/bin/python -m tests.benchmarks $(BENCH)

$(VENV)/docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	@touch $@

# Material for MkDocs announces its successor at each build.
docs: $(VENV)/docs ## the documentation as a site, outputs/site/index.html; fails on a broken link
	$(BIN)/python docs/config_page.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict -f .mkdocs.yml

tensorboard: setup ## dashboards of all runs below outputs/
	$(BIN)/tensorboard --logdir outputs

wheel: setup ## build the package
	$(BIN)/python -m build --wheel

clean: ## remove the environments and build products; outputs/ stays
	rm -rf $(VENV) .venv-bench build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
