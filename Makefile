# Two commands for a newcomer: `make run` and `make test`. Everything lives in .venv; `make clean` removes it.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do $$p -c 'import sys; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)])' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
SWEEP ?= nbs/jobs/iteration.yaml
LOGS := $(wildcard nbs/logs/*/*.ipynb)
# one thread per process: two torch threads on two small cores are slower than one
export OMP_NUM_THREADS ?= 1

.PHONY: help run test lab docs export clean
help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

.venv/ok: settings.ini constraints.txt setup.py pyproject.toml
	@test -n "$(PYTHON)" || { echo "reasonnb needs Python 3.11 or 3.12; name one with: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

run: .venv/ok ## install, run the main sweep, print table, figure and verdicts (minutes; skips what is done)
	$(BIN)/reasonnb sweep $(SWEEP) --report

test: .venv/ok ## install, check that notebooks and package agree, run all tests
	$(BIN)/ruff check --no-cache
	$(BIN)/python tests/no_diff.py
	$(BIN)/pytest -p no:cacheprovider -n 2 --dist loadfile --no-loadscope-reorder --nbval-lax --nbval-current-env tests $(LOGS)

lab: .venv/ok ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab nbs

docs: .venv/ok ## build the docs site into _docs
	$(BIN)/reasonnb docs

export: .venv/ok ## notebooks -> package and README, notebooks cleaned
	$(BIN)/nbdev_export && $(BIN)/nbdev_clean && $(BIN)/reasonnb docs --readme

clean: ## remove the environment and everything built (runs and data stay)
	rm -rf .venv _docs _proc
