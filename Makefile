# Everything that one does with this checkout. `make` shows the list.
# Each target brings what it needs and can be repeated; nothing is done that is done already.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PREFIX ?= /usr/local
VENV := .venv
PYTEST := $(VENV)/bin/python -m pytest
BENCHMARKS := downtime pause total throughput tracking service forecast
# Extra words: make test ARGS='-k redis -x', make demo ARGS='--moves 2'
ARGS ?=
# The tests wait more than they work: for processes, links and clocks. So more of them than processors.
JOBS ?= $(shell echo $$((2 * $$(nproc))))

.PHONY: help setup setup-vm demo test test-unit test-kills test-vm test-vm-smoke test-vm-whole lint install uninstall bench clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 24

setup: ## Debian packages, CRIU and .venv, whatever of them is missing
	@scripts/setup test

demo: ## a Redis server moves between two hosts on this machine while a client writes
	@scripts/setup demo
	@$(VENV)/bin/python -m examples.demo $(ARGS)

lint: setup ## style, types, import rules
	@scripts/lint

test: setup lint ## lint, then every test (needs root), JOBS=N at a time
	@$(PYTEST) -n $(JOBS) --dist worksteal $(ARGS)

test-unit: setup ## the tests that need no root
	@$(PYTEST) tests/unit $(ARGS)

test-kills: setup ## tracking's injectors are killed KILLS times (4000), CRIUs KILLS/24, while their targets check themselves
	@CKPT_KILLS=$(or $(KILLS),4000) $(PYTEST) tests/e2e/test_tracking_injection.py tests/e2e/test_guard.py -k killed -rP $(ARGS)

setup-vm: setup
	@scripts/setup vm || echo "setup-vm: what is missing is told below"

test-vm: setup-vm ## on two emulated Debian machines (SUITE=bookworm|trixie|sid); skips where it can't
	@$(VENV)/bin/python -m tests.vm.run $(ARGS)

test-vm-smoke: setup-vm ## the shortest of it: install, set the other up, move cold and warm; a few minutes
	@$(VENV)/bin/python -m tests.vm.smoke

test-vm-whole: setup-vm ## all tests with root, in one guest without systemd and one with it; hours
	@$(VENV)/bin/python -m tests.vm.whole $(ARGS)

bench: setup ## every benchmark, on an idle machine; ARGS='--runs 1' for each, docs/benchmarks.md
	@for name in $(BENCHMARKS); do \
	  echo "== $$name"; $(VENV)/bin/python -m "benchmarks.$$name" $(ARGS); done

install: ## ckpt for this machine: $(PREFIX)/bin/ckpt, in an environment of its own
	@scripts/setup install
	@scripts/install "$(PREFIX)"

uninstall: ## take away what `make install` made, and the private CRIU; data stays
	@scripts/install --remove "$(PREFIX)"

clean: ## take away what was made in this checkout
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache \
	  .hypothesis .import_linter_cache
	@if [ -d .peers ] && ! grep -q "$(CURDIR)/.peers" /proc/self/mountinfo; then rm -rf .peers; fi
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
