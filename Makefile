# `make help` lists what there is. Everything is set up in .venv, in this checkout.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help
RUN := $(BIN)/powerbench run --output-dir test_results
.PHONY: help demo test coverage test-real test-single test-multi test-batch analyze benchmarks lint format type check pre-commit \
	lock docs doctor native-up native-down dashboards deb image env up up-build down restart ps logs targets \
	prom-reload nvidia-up nvidia-up-build test-systemd

help: ## list what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | \
		while IFS="$$(printf '\t')" read -r name what; do printf '  make %-12s %s\n' "$$name" "$$what"; done

demo: $(VENV)/.run ## measure an idle baseline and one real stream, and compare them (about a minute)
	@$(BIN)/powerbench run --output-dir test_results single --with-baseline --baseline-duration 10 \
		--name demo --bitrate 2000k --resolution 1280x720 --fps 30 --duration 20 --stabilization 3 --cooldown 0
	@echo
	@echo 'Next: start an agent with  $(BIN)/powerbench-agent  and look:  curl localhost:9510/metrics'
	@echo '      longer, with your own settings:  $(BIN)/powerbench run single --help'
	@echo '      the guide:  docs/guide.md'

test: $(VENV)/.dev ## run the fast tests: no root, no network, no daemon
	@$(BIN)/pytest --numprocesses=auto

coverage: $(VENV)/.dev ## run the fast tests with branch coverage; fails below the floor in pyproject.toml
	@$(BIN)/pytest --numprocesses=auto --cov --cov-report=term

test-real: $(VENV)/.real ## run the tests against real programs; as root on Debian it installs what is missing
	@tests/real/prepare
	@$(BIN)/pytest tests/real

test-single: $(VENV)/.run ## measure one stream beside an idle machine (4 minutes)
	@$(RUN) single --with-baseline

test-multi: $(VENV)/.run ## measure four streams at once beside an idle machine (4 minutes)
	@$(RUN) multi --with-baseline --count 4 --bitrate 2500k

test-batch: $(VENV)/.run ## measure a batch: FILE=configs/batches/stress-matrix.json, REPEAT=1 (30 minutes a repeat)
	@$(RUN) --repeat $(or $(REPEAT),1) --order interleaved batch --file $(or $(FILE),configs/batches/stress-matrix.json)

analyze: $(VENV)/.run ## what the newest results say: FILE=test_results/…json
	@$(BIN)/powerbench analyze $(FILE)

native-up: $(VENV)/.run ## start the stack without Docker, from Debian's packages, on loopback; what it writes: .native
	@$(BIN)/python compose/native.py up --agent $(BIN)/powerbench-agent

native-down: $(VENV)/.run ## stop it; what it has stored stays
	@$(BIN)/python compose/native.py down

doctor: $(VENV)/.run ## what this machine can measure, what is missing, what to do
	@$(BIN)/powerbench doctor

benchmarks: $(VENV)/.dev ## measure the agent's own cost, beside its peers
	@$(BIN)/python benchmarks/run.py
	@$(BIN)/python benchmarks/gpus.py
	@$(BIN)/python benchmarks/containers.py
	@$(BIN)/python benchmarks/recorder.py
	@$(BIN)/python benchmarks/analysis.py

lint: $(VENV)/.dev ## ruff, and the import rules
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/lint-imports

format: $(VENV)/.dev ## format the code
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

type: $(VENV)/.dev ## mypy, strict
	@$(BIN)/mypy

check: lint type test ## lint, type and test

test-systemd: $(VENV)/.dev ## boot a minimal Debian under systemd and try the package on it; as root on Debian
	@tests/systemd/prepare programs
	@tests/systemd/prepare & made=$$!; $(MAKE) --no-print-directory deb && wait $$made
	@$(BIN)/pytest tests/systemd

deb: $(VENV)/.dev ## build the Debian package and its SBOM, into dist/
	@packaging/debian/build $(BIN)

image: ## build the agent's image: BASE=its base, TAG=its name, BUILD_FLAGS=docker build's own
	@docker build $(if $(BASE),--build-arg BASE=$(BASE)) --tag $(or $(TAG),powerbench-agent) $(BUILD_FLAGS) \
		--file packaging/image/Dockerfile .

env: ## make compose/.env, with a new password for Grafana, where there is none
	@compose/make-env

up: env ## start the stack in containers: Grafana on localhost:3000, Prometheus 9090, the agent 9510
	@mkdir -p test_results
	@compose/run up --detach

up-build: env ## the same, with images built anew
	@mkdir -p test_results
	@compose/run up --detach --build

down: ## stop the stack; what it has stored stays
	@compose/run down --remove-orphans

restart: ## restart it, or SERVICE= of it
	@compose/run restart $(SERVICE)

ps: ## what of the stack runs, and how it is
	@compose/run ps

logs: ## follow what it logs, or SERVICE= of it
	@compose/run logs --follow --tail=100 $(SERVICE)

targets: ## whom Prometheus scrapes, and what is wrong: PROM_URL=http://127.0.0.1:9090
	@$(PYTHON) compose/ask_prometheus.py targets

prom-reload: ## have Prometheus, Alertmanager and vmalert read their files anew, in containers or without
	@$(PYTHON) compose/ask_prometheus.py reload \
		$(if $(wildcard .native/run.json),$(BIN)/python compose/native.py reload,compose/run hup)

nvidia-up: env ## start the stack with the DCGM exporter, and the agent with the GPUs (NVIDIA's container toolkit)
	@mkdir -p test_results
	@compose/run --nvidia up --detach

nvidia-up-build: env ## the same, with images built anew
	@mkdir -p test_results
	@compose/run --nvidia up --detach --build

pre-commit: $(VENV)/.dev ## run the commit hooks on every file
	@$(BIN)/pre-commit run --all-files

docs: $(VENV)/.dev ## write docs/metrics.md anew out of the declarations
	@$(BIN)/python docs/generate.py

dashboards: $(VENV)/.dev ## write compose/grafana/dashboards anew out of compose/grafana/boards
	@$(BIN)/python compose/grafana/generate.py

lock: $(VENV)/.dev ## write requirements/*.txt anew (needs uv)
	@for extra in agent: run:bench ffmpeg:ffmpeg dev:dev real:real; do \
		set -- $${extra#*:}; \
		uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
			--no-emit-index-url --no-emit-find-links --no-emit-package powerbench-agent \
			$${1:+--extra "$$1"} pyproject.toml requirements/build.in -o "requirements/$${extra%:*}.txt"; \
	done

# The worker's install and the benchmark's, for those who only want to run it; ffmpeg where there is none.
$(VENV)/.run: requirements/run.txt requirements/ffmpeg.txt pyproject.toml | $(VENV)/.made
	@requirements/install $(VENV) requirements/run.txt
	@command -v ffmpeg >/dev/null || requirements/install $(VENV) requirements/ffmpeg.txt
	@touch $@

$(VENV)/.dev: requirements/dev.txt pyproject.toml | $(VENV)/.made
	@requirements/install $(VENV) requirements/dev.txt
	@touch $@ $(VENV)/.run

$(VENV)/.real: requirements/real.txt $(VENV)/.dev
	@requirements/install $(VENV) requirements/real.txt
	@touch $@

$(VENV)/.made:
	@requirements/make-venv $(VENV) $(PYTHON)
	@touch $@
