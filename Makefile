# Every verb is the same by hand, in hooks and in CI. `make help` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
BIN := .venv/bin
# Tools that come as wheels (hadolint, the S3 server) are found there, as in an activated environment.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
PYTEST := $(BIN)/python -m pytest
# A sixth of what is left out of `make test` a commit, in turns.
TURN := $(shell echo $$(( $$(git rev-list --count HEAD 2>/dev/null || echo 0) % 6 + 1 ))/6)
# Most tests wait more than they compute; whole stacks do so most of the time.
SIDE_BY_SIDE := -n 3 --dist loadfile
STACKS := -n 2 --dist loadfile

.PHONY: help setup demo test fast lint format check up down image e2e chaos thorough turn bench bench-judge bench-serving bench-drift \
        bench-rollback bench-scale infra-check constraints clean

help:  ## list the verbs
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup:  ## install system packages, the virtual environment and the wheels (idempotent)
	@infra/local/setup

demo: setup  ## promote a real model on this machine, reject a sick one, roll back on an alert
	@$(BIN)/modelserve prepare
	@$(BIN)/modelserve demo

up: setup  ## start the local stack
	@$(BIN)/modelserve up

down:  ## stop it
	@$(BIN)/modelserve down

test: setup  ## all suites: fast ones first, then real parts, then end to end and one story of each fault
	$(PYTEST) -q $(SIDE_BY_SIDE) tests/domain tests/serving tests/flows tests/models
	@$(BIN)/modelserve prepare
	$(PYTEST) -q $(SIDE_BY_SIDE) tests/agreement tests/manifests tests/monitoring tests/infra tests/workflows tests/packaging tests/platform tests/integration
	$(PYTEST) -q $(STACKS) --durations=10 tests/e2e tests/chaos

fast: setup  ## the tests that take seconds
	$(PYTEST) -q $(SIDE_BY_SIDE) tests/domain tests/serving

lint: setup  ## style, types, import contracts, manifests, rules, workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint --config .hadolint.yaml serving/Containerfile infra/images/base.Containerfile
	$(BIN)/python monitoring/generate_dashboards.py --check
	promtool check rules monitoring/rules/*.yml
	$(BIN)/actionlint -shellcheck= -pyflakes=
	$(BIN)/python -m tests.manifests.validate

check: lint test  ## what CI runs

format:  ## put the code into shape
	$(BIN)/ruff check --fix -q .
	$(BIN)/ruff format -q .

image: setup  ## make what release images are built on
	@$(BIN)/modelserve prepare

e2e: setup  ## the end-to-end tests alone
	$(PYTEST) -q $(STACKS) --durations=10 tests/e2e tests/chaos

chaos: setup  ## every fault under traffic; each write of a promotion killed around in both ways
	@$(BIN)/modelserve prepare
	$(PYTEST) -q --durations=10 tests/chaos -m ""

thorough: setup  ## all else that `make test` leaves out: larger sizes, and packages that take minutes to install
	@$(BIN)/modelserve prepare
	$(PYTEST) -q --durations=10 $(filter-out tests/chaos/,$(wildcard tests/*/)) -m thorough

turn: setup  ## of what `make test` leaves out, faults included, the part whose turn it is: TURN=1/6
	@$(BIN)/modelserve prepare
	$(PYTEST) -q --durations=10 tests -m thorough --turn $(TURN)

bench: bench-judge bench-serving bench-drift bench-rollback bench-scale  ## every benchmark

bench-judge: setup  ## the judge beside the rules of Argo Rollouts, Flagger and Kayenta
	$(BIN)/python -m tests.bench.judge --plot .github/images/judge.png

bench-serving: setup  ## the model server beside plain FastAPI and the floor
	$(BIN)/python -m tests.bench.serving_speed

bench-drift: setup  ## false alarms and detections beside Evidently's defaults
	$(BIN)/python -m tests.bench.drift

bench-rollback: setup  ## seconds from a firing alert to weight 0, part by part
	@$(BIN)/modelserve prepare
	$(BIN)/python -m tests.bench.rollback

bench-scale: setup  ## calls and queries of a promotion and a sweep with 500 models
	$(BIN)/python -m tests.bench.scale

infra-check: setup  ## check Terraform; says what could not be run
	@$(BIN)/python infra/check $(INFRA_CHECK)

constraints:  ## write constraints.txt from the virtual environment
	@{ echo '# Every dependency, pinned. Refresh with `make constraints`.'; \
	   echo '# Torch is installed first and by itself, so that the CPU build is taken (see DECISIONS.md).'; \
	   $(BIN)/pip freeze --exclude-editable | sed -E 's/^(torch==[0-9.]+)\+cpu/\1/'; } > constraints.tmp
	@mv constraints.tmp constraints.txt

clean:  ## remove caches (not the state folder)
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
