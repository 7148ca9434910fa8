# make demo | make test : each does all the set-up on a bare machine (Python >= 3.11 and a package index are enough).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint types unit chaos fuzz docs pages gpu-pack gpu-check clean

demo: $(STAMP)
	$(BIN)/raysweep run demo
	$(BIN)/raysweep show demo --plot demo.png

test: $(STAMP) lint types unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

chaos: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/ray/chaos.py --rounds 20

# 5,000 odd inputs, new ones each time; about ten minutes. `make test` tries 120, always the same ones.
fuzz: $(STAMP)
	RAYSWEEP_FUZZ=5000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fuzz -p no:randomly --timeout 3600

# The site, in build/site, of the pages and of the docstrings (mkdocs.yml); a link that leads nowhere ends it.
docs: pages
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Pages that are made from the code.
pages: $(STAMP)
	$(BIN)/python -m raysweep.cli.docs architecture > docs/architecture.svg
	$(BIN)/python -m raysweep.cli.docs errors > docs/errors.md
	$(BIN)/python -m raysweep.cli.docs keys > docs/keys.md
	$(BIN)/python -m raysweep.results.schema

# Figures of a card in less than eight minutes (docs/performance.md). Where the card is there may be no package index, no venv and no
# make: `make gpu-pack` here, carry this folder there, then `make gpu-check` or `bash benchmarks/gpu/card.sh check`. On any machine: make gpu-check ARGS='--shape tiny'.
gpu-pack:
	PYTHON=$(PYTHON) bash benchmarks/gpu/card.sh pack

gpu-check:
	PYTHON=$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) bash benchmarks/gpu/card.sh check gpu.json $(ARGS)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) results artifacts
