# Each study is one target; `make help` lists them.
#   make sweep-splits                                    the small profile: 2 cores, no hub
#   make sweep-splits PROFILE=paper                      the paper's study
#   make sweep-splits MODEL=folder-or-hub-id DATA=folder-or-hub-id SEEDS=0,1,2 WORKERS=2 ARGS="--epochs=3"

PYTHON ?= python3
PROFILE ?= embedded
MODEL ?=
DATA ?=
SEEDS ?=
WORKERS ?=
OUT ?= runs
SWEEP ?=
ARGS ?=

VENV := .venv
INSTALLED := $(VENV)/installed

# 'a value' in single quotes reaches the program as it is, whatever it has in it
quoted = '$(subst ','\'',$(1))'
option = $(if $(2),--$(1)=$(call quoted,$(2)))
SETTINGS = $(strip $(call option,profile,$(PROFILE)) $(call option,out,$(OUT)) $(call option,model,$(MODEL)) \
	$(call option,data,$(DATA)) $(call option,seed,$(SEEDS)) $(call option,workers,$(WORKERS)) $(ARGS))

SWEEPS := $(patsubst sweeps/%.yaml,sweep-%,$(wildcard sweeps/*.yaml))
STUDIES := $(patsubst sweeps/studies/%.yaml,study-%,$(wildcard sweeps/studies/*.yaml))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help sweeps study results dashboard figures notebook report bench docs faults install test coverage lint wheel-check $(SWEEPS) $(STUDIES)

help:
	@echo 'Sweeps: run what is missing, print the table, draw the figures'
	@for sweep in $(SWEEPS); do printf '  %-20s %s\n' $$sweep "$$(sed -n '1s/^# //p' "sweeps/$${sweep#sweep-}.yaml")"; done
	@printf '\nStudies: choose settings run by run\n'
	@for study in $(STUDIES); do \
		printf '  %-20s %s\n' $$study "$$(sed -n '1s/^# //p' "sweeps/studies/$${study#study-}.yaml")"; done
	@awk -F ':.*## ' '/^##@ /{print "\n" substr($$0, 5)} /^[a-z-]+:.*## /{printf "  %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\nExamples\n'
	@sed -n 's/^# *\(make .*\)/  \1/p' $(MAKEFILE_LIST)

$(SWEEPS): sweep-%: $(INSTALLED)
	@$(VENV)/bin/python -m sweeps $(call quoted,$*) --analyse $(SETTINGS)

$(STUDIES): study-%: $(INSTALLED)
	@$(VENV)/bin/python -m sweeps $(call quoted,$@) $(SETTINGS)

##@ What there is, and what the finished runs show

sweeps: $(INSTALLED)  ## list the sweeps: cells, what is missing, estimated time
	@$(VENV)/bin/python -m sweeps $(SETTINGS)

dashboard: $(INSTALLED)  ## a live look: Optuna's dashboard of the queue in OUT used last, or of SWEEP, and the report so far
	@$(VENV)/bin/python -m sweeps.live $(call option,out,$(OUT)) $(call option,sweep,$(SWEEP)) $(ARGS)

figures: $(INSTALLED)  ## every figure and table of the paper, and ours, that the finished sweeps in OUT allow
	@$(VENV)/bin/python -m analysis all $(call option,out,$(OUT)) $(ARGS)

notebook: $(INSTALLED)  ## the notebook of the ablations, executed on the sweeps in OUT: OUT/ablations.ipynb
	@$(VENV)/bin/python -m analysis notebook $(call option,out,$(OUT))

report: $(INSTALLED)  ## one HTML page with all figures, tables and tests: OUT/report.html
	@$(VENV)/bin/python -m analysis report $(call option,out,$(OUT)) $(ARGS)

results study: PROFILE = study
results study: OUT = results

results: $(INSTALLED)  ## the page of measured results, docs/measured.md, from the committed runs: trains nothing
	@$(VENV)/bin/python -m analysis results $(call option,out,$(OUT)) $(call option,profile,$(PROFILE))

study: $(INSTALLED)  ## run what is missing of the whole study, its time first, then make results; days, any part resumable
	@$(VENV)/bin/python -m study $(SETTINGS)
	@$(if $(findstring --dry-run,$(ARGS)),,$(VENV)/bin/python -m analysis results $(call option,out,$(OUT)) $(call option,profile,$(PROFILE)))

##@ The code

# The whole suite: a process a core, up to four (each takes a GB), one thread each. With ARGS: one process, plain pytest.
PROCESSES = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder
PYTEST = $(if $(ARGS),$(VENV)/bin/python -m pytest,$(PROCESSES))

test: $(INSTALLED)  ## run the tests
	@$(PYTEST) $(ARGS)

coverage: $(INSTALLED)  ## run the tests, and list the lines that none of them runs
	@$(PYTEST) --cov --cov-report=term-missing:skip-covered $(ARGS)

lint: $(INSTALLED)  ## ruff and mypy
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

wheel-check: $(INSTALLED)  ## the wheel in new environments, with the oldest torch and the newest: some GB, and an hour
	@$(VENV)/bin/python -m nox $(ARGS)

docs: $(INSTALLED)  ## the site in build/site, with the API from docstrings; a warning is an error
	@$(VENV)/bin/python -m sphinx --quiet --fail-on-warning --keep-going -d build/doctrees docs build/site
	@echo "build/site/index.html"

faults: $(INSTALLED)  ## kill runs and sweeps and spoil their files, some minutes; what comes of it: docs/faults.md
	@$(VENV)/bin/python -m pytest -p tests.fault_page $$(grep -l 'with fault(' tests/test_*.py)

bench: $(INSTALLED)  ## what a step costs beside Adam's; sizes by ARGS, as in ARGS="--layers=12 --width=384 --batch=32"
	@$(VENV)/bin/python -m train.bench $(ARGS)

install: $(INSTALLED)  ## make .venv with the pinned packages; every target does this where it is needed

$(INSTALLED): requirements.txt
	@$(call quoted,$(PYTHON)) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "error: PYTHON=$(PYTHON) is no Python of version 3.11 or newer; try make PYTHON=python3.11" >&2; exit 1; }
	@echo "installing the pinned packages into $(VENV), some minutes"
	@test -x $(VENV)/bin/python || $(call quoted,$(PYTHON)) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check --requirement requirements.txt
	@touch $@
