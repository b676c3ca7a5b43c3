# demo: from nothing to a classifier.  test, check, docs: what CI runs.  bench: speed and quality, one by one.
SHELL := /bin/bash
.DEFAULT_GOAL := demo
.PHONY: demo test test-wheel check bench bench-speed bench-quality bench-serving docs clean python

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
VENV ?= .venv
BIN := $(VENV)/bin
BUNDLE := demo/sms-spam-tagsmith

demo: $(VENV)/.installed
	$(BIN)/tagsmith train sms-spam --preset fixed --out $(BUNDLE) --force
	$(BIN)/tagsmith predict $(BUNDLE) \
	  "You are a winner you have been specially selected to receive \$$1000 cash or a \$$2000 award." \
	  "Hey, just wanted to check if we're still on for dinner tonight? Let me know!"
	@echo "To serve it over HTTP: $(BIN)/tagsmith serve $(BUNDLE)" >&2

# Side by side, a file to a process; what measures seconds comes afterwards, alone.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist loadfile -m "not slow and not alone"

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)
	$(BIN)/python -m pytest -m "alone and not slow"

# What a wheel may lack that the sources have: modules, pages and styles, entry points, the version.
WHEEL_TESTS := tests/test_package.py tests/test_import_time.py tests/test_cli.py tests/test_plugins.py \
  tests/data/test_check_page.py tests/evaluation/test_page.py tests/deployment/test_bundle.py \
  tests/deployment/test_scoring.py tests/deployment/test_ui.py

test-wheel: $(VENV)/.installed-dev
	rm -rf build dist
	$(BIN)/python -m build --wheel --outdir dist . >/dev/null
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/wheel dist/*.whl
	PYTHONPATH=$(CURDIR)/build/wheel TAGSMITH_EXPECTED=$(CURDIR)/build/wheel \
	  $(BIN)/python -m pytest $(SIDE_BY_SIDE) $(WHEEL_TESTS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/pyrefly check

bench: $(VENV)/.installed-dev
	@set -e; for script in benchmarks/{data,speed,forecast}.py; do \
	  echo "== $$script"; $(BIN)/python "$$script"; done

bench-quality: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/quality.py --write docs/benchmarks/quality.md

# BUNDLE: SmolLM2 cut to 16 blocks. FAST: its export to the fastest engine that passed its gate. TINY: a tiny bundle for
# the faults. Parts can be run one by one: PARTS="calm overload".
PARTS ?= compare calm overload soak faults
FAST ?= $(BUNDLE)
TINY ?= $(BUNDLE)
SERVING := $(BIN)/python benchmarks/serving.py
bench-serving: $(VENV)/.installed-dev $(addprefix .serving-,$(PARTS))
	$(SERVING) write docs/benchmarks/serving.md

.PHONY: .serving-compare .serving-calm .serving-overload .serving-soak .serving-faults
.serving-compare:
	$(SERVING) compare $(FAST) --weights $(BUNDLE) --rounds 3 --seconds 10
.serving-calm:
	$(SERVING) calm $(FAST)
.serving-overload:
	$(SERVING) overload $(FAST) --minutes 10
.serving-soak:
	$(SERVING) soak $(FAST) --minutes 30
.serving-faults:
	$(BIN)/python benchmarks/serving_lives.py $(TINY) --signals 50 --kills 50 --reloads 100 --flips 1000 --cuts 100 \
	  --cases 10000 --bodies 100000 --compositions 10000

bench-speed: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/speed.py --large --write docs/benchmarks/speed.md

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/generate.py --check

clean:
	rm -rf demo build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml constraints.txt | python
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | python
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@ $(VENV)/.installed

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Tagsmith needs Python 3.11 or later; found '$(PYTHON)'. Name another: make PYTHON=python3.12" >&2; exit 2; }
