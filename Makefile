# canal-dns: `make run` and `make test` need git, Python 3.11+ and make; `make help` lists the rest.

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed
# SHARED=1: what others on the same machine can spoil is told, and fails nothing (faults, soak).
# WRITE=1: the figures of faults, soak and fuzz are kept, and written into docs/reliability.md
KEEP_FIGURES = $(if $(WRITE),--write; met=$$?; $(BIN)/python -m tests.meta.render_reliability && exit $$met)

.DEFAULT_GOAL := help
.PHONY: help install run demo test test-pure sanitize conformance e2e faults soak fuzz audit lock lint format manifests docs bench scale clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## virtual environment with canal-dns and what the tests need

$(STAMP): setup.cfg setup.py pyproject.toml $(wildcard canal_dns/server/*.pyx canal_dns/server/*.pxd canal_dns/server/*.h)
	@$(PYTHON) -c 'import sys; sys.exit("canal-dns needs Python 3.11 or newer, this is %d.%d" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

run: $(STAMP) ## the demo: a server, a stand-in CoreDNS, and what to dig
	@$(BIN)/canal-dns demo

test: $(STAMP) ## the whole fast suite
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not e2e"

test-pure: $(STAMP) ## the same with no extension, as on a machine without a compiler
	CANAL_DNS_NO_EXTENSIONS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m "not e2e"

sanitize: $(STAMP) ## the extensions under gcc's address and undefined behaviour sanitizers, any warning an error
	$(BIN)/python -m tests.server.sanitized

conformance: $(STAMP) ## every case of tests/conformance/cases.json against a real server process
	$(BIN)/python -m tests.conformance.run

e2e: $(STAMP) ## on a real cluster: CoreDNS, kube-apiserver, istiod and Envoy, in a network namespace
	$(BIN)/python -m pytest -m e2e tests/e2e

faults: $(STAMP) ## canal-dns under every fault, a line for each (LONG=1: the demands at full length, an hour; ROWS="U1 K3")
	$(BIN)/python -m tests.faults $(ROWS) $(if $(LONG),--long) $(if $(SHARED),--shared) $(KEEP_FIGURES)

soak: $(STAMP) ## ten minutes of load while everything fails that can (SECONDS=60: a shorter one)
	$(BIN)/python -m tests.soak $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SHARED),--shared) $(KEEP_FIGURES)

fuzz: $(STAMP) ## hostile packets, replies, manifests and events (SECONDS=60: a look; LONG=1: a million packets, and forgeries)
	$(BIN)/python -m tests.fuzz $(if $(LONG),--long) $(if $(SECONDS),--seconds $(SECONDS)) $(KEEP_FIGURES)

audit: $(STAMP) ## known vulnerabilities of what the image and this environment have
	$(BIN)/python -m tests.audit

lock: $(STAMP) ## requirements.txt of the image: the newest versions, with hashes
	$(BIN)/python -m tests.lock

lint: $(STAMP) ## ruff, mypy --strict and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --config setup.cfg

format: $(STAMP) ## put the code into ruff's form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

manifests: $(STAMP) ## the generated files of manifests/, from the chart, the settings and docs/layouts.md
	$(BIN)/python -m manifests.tools --helm "$$($(BIN)/python -m tests.e2e.binaries helm)"

docs: $(STAMP) ## the generated parts of docs/: from the code, the chart, and the figures of the last long runs
	$(BIN)/python -m tests.meta.render_binding
	$(BIN)/python -m tests.meta.render_operate
	$(BIN)/python -m tests.meta.render_reliability

bench: $(STAMP) ## canal-dns beside its peers; writes benchmarks/RESULTS.md (ONLY=hits,tcp: prints these)
	$(BIN)/python -m benchmarks.run $(if $(ONLY),--only $(ONLY))

scale: $(STAMP) ## 20,000 Services on a real API server, CoreDNS beside it; writes benchmarks/SCALE.md
	$(BIN)/python -m benchmarks.scale

clean: ## remove what make made
	rm -rf $(VENV) build dist canal_dns/server/*.so *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
