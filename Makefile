# `make demo` and `make test` each work alone on a fresh machine: they make .venv and install into it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO ?= out/demo

.DEFAULT_GOAL := help
.PHONY: help demo test check format

help:  ## say what there is to make
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## */  make \1\t/' | expand -t 16

demo: $(READY)  ## run the main job on simulated clips and write out/demo/results/report.html
	$(BIN)/usvol demo -o $(DEMO)

test: check  ## lint, type-check and run all tests
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: $(READY)  ## put the code into its format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Reinstalled when what is asked for changes. Pins keep torch at its CPU build where one is offered.
$(READY): pyproject.toml plugins/napari/pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "usvol needs Python 3.11 or later")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt \
		--editable '.[train,itk,bench,dev]' --editable './plugins/napari[test]'
	@.ci/debian-libraries $(BIN)/python
	touch $@
