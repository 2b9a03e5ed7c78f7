# `make help` lists what there is. Everything is set up in .venv, in this checkout.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help
RUN := $(BIN)/powerbench run --output-dir test_results
.PHONY: help demo test coverage test-real test-single test-multi test-batch analyze benchmarks lint format type check pre-commit \
	lock docs doctor native-up native-down dashboards deb image env up up-build down restart ps logs targets \
	prom-reload nvidia-up nvidia-up-build test-systemd

help: ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | \
		while IFS="$$(printf '\t')" read -r name what; do printf '  make %-12s %s\n' "$$name" "$$what"; done

demo: $(VENV)/.run ## measure one real stream against an idle baseline (about a minute)
	@$(BIN)/powerbench run --output-dir test_results single --with-baseline --baseline-duration 10 \
		--name demo --bitrate 2000k --resolution 1280x720 --fps 30 --duration 20 --stabilization 3 --cooldown 0
	@echo
	@echo 'Next: start an agent:  $(BIN)/powerbench-agent  and read it:  curl localhost:9510/metrics'
	@echo '      longer runs with your own settings:  $(BIN)/powerbench run single --help'
	@echo '      the guide:  docs/guide.md'

test: $(VENV)/.dev ## run the fast tests: no root, no network, no daemon
	@$(BIN)/pytest --numprocesses=auto $(if $(COVERAGE),--cov --cov-report=term)

coverage: ## run the fast tests with branch coverage; fails below the floor in pyproject.toml
	@$(MAKE) --no-print-directory test COVERAGE=yes

test-real: $(VENV)/.real ## run the tests against real programs; as root on Debian, installs those that are missing
	@tests/real/prepare
	@$(BIN)/pytest tests/real --numprocesses=2 --dist=loadfile -m 'not alone'
	@$(BIN)/pytest tests/real -m alone

test-single: $(VENV)/.run ## measure one stream against an idle baseline (4 minutes)
	@$(RUN) single --with-baseline

test-multi: $(VENV)/.run ## measure four simultaneous streams against an idle baseline (4 minutes)
	@$(RUN) multi --with-baseline --count 4 --bitrate 2500k

test-batch: $(VENV)/.run ## measure a batch: FILE=configs/batches/stress-matrix.json REPEAT=1 (30 minutes per repeat)
	@$(RUN) --repeat $(or $(REPEAT),1) --order interleaved batch --file $(or $(FILE),configs/batches/stress-matrix.json)

analyze: $(VENV)/.run ## report on the newest results, or on FILE=test_results/….json
	@$(BIN)/powerbench analyze $(FILE)

native-up: $(VENV)/.run ## start the stack without Docker, from Debian's packages, on loopback; its files go to .native
	@$(BIN)/python compose/native.py up --agent $(BIN)/powerbench-agent

native-down: $(VENV)/.run ## stop what native-up started; stored data is kept
	@$(BIN)/python compose/native.py down

doctor: $(VENV)/.run ## check what this machine can measure, what is missing, and how to fix it
	@$(BIN)/powerbench doctor

benchmarks: $(VENV)/.dev ## measure the agent's own cost beside that of comparable programs
	@$(BIN)/python benchmarks/run.py
	@$(BIN)/python benchmarks/gpus.py
	@$(BIN)/python benchmarks/containers.py
	@$(BIN)/python benchmarks/recorder.py
	@$(BIN)/python benchmarks/keeping.py
	@$(BIN)/python benchmarks/analysis.py

lint: $(VENV)/.dev ## check the code with ruff, and the import rules
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/lint-imports

format: $(VENV)/.dev ## format the code
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

type: $(VENV)/.dev ## check the types with mypy, strict
	@$(BIN)/mypy

check: lint type test ## run lint, type and test

test-systemd: $(VENV)/.dev ## test the package on a minimal Debian booted under systemd; needs root on Debian
	@tests/systemd/prepare programs
	@tests/systemd/prepare & made=$$!; $(MAKE) --no-print-directory deb && wait $$made
	@$(BIN)/pytest tests/systemd

deb: $(VENV)/.dev ## build the Debian package and its SBOM in dist/
	@packaging/debian/build $(BIN)

image: ## build the agent's image: BASE=base image, TAG=name, BUILD_FLAGS=flags for docker build
	@docker build $(if $(BASE),--build-arg BASE=$(BASE)) --tag $(or $(TAG),powerbench-agent) $(BUILD_FLAGS) \
		--file packaging/image/Dockerfile .

env: ## create compose/.env, with a new password for Grafana, unless it exists
	@compose/make-env

up: env ## start the stack in containers: Grafana on localhost:3000, Prometheus on 9090, the agent on 9510
	@mkdir -p test_results
	@compose/run up --detach

up-build: env ## the same, with rebuilt images
	@mkdir -p test_results
	@compose/run up --detach --build

down: ## stop the stack; stored data is kept
	@compose/run down --remove-orphans

restart: ## restart the stack, or one SERVICE=
	@compose/run restart $(SERVICE)

ps: ## list the running services and their health
	@compose/run ps

logs: ## follow the logs of the stack, or of one SERVICE=
	@compose/run logs --follow --tail=100 $(SERVICE)

targets: ## list scrape targets and their errors: PROM_URL=http://127.0.0.1:9090
	@$(PYTHON) compose/ask_prometheus.py targets

prom-reload: ## make Prometheus, Alertmanager and vmalert reload their files, in containers or without
	@$(PYTHON) compose/ask_prometheus.py reload \
		$(if $(wildcard .native/run.json),$(BIN)/python compose/native.py reload,compose/run hup)

nvidia-up: env ## start the stack with GPU access and the DCGM exporter (needs NVIDIA's container toolkit)
	@mkdir -p test_results
	@compose/run --nvidia up --detach

nvidia-up-build: env ## the same, with rebuilt images
	@mkdir -p test_results
	@compose/run --nvidia up --detach --build

pre-commit: $(VENV)/.dev ## run the commit hooks on every file
	@$(BIN)/pre-commit run --all-files

docs: $(VENV)/.dev ## regenerate docs/metrics.md from the declared metrics
	@$(BIN)/python docs/generate.py

dashboards: $(VENV)/.dev ## regenerate compose/grafana/dashboards from compose/grafana/boards
	@$(BIN)/python compose/grafana/generate.py

lock: $(VENV)/.dev ## regenerate requirements/*.txt (needs uv)
	@for extra in agent: run:bench ffmpeg:ffmpeg dev:dev real:real; do \
		set -- $${extra#*:}; \
		uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
			--no-emit-index-url --no-emit-find-links --no-emit-package powerbench-agent \
			$${1:+--extra "$$1"} pyproject.toml requirements/build.in -o "requirements/$${extra%:*}.txt"; \
	done

# What running the agent and the benchmark needs; ffmpeg too, if the machine has none.
$(VENV)/.run: requirements/run.txt requirements/ffmpeg.txt pyproject.toml | $(VENV)/.made
	@requirements/install $(VENV) requirements/run.txt
	@command -v ffmpeg >/dev/null || requirements/install $(VENV) requirements/ffmpeg.txt
	@touch $@

$(VENV)/.dev: requirements/dev.txt pyproject.toml | $(VENV)/.made
	@requirements/install $(VENV) requirements/dev.txt
	@touch $@ $(VENV)/.run

$(VENV)/.real: requirements/real.txt requirements/clip.txt $(VENV)/.dev
	@requirements/install $(VENV) requirements/real.txt requirements/clip.txt
	@touch $@

$(VENV)/.made:
	@requirements/make-venv $(VENV) $(PYTHON)
	@touch $@
