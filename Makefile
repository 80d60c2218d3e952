# `make help` lists the targets. Those of sweeps take PROFILE, MODEL, DATA, SEEDS, WORKERS, OUT and ARGS.

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
# Sweeps need less than the tests do. If all is there, that is enough.
FOR_SWEEPS := $(if $(wildcard $(INSTALLED)),$(INSTALLED),$(VENV)/installed-for-sweeps)

# 'a value' in single quotes reaches the program as it is, whatever it has in it
quoted = '$(subst ','\'',$(1))'
option = $(if $(2),--$(1)=$(call quoted,$(2)))
SETTINGS = $(strip $(call option,profile,$(PROFILE)) $(call option,out,$(OUT)) $(call option,model,$(MODEL)) \
	$(call option,data,$(DATA)) $(call option,seed,$(SEEDS)) $(call option,workers,$(WORKERS)) $(ARGS))

SWEEPS := $(patsubst sweeps/%.yaml,sweep-%,$(wildcard sweeps/*.yaml))
STUDIES := $(patsubst sweeps/studies/%.yaml,study-%,$(wildcard sweeps/studies/*.yaml))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help sweeps study results live figures notebook report bench docs faults install test coverage lint wheel-check $(SWEEPS) $(STUDIES)

help:
	@awk -F ':.*## ' '/^[a-z$$].*:.*## /{sub(/\$$\(SWEEPS\)/, "sweep-NAME", $$1); sub(/\$$\(STUDIES\)/, "study-NAME", $$1); \
		printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\nNAME of a sweep: %s\n' '$(patsubst sweep-%,%,$(SWEEPS))' | fold -s -w 98
	@printf 'NAME of a tuning study: %s\n\n' '$(patsubst study-%,%,$(STUDIES))'
	@echo 'make sweep-splits PROFILE=paper SEEDS=0,1,2 WORKERS=2 ARGS="--epochs=3"   and MODEL, DATA, OUT'

$(SWEEPS): sweep-%: $(FOR_SWEEPS)  ## run what is missing of a sweep, print its table, draw its figures
	@$(VENV)/bin/python -m sweeps $(call quoted,$*) --analyse $(SETTINGS)

$(STUDIES): study-%: $(FOR_SWEEPS)  ## choose settings run by run
	@$(VENV)/bin/python -m sweeps $(call quoted,$@) $(SETTINGS)

sweeps: $(FOR_SWEEPS)  ## list the sweeps: what each asks, its cells, what is missing, estimated time
	@$(VENV)/bin/python -m sweeps $(SETTINGS)

live: $(INSTALLED)  ## look at the sweep in OUT that ran last, or at SWEEP, while it runs: queue and report
	@$(VENV)/bin/python -m sweeps live $(call option,out,$(OUT)) $(call option,sweep,$(SWEEP)) $(ARGS)

figures: $(INSTALLED)  ## every figure and table of the paper, and ours, that the sweeps in OUT allow
	@$(VENV)/bin/python -m analysis all $(call option,out,$(OUT)) $(ARGS)

report: $(INSTALLED)  ## one HTML page with all figures, tables and tests: OUT/report.html
	@$(VENV)/bin/python -m analysis report $(call option,out,$(OUT)) $(ARGS)

notebook: $(INSTALLED)  ## the notebook of the ablations, executed on the sweeps in OUT
	@$(VENV)/bin/python -m analysis notebook $(call option,out,$(OUT))

results study: PROFILE = study
results study: OUT = results

study: $(INSTALLED)  ## run what is missing of the whole study, then make results; takes days, goes on after any stop
	@$(VENV)/bin/python -m sweeps study $(SETTINGS)
	@$(if $(findstring --dry-run,$(ARGS)),,$(VENV)/bin/python -m analysis results $(call option,out,$(OUT)) $(call option,profile,$(PROFILE)))

results: $(INSTALLED)  ## the page of measured results, from the committed runs: trains nothing
	@$(VENV)/bin/python -m analysis results $(call option,out,$(OUT)) $(call option,profile,$(PROFILE))

bench: $(INSTALLED)  ## what a step costs beside ADAM's; sizes by ARGS="--layers=12 --width=384"
	@$(VENV)/bin/python -m train.bench $(ARGS)

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

docs: $(INSTALLED)  ## the site in build/site, with the API from docstrings; a warning is an error
	@$(VENV)/bin/python -m sphinx --quiet --fail-on-warning --keep-going -d build/doctrees docs build/site
	@echo "build/site/index.html"

faults: $(INSTALLED)  ## kill and stop runs and sweeps, spoil their files: docs/faults.md; ten minutes
	@$(VENV)/bin/python -m pytest -p tests.fault_page -m '' $$(grep -lw fault tests/test_*.py)

wheel-check: $(INSTALLED)  ## the wheel in new environments, oldest torch and newest: some GB, an hour
	@$(VENV)/bin/python -m nox $(ARGS)

install: $(INSTALLED)  ## make .venv with the pinned packages; every target installs what it needs

# $(call installed_from,FILE,WHAT): install what FILE names, in the versions of requirements.txt. A new environment shows how far pip is.
define installed_from
	@$(call quoted,$(PYTHON)) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "error: PYTHON=$(PYTHON) is no Python of version 3.11 or newer; try make PYTHON=python3.11" >&2; exit 1; }
	@echo "installing $(2) into $(VENV), some minutes"
	@said=--quiet; test -x $(VENV)/bin/python || { said= && $(call quoted,$(PYTHON)) -m venv $(VENV); } && \
		$(VENV)/bin/python -m pip install $$said --disable-pip-version-check --requirement $(1) --constraint requirements.txt
	@touch $@
endef

$(INSTALLED): requirements.txt
	$(call installed_from,$<,all pinned packages)

$(VENV)/installed-for-sweeps: requirements-sweeps.txt requirements.txt
	$(call installed_from,$<,what sweeps need of the pinned packages)
