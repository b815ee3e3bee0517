# Every target sets up what it needs; PYTHON=python3.12 chooses the interpreter, TORCH=cpu takes PyTorch's CPU build.
PORT ?= 8000
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PYTHON TORCH PROFILE LOAD

# Folders with Python code; mypy reads all but the tests.
CODE := $(wildcard service observability models benchmarks tests)
TYPED := $(filter-out tests,$(CODE))
# What the tests start: program:Debian package.
TEST_PROGRAMS := initdb:postgresql redis-server:redis-server cc:gcc cc:libc6-dev promtool:prometheus amtool:prometheus-alertmanager

.PHONY: help run stack stack-down test test-fleet test-stack test-compose test-gpu test-peers gameday lint format bench bench-quick bench-engine bench-study bench-gpu bench-gpu-modes bench-gpu-peers bench-telemetry soak config lock clean
.DEFAULT_GOAL := help

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: $(READY) ## serve on 127.0.0.1; PORT=8000, ARGS="more arguments"
	@$(BIN)/safelight serve --host 127.0.0.1 --port $(PORT) $(ARGS)

stack: ## the whole stack in containers; PROFILE=gpu, demo-gpu or scale, LOAD=1 for users, ARGS="arguments of compose up"
	@tools/compose up --build $(ARGS)

stack-down: ## end it; ARGS=--volumes forgets what it kept
	@PROFILE=scale tools/compose --profile gpu --profile demo-gpu --profile load down $(ARGS)

test: lint ## check style and types, run every test; ARGS="pytest arguments"
	@tools/setup programs $(TEST_PROGRAMS)
	$(BIN)/pytest --numprocesses 2 --dist loadfile $(ARGS)

test-fleet: $(READY) ## the tests of the API on a fleet with Redis, PostgreSQL and S3, and those of fleets; ARGS="pytest arguments"
	@tools/setup programs $(TEST_PROGRAMS)
	$(BIN)/pytest --numprocesses 2 --dist loadfile --setting fleet tests/integration tests/fleet $(ARGS)

test-stack: $(READY) ## run a whole stack: every query and rule, drills of alerts, pages in a browser; ARGS="pytest arguments"
	@tools/setup programs $(TEST_PROGRAMS) prometheus-alertmanager:prometheus-alertmanager chromium:chromium
	$(BIN)/pytest -o faulthandler_timeout=1800 tests/stack tests/browser tests/gameday $(ARGS)

test-compose: $(READY) ## start the stack in containers, with stand-ins where no image can be had; ARGS="pytest arguments"
	@tools/setup programs dockerd:docker.io docker-compose:docker-compose debootstrap:debootstrap
	$(BIN)/pytest -o faulthandler_timeout=1800 tests/compose $(ARGS)

test-gpu: $(READY) ## what needs a GPU, and the differential tests on it; ARGS="pytest arguments"
	TEST_DEVICE=cuda NVIDIA_TF32_OVERRIDE=0 $(BIN)/pytest tests/gpu tests/integration/test_differential.py $(ARGS)

gameday: $(READY) ## make every alert fire and resolve, and write docs/gameday.md; or ARGS=--core, or other arguments
	@tools/setup programs $(TEST_PROGRAMS) prometheus-alertmanager:prometheus-alertmanager
	$(BIN)/safelight gameday $(or $(ARGS),--markdown docs/gameday.md)

lint: $(READY) ## check style and types only
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy $(TYPED)

format: $(READY) ## fix style where a tool can
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

test-peers: $(READY) ## whether each peer of the benchmarks starts and makes a picture; ARGS="pytest arguments"
	$(BIN)/pytest -o faulthandler_timeout=1800 tests/peers $(ARGS)

bench: $(READY) ## Safelight beside its peers and beside the limit, in two to three hours; ARGS="--resume", "--only mosec" or other arguments
	$(BIN)/python -m benchmarks.suite --write $(ARGS)

bench-quick: $(READY) ## the core of it in ten minutes; ARGS="more arguments"
	@rm -f build/quick.json
	$(BIN)/python -m benchmarks.suite --quick --json build/quick.json $(ARGS)

bench-engine: $(READY) ## continuous against window batching, and the bare pipeline; ARGS="more arguments"
	$(BIN)/python -m benchmarks.engine $(ARGS)

bench-study: $(READY) ## window batching by its parameters; ARGS=order: who goes first; ARGS=memory: order of weights, kinds of attention
	$(BIN)/python -m benchmarks.study $(or $(ARGS),window)

bench-gpu: bench-gpu-modes bench-gpu-peers ## all of it on a GPU; ARGS="--model sdxl"

bench-gpu-modes: $(READY) ## the ways of batching side by side on a GPU; ARGS="more arguments"
	$(BIN)/python -m benchmarks.gpu $(ARGS)

bench-gpu-peers: $(READY) ## what bench does beside peers, on a GPU; ARGS="--resume" or other arguments
	$(BIN)/python -m benchmarks.suite --device cuda --model sd15 --json build/gpu-peers.json $(ARGS)

bench-telemetry: $(READY) ## measure what telemetry costs; ARGS="more arguments"
	$(BIN)/python -m benchmarks.telemetry $(ARGS)

soak: $(READY) ## twenty minutes of trouble: every job ends once, memory stays; ARGS="more arguments"
	$(BIN)/python -m benchmarks.soak $(ARGS)

config: $(READY) ## write rules, their tests, dashboards, the lists of runbooks and metrics anew
	$(BIN)/python -m observability.catalogue
	$(BIN)/python -m observability.generate

lock: ## write requirements.lock anew with the newest versions; give TORCH=cpu where pip takes CUDA's by default
	tools/setup lock build/lock

clean: ## remove the virtual environment and caches; data/ stays
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements.lock pyproject.toml tools/setup
	@tools/setup venv $(VENV)
	@touch $@
