# make demo | make test : each does all the set-up on a bare machine (Python >= 3.11 and a package index are enough).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint types unit chaos fuzz docs clean

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

docs: $(STAMP)
	$(BIN)/python -m raysweep.cli.docs architecture > docs/architecture.svg
	$(BIN)/python -m raysweep.cli.docs errors > docs/errors.md
	$(BIN)/python -m raysweep.cli.docs keys > docs/keys.md
	$(BIN)/python -m raysweep.results.schema

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) results artifacts
