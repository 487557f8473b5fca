PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin

.PHONY: help setup train test coverage lint format oracle parity slurm-check container-check bench gpu-check docs tensorboard wheel clean

help: ## list these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

# The stamp is newer than pyproject.toml as long as the environment fits it.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev,all]'
	@touch $@

setup: $(VENV)/installed ## make .venv with the program, its extras, and the tools of its development

# One thread: several would wait for the slowest, which on a busy machine shares its core with other work.
train: setup ## run a first training on synthetic data, in minutes and without any download
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m brats_lightning.train experiment=first seed=0

# The tests of a file stay in one process, since they share what they make.
test: setup ## run all tests
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

coverage: setup ## run all tests and measure line coverage
	$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered

lint: setup ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy brats_lightning

format: setup ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

oracle: setup ## compare the brats2026 scores with the official program, in a separate environment
	$(BIN)/python -m tests.oracle.brats2026

slurm-check: setup ## pre-empt jobs of a real SLURM, and pull the cable of a machine; on Debian, as root
	$(BIN)/python -m tests.cluster.check

container-check: setup ## build the image of a package and run it under the challenge's limits; on Debian, as root
	$(BIN)/python -m tests.container.check $(CONTAINER)

# The other packages install torchvision, which is not needed here and whose wheel does not load with a CPU build of torch.
.venv-bench/installed: pyproject.toml
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --upgrade pip
	.venv-bench/bin/python -m pip install --quiet -e '.[dev,sweep,codecs,bench]'
	.venv-bench/bin/python -m pip uninstall --quiet --yes torchvision
	@touch $@

bench: .venv-bench/installed ## time data, training, inference and start against MONAI and nnU-Net; some rows: BENCH="patches --cases DIR"
	.venv-bench/bin/python -m tests.benchmarks $(BENCH)

DEVICE ?= cuda
gpu-check: .venv-bench/installed ## compare the GPU with the CPU and time it, in 8 minutes; a small rehearsal: DEVICE=cpu
	.venv-bench/bin/python -m tests.benchmarks.gpu --device $(DEVICE)

parity: .venv-bench/installed ## compare networks and checkpoints with nnU-Net's, in the environment of the benchmarks
	.venv-bench/bin/python -m pytest tests/parity

$(VENV)/docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	@touch $@

# Without the variable, Material for MkDocs prints an advertisement at each build.
docs: $(VENV)/docs ## build the documentation as a website, outputs/site/index.html; fails on a broken link
	$(BIN)/python docs/config_page.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict -f .mkdocs.yml

tensorboard: setup ## show all runs below outputs/ in TensorBoard
	$(BIN)/tensorboard --logdir outputs

wheel: setup ## build the package
	$(BIN)/python -m build --wheel

clean: ## remove the environments and build products; outputs/ stays
	rm -rf $(VENV) .venv-bench build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
