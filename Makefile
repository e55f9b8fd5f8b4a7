# Two commands for a newcomer: `make run` and `make test`. Everything lives in .venv; `make clean` removes it.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do $$p -c 'import sys; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)])' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
SWEEP ?= nbs/jobs/sweeps/iteration.yaml
LOGS := $(wildcard nbs/logs/*/*.ipynb)
# one thread per process: two torch threads on two small cores are slower than one
export OMP_NUM_THREADS ?= 1

.PHONY: help run test lab docs narratives export clean
help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

.venv/ok: settings.ini constraints.txt setup.py pyproject.toml
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)])' 2>/dev/null || { echo "reasonnb needs Python 3.11 or 3.12; name one with: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

run: .venv/ok ## install, run the main sweep, print table, figure and verdicts (minutes; skips what is done)
	$(BIN)/reasonnb sweep $(SWEEP) --report

test: .venv/ok ## install, check that notebooks and package agree, run all tests
	$(BIN)/ruff check --no-cache
	$(BIN)/python tests/no_diff.py
	$(BIN)/pytest -p no:cacheprovider -n 2 --dist loadfile --no-loadscope-reorder --nbval-lax --nbval-current-env --durations=40 tests $(LOGS)

# The whole repository can be reached, `reasonnb` is on the PATH of cells and terminals (a login shell would reset it), and root, as in a container, is let in.
lab: .venv/ok ## open JupyterLab on its start page
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/jupyter-lab --ServerApp.root_dir="$(CURDIR)" \
	  --LabApp.default_url='/lab/tree/nbs/start.ipynb' \
	  --ServerApp.terminado_settings="{'shell_command': ['$${SHELL:-$$(command -v bash || echo sh)}']}" $(if $(filter 0,$(shell id -u)),--allow-root)

docs: .venv/ok ## build the docs site into _docs
	$(BIN)/reasonnb docs

narratives: .venv/ok ## execute all narratives, the benchmark page and the README's notebook on the reference records; rewrites their figures
	REASONNB_WRITE=reference $(BIN)/jupyter nbconvert --to notebook --execute --inplace $(LOGS) nbs/index.ipynb nbs/benchmark.ipynb
	$(MAKE) export

export: .venv/ok ## notebooks -> package and README, notebooks cleaned
	$(BIN)/nbdev_export && $(BIN)/nbdev_clean && $(BIN)/python tests/notebook_form.py && $(BIN)/reasonnb docs --readme

clean: ## remove the environment and everything built (runs and data stay)
	rm -rf .venv _docs _proc
