# One command does the main job on a real picture, one runs the tests; both set up `.venv` first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test check reproduce-embedded clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("ibisagent needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/ibisagent demo --out out/demo --overwrite

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

DATA ?= ../shared/data
reproduce-embedded: setup  # hours; continues where it was stopped
	$(BIN)/python runs/reproduce.py --data $(DATA)

clean:
	rm -rf .venv out dist
