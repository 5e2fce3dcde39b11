# Everything needs only Python 3.11+ and make; the environment lives in .venv and is reused.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INPUTS := pyproject.toml constraints.txt

.PHONY: demo test test-slow lint bench faults fuzz fuzz-quick hashes sbom soak docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed                ## train, attack and report on digits; prints where the report is
	$(BIN)/holdfast quickstart

test: $(VENV)/.installed-test           ## ruff, mypy, the import-layer test and pytest
	$(MAKE) --no-print-directory lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-slow: $(VENV)/.installed-test      ## minutes of training: the headline over three seeds
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -s

bench: $(VENV)/.installed               ## speed ratios, measured side by side in one run
	$(BIN)/holdfast bench --quick

sbom: $(VENV)/.installed                ## the installed packages with versions, in CycloneDX form: sbom.cdx.json
	$(PIP) install -c constraints.txt 'cyclonedx-bom>=5'
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --mc-type library --output-reproducible --of JSON -o sbom.cdx.json $(BIN)/python

hashes: $(VENV)/.created                 ## every package that an installation takes, pinned with its hash: build/hashes.txt
	mkdir -p build
	$(PIP) install --dry-run --ignore-installed --report build/pip.json -c constraints.txt .
	$(BIN)/python .ci/hashes.py < build/pip.json > build/hashes.txt
	@echo "build/hashes.txt: pip install --require-hashes -r build/hashes.txt && pip install --no-deps ."

faults: $(VENV)/.installed-test         ## kills, full disks, damaged files: about a quarter of an hour
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/run.py --kills 200 --seed 0 --every 8 --each 3 --out build/faults.json

fuzz: $(VENV)/.installed-test           ## a million executions of every parser: hours
	-$(PIP) install atheris==3.0.0
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/run.py --runs 1000000 --out build/fuzz.json --crashes build/fuzz-crashes

fuzz-quick: $(VENV)/.installed-test     ## the same for a minute
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/run.py --runs 1000000 --seconds 2 --out build/fuzz-quick.json

soak: $(VENV)/.installed                ## memory, files and threads over 10 000 suite chunks and training steps
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py

docs: $(VENV)/.installed-docs           ## the documentation site, in site/
	NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 $(BIN)/mkdocs build --quiet --strict

clean:
	rm -rf $(VENV) build dist site .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"need Python 3.11 or newer, {sys.executable} is {v[0]}.{v[1]}; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.created $(INPUTS)
	@echo "installing (once, about a minute) ..."
	$(PIP) install -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.created $(INPUTS)
	@echo "installing with test tools (once, about a minute) ..."
	$(PIP) install -c constraints.txt -e '.[test]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) install -c constraints.txt -e '.[docs]'
	touch $@
