# spanlake for people who work on it. A fresh machine needs git, make and python3 (3.11 or newer) with venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LOCK_VENV := build/lock-venv
PYTEST_ARGS ?=
TEST_PROCESSES ?= 2

.PHONY: help setup demo up test javascript exporters faults fuzz invariant evaluate bench bench-compare docs lock

help:
	@echo "make setup   install everything into $(VENV), exactly as locked"
	@echo "make demo    run everything with simulated traffic"
	@echo "make up      run everything and wait for spans"
	@echo "make test    lint, types and tests (PYTEST_ARGS='-k sandbox' runs some of them)"
	@echo "make javascript  install the exporter of JavaScript, for tests"
	@echo "make exporters  build real exporters of JavaScript, Go and Java, and test with all of them"
	@echo "make faults  kill the collector KILLS=50 times under load, then at every step, and print what came of it"
	@echo "make evaluate  judge the findings on scripted incidents (SEEDS=1-5; 1000-1999 are never tuned on)"
	@echo "make fuzz    fuzz decoder and servers, FUZZ_SECONDS=600 in all"
	@echo "make invariant  hold rollups against recomputation in EXAMPLES=50 random histories, at every snapshot"
	@echo "make bench   measure speed and memory (BENCH=full, SIZES='1e6 1e7', JSON=build/bench.json)"
	@echo "make bench-compare A=a.json B=b.json  what changed between two runs"
	@echo "make docs    write the generated parts of docs/ anew"
	@echo "make lock    resolve the dependencies anew into requirements.lock"

setup: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"$(PYTHON) is Python {v[0]}.{v[1]}: expected 3.11 or newer; give another: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV); the first time takes a minute or two"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup
	$(BIN)/spanlake demo

up: setup
	$(BIN)/spanlake up

test: setup
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses $(TEST_PROCESSES) --dist loadfile $(PYTEST_ARGS)

APPLICATIONS := tests/applications
JAVASCRIPT_INSTALLED := $(APPLICATIONS)/javascript/node_modules/.package-lock.json

$(JAVASCRIPT_INSTALLED): $(APPLICATIONS)/javascript/package-lock.json
	npm ci --prefix $(APPLICATIONS)/javascript --silent
	@touch $@

javascript: $(JAVASCRIPT_INSTALLED)

exporters: setup javascript
	cd $(APPLICATIONS)/go && go build -o $(CURDIR)/build/exporters/go .
	mvn --quiet --batch-mode --file $(APPLICATIONS)/java/pom.xml package
	EXPORTERS=all $(BIN)/pytest tests/test_foreign_exporters.py $(PYTEST_ARGS)

KILLS ?= 50

faults: setup
	KILLS=$(KILLS) $(BIN)/pytest tests/test_faults_kill.py --timeout 3600 -s $(PYTEST_ARGS)
	FAULTS=all $(BIN)/pytest tests/test_faults_*.py $(PYTEST_ARGS)

SEEDS ?= 1-5

evaluate: setup
	@mkdir -p build
	$(BIN)/python -m benchmarks.evaluate --seeds $(SEEDS) --output build/evaluation.json --misses build/misses.txt

FUZZ_SECONDS ?= 600
FUZZ_TARGETS := protobuf json http grpc
FUZZ_FOLDER := build/fuzz

fuzz: setup
	@for target in $(FUZZ_TARGETS); do \
		echo "== $$target"; \
		mkdir -p $(FUZZ_FOLDER)/$$target; \
		$(BIN)/python tests/fuzz/run.py $$target -max_total_time=$$(( $(FUZZ_SECONDS) / $(words $(FUZZ_TARGETS)) )) \
			-print_final_stats=1 -artifact_prefix=$(FUZZ_FOLDER)/$$target- \
			$(FUZZ_FOLDER)/$$target tests/fuzz/corpus/$$target || exit 1; \
	done

EXAMPLES ?= 50

invariant: setup
	INVARIANT_EXAMPLES=$(EXAMPLES) $(BIN)/pytest tests/test_analytics_invariant.py --timeout 3600 $(PYTEST_ARGS)

BENCH ?= quick
SIZES ?= 1e6
JSON ?= build/bench.json

bench: setup
	$(BIN)/python -m benchmarks.suite $(if $(filter full,$(BENCH)),--full) --sizes $(SIZES) --json $(JSON)

bench-compare: setup
	@test -n "$(A)" -a -n "$(B)" || { echo "expected make bench-compare A=a.json B=b.json"; exit 2; }
	$(BIN)/python -m benchmarks.compare $(A) $(B)

docs: setup
	$(BIN)/python docs/generate.py

lock:
	@test -x $(LOCK_VENV)/bin/uv || { $(PYTHON) -m venv $(LOCK_VENV) && $(LOCK_VENV)/bin/pip install --quiet uv; }
	$(LOCK_VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
		--no-header --upgrade --extra build --extra test --extra fuzz pyproject.toml --output-file requirements.lock
