# Every tool that these targets use is installed in $(VENV), and nothing outside the checkout is touched.
# `make help` lists them; `make run` is the one to start with.

VENV ?= .venv
ARGS ?= --demo
PYTEST_ARGS ?=
BENCH_ARGS ?=
REACTOR ?=

# The Pythons to look for, best first; PYTHON=... is taken alone.
pythons := $(or $(PYTHON),python3.13 python3.12 python3.11 python3.10 python3 python)
bin := $(VENV)/bin
pip_install := $(bin)/python -m pip install --quiet --disable-pip-version-check --editable

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile
	@printf '\nVENV=dir and PYTHON=python3.x choose where and with which Python (at the first install); ARGS and\nPYTEST_ARGS are appended to the commands: make run ARGS="--port 8080", make test PYTEST_ARGS="-k usage".\nREACTOR is one of twistd for the proxies under test, in the place of their own: make test REACTOR=epoll.\nBENCH_ARGS=--quick takes 40 seconds; BENCH_ARGS=--help tells how to measure other proxies in the same run.\n'

## Running

.PHONY: run
run: $(VENV)/.installed ## start the proxy in the foreground, by default with an embedded demo upstream
	@exec $(bin)/twistd -n --pidfile= llmproxy $(ARGS)

## Testing

.PHONY: test
test: $(VENV)/.installed-test ## run all tests
	@LLMPROXY_TEST_REACTOR=$(REACTOR) $(bin)/python -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

.PHONY: check
check: lint types schemas coverage ## run everything that CI runs

.PHONY: lint
lint: $(VENV)/.installed-dev ## check style and formatting
	@$(bin)/ruff check --quiet
	@$(bin)/ruff format --check --quiet --diff

.PHONY: format
format: $(VENV)/.installed-dev ## format, and fix what can be fixed
	@$(bin)/ruff check --quiet --fix
	@$(bin)/ruff format

.PHONY: types
types: $(VENV)/.installed-dev ## check types
	@$(bin)/mypy

.PHONY: schemas
schemas: $(VENV)/.installed-dev ## check workflows and the compose file against their published schemas
	@$(bin)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(bin)/check-jsonschema --quiet --builtin-schema vendor.dependabot .github/dependabot.yml
	@$(bin)/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker-compose.yml

.PHONY: coverage
coverage: $(VENV)/.installed-dev ## run all tests and require their branch coverage
	@LLMPROXY_TEST_REACTOR=$(REACTOR) $(bin)/python -m pytest -n auto --dist loadfile --cov --cov-report=term $(PYTEST_ARGS)

## Measuring

.PHONY: bench
bench: $(VENV)/.installed-bench ## measure the proxy beside its upstream, asked directly, and other proxies: about 3 minutes
	@$(bin)/python -m bench $(BENCH_ARGS)

## Housekeeping

.PHONY: dist
dist: $(VENV)/.installed-dev ## build the wheel and the source distribution into dist/
	@$(bin)/python -m build --outdir dist

.PHONY: clean
clean: ## remove all that these targets made, the venv too
	@rm -rf $(VENV) build dist *.egg-info .coverage .coverage.* htmlcov
	@rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache twisted/plugins/dropin.cache
	@find bench llmproxy tests twisted -name __pycache__ -prune -exec rm -rf {} +

## The venv. A stamp tells that an install is done, so that a second run starts at once; a larger one includes the smaller.

$(VENV)/.installed: $(bin)/pip setup.cfg pyproject.toml
	@echo "Installing llmproxy in $(VENV) (first run, or its requirements changed) ..."
	@$(pip_install) .
	@touch $@

$(VENV)/.installed-test: $(bin)/pip setup.cfg pyproject.toml
	@echo "Installing llmproxy and its test tools in $(VENV) ..."
	@$(pip_install) '.[test]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-dev: $(bin)/pip setup.cfg pyproject.toml
	@echo "Installing llmproxy and its development tools in $(VENV) ..."
	@$(pip_install) '.[dev]'
	@touch $(VENV)/.installed $(VENV)/.installed-test $@

$(VENV)/.installed-bench: $(bin)/pip setup.cfg pyproject.toml
	@echo "Installing llmproxy and what draws its measurements in $(VENV) ..."
	@$(pip_install) '.[bench]'
	@touch $(VENV)/.installed $@

# pip is the last thing that venv writes: where it is, the venv is whole. Each Python is tried, not only looked up: a version
# manager leaves commands on the PATH that do not run.
$(bin)/pip:
	@for python in $(pythons); do \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 || continue; \
	    "$$python" -c 'import ensurepip, venv' >/dev/null 2>&1 || { incomplete="$$incomplete $$python"; continue; }; \
	    exec "$$python" -m venv --clear $(VENV); \
	done; \
	if [ "$$incomplete" ]; then \
	    echo "These Pythons have no venv or ensurepip module:$$incomplete. Debian and Ubuntu: apt install python3-venv" >&2; \
	else \
	    echo "llmproxy needs Python 3.10 or newer; tried: $(pythons). Name another: make PYTHON=/path/to/python3" >&2; \
	fi; \
	exit 1
