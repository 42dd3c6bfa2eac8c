# On a fresh checkout with only Python: `make demo` runs the main job, `make test` runs every check.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.PHONY: demo docs notebooks test lint types unit test-all coverage mutants kills fuzz aot test-lowest test-lmms wheel format clean

demo: $(VENV)/.demo
	$(BIN)/lvlm-attn demo

test: lint types unit

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(VENV)/.dev
	$(BIN)/mypy

# One thread per test process: torch's own threads only get in each other's way at these sizes.
unit: $(VENV)/.dev
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n auto --dist worksteal

# Everything at full size: property tests with more examples, runs killed, wraps fuzzed. Before a release.
test-all: export LVLM_ATTN_FUZZ = 10
test-all: lint types unit kills fuzz

# Lines and branches that the tests reach; fails below the figure in pyproject.toml.
coverage: $(VENV)/.dev
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n auto --dist worksteal --cov --cov-report=term --cov-report=xml

# Layout, the definition of the kernels, parsers and statistics with one small fault after another: what no test notices
# is told, and has to be what docs/testing.md lists. `make mutants ONLY="layout/fields layout/grids"` for some modules.
mutants: $(VENV)/.dev
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m tests.mutants $(ONLY)

# 30 evaluations of the toy, killed at random moments and run again; 10 of them with two processes.
kills: $(VENV)/.dev
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -u -m tests.evals.kills --kills 30 --ranks 10

# Wraps entered, left, used and interrupted at random: 2,000 steps from each of three seeds.
fuzz: $(VENV)/.dev
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -u -m tests.fuzz --steps 2000 --seeds 1 2 3

# Every configuration of every kernel, compiled for GPUs that need not be there; `make -j aot` uses several cores.
aot: aot-sm_90 aot-sm_80 aot-cdna

aot-%: $(VENV)/.dev
	env -u TRITON_INTERPRET $(BIN)/python -W ignore -m tests.kernels.aot $* all

# The documentation site, in site/.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q

# Every notebook run anew on the toy, with its outputs.
notebooks: $(VENV)/.dev
	$(BIN)/python -m notebooks.build

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[toy,eval]"
	touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[toy,eval,viz,dev]"
	touch $@

$(VENV)/.docs: $(VENV)/.dev
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[docs]"
	touch $@

# The lowest transformers of the range, laid over the same environment; before a release, since it takes as long as `unit`.
test-lowest: $(VENV)/.dev
	rm -rf .venv-lowest
	$(BIN)/python -m pip install -q --target .venv-lowest transformers==5.17.0
	PYTHONPATH=.venv-lowest OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n auto --dist worksteal

# lmms-eval's own command line with our model, in an environment of its own: a full install of it replaces torch.
test-lmms: .venv-lmms/.done
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 .venv-lmms/bin/python -m pytest -q -n 2 tests/integrations/test_lmms_eval.py

.venv-lmms/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-lmms
	.venv-lmms/bin/python -m pip install -q -c constraints.txt -e ".[toy,eval,lmms]" pytest pytest-xdist hypothesis
	.venv-lmms/bin/python -m pip install -q --no-deps lmms-eval==0.7.3
	touch $@

# Source archive and wheel; the wheel is installed into a clean environment and used from outside the checkout.
wheel: $(VENV)/.dev
	rm -rf dist .venv-wheel
	$(BIN)/python -m build -q
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install -q -c constraints.txt "$$(ls dist/lvlm_attn-*.whl)[toy]"
	cd /tmp && "$(CURDIR)/.venv-wheel/bin/lvlm-attn" doctor
	cd /tmp && "$(CURDIR)/.venv-wheel/bin/lvlm-attn" demo --limit 4 --out "$$(mktemp -d)"
	rm -rf .venv-wheel

clean:
	rm -rf $(VENV) .venv-lowest .venv-lmms .venv-wheel site .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist .coverage coverage.xml
