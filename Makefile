# Everything a newcomer needs: `make demo` shows it, `make test` proves it. Both install what they need.
PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
OBJECT := agent/tailspan/_bpf/tailspan.bpf.o
PROMETHEUS := $(VENV)/prometheus
PACKAGES := python3-venv python3-pip make clang llvm libbpf-dev libbpf1 openssl python3-bpfcc systemd iproute2 procps mmdebstrap e2fsprogs
RUN := $(if $(filter 0,$(shell id -u)),,sudo)

.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: venv ## a worker, a neighbour that takes its CPU, and the explanation of one slow request (root)
	$(RUN) $(BIN)/python -m tailspan.worker.demo --store .demo

test: venv $(PROMETHEUS) ## lint, types, layers, and all tests (root: the kernel tests load BPF)
	$(MAKE) -j2 check downloads
	$(MAKE) -j2 -Otarget units guests
	$(RUN) $(BIN)/pytest $(addprefix --ignore=tests/,$(ASIDE)) $(PYTEST_FLAGS)

# What neither minds nor disturbs others' timing; the rest has the machine for itself.
ASIDE := unit fuzz kernels packaging

units: venv
	$(RUN) $(BIN)/pytest tests/unit tests/fuzz $(PYTEST_FLAGS)

guests: venv # with a kernel or a Debian of their own
	$(RUN) $(BIN)/pytest tests/kernels tests/packaging $(PYTEST_FLAGS)

# A clean Debian and a kernel, while the checks run. The tests fetch what is not there, and say why if they cannot.
downloads: venv
	-@$(RUN) $(BIN)/python -c "from tests.packaging import root; root.make()"
	-@$(RUN) $(BIN)/python -c "from tests.kernels import archive; archive.unpacked(archive.kernel('6.1'))"

check: venv ## formatting, lint, types, import layers, generated files
	$(BIN)/ruff format --check -q .
	$(BIN)/ruff check -q .
	$(BIN)/mypy
	$(BIN)/mypy packaging/*.py
	$(BIN)/lint-imports
	$(BIN)/python -m tailspan.collect.bpf.codegen $(OBJECT) $(VENV)/events.py
	diff -u agent/tailspan/wire/events.py $(VENV)/events.py

bench: venv ## what the agent costs, agent on against absent (root; JSON=file writes it as JSON)
	$(RUN) $(BIN)/python -m tests.bench $(if $(JSON),--json $(JSON))

scorecard: venv ## every fault injected beside a worker, and how often it is named (root; JSON=file, FAULTS=a,b)
	$(RUN) $(BIN)/python -m tests.scorecard $(if $(JSON),--json $(JSON)) $(if $(FAULTS),--faults $(FAULTS))

fuzz: venv ## all that reads foreign bytes, by coverage (SECONDS=60 each, TARGETS="btf spool", JSON=file)
	$(BIN)/python -m tests.fuzz $(TARGETS) --seconds $(or $(SECONDS),60) $(if $(JSON),--json $(JSON))

chaos: venv ## faults on the agent itself beside a busy worker (root; SECONDS=3600, JSON=file, FAULTS=a,b)
	$(RUN) $(BIN)/python -m tests.chaos $(if $(SECONDS),--seconds $(SECONDS)) $(if $(JSON),--json $(JSON)) $(if $(FAULTS),--faults $(FAULTS))

kernels: venv ## the kernel tests on other Debian kernels under qemu, through both loaders (root; an hour)
	$(RUN) $(BIN)/python -m tests.kernels --page docs/kernels.md

events: venv ## regenerate wire/events.py after bpf/events.h changed
	$(BIN)/python -m tailspan.collect.bpf.codegen $(OBJECT) agent/tailspan/wire/events.py

bpf: deps ## compile the BPF object
	@$(MAKE) --no-print-directory -C bpf

generated: venv ## regenerate the dashboards and rules, docs/telemetry.md and docs/causes.md
	$(BIN)/python -m dashboards
	$(BIN)/python docs/telemetry.py
	$(BIN)/python docs/causes.py

pictures: demo ## redraw docs/pictures from a demo (root)
	$(RUN) $(BIN)/python docs/pictures.py .demo --live

dist: venv ## wheel and source distribution in dist/
	$(BIN)/pip install -q build
	$(BIN)/python -m build --outdir dist .

deb: venv ## the Debian package in dist/, for this release and architecture
	$(BIN)/python packaging/build_deb.py

venv: $(VENV)/installed ## the virtual environment, with the agent, the worker and the test tools in it

deps: ## Debian packages, only those that are missing
	@missing=$$(for p in $(PACKAGES); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	  echo "installing:" $$missing; \
	  $(RUN) apt-get update -q && $(RUN) env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; \
	fi

$(VENV)/installed: pyproject.toml bpf/hatch_build.py $(wildcard bpf/*.c bpf/*.h bpf/Makefile) | deps
	@$(MAKE) --no-print-directory -C bpf
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -e '.[worker,dev]'
	@touch $@

# Debian's package unpacked, not installed: it would start a service. Its two programs need nothing else.
$(PROMETHEUS): DOWNLOAD = apt-get download -qq -o APT::Sandbox::User=root prometheus
$(PROMETHEUS): | venv
	@rm -rf $@.part && mkdir -p $@.part
	@cd $@.part && { $(DOWNLOAD) || { $(RUN) apt-get update -q && $(DOWNLOAD); }; } || \
	{ echo "cannot download Debian's package prometheus: dashboards and rules are tested with it" >&2; exit 1; }
	@dpkg -x $@.part/prometheus_*.deb $@.part
	@mv $@.part $@

clean: ## remove what make made
	rm -rf $(VENV) .demo dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	$(MAKE) -C bpf clean

.PHONY: help demo test units guests downloads check bench scorecard fuzz chaos kernels events generated pictures bpf dist deb venv deps clean
