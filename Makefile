# make run   installs into .venv and runs both notebooks (DATA=, PROFILE=, OUT= choose what and where to)
# make test  all tests, lint and types
# make results  all experiments without Jupyter: tables into results/, figures into assets/
# make bench, make soak, make audit  speed; long fault tests; known vulnerabilities of the locked packages
# make lab   opens Jupyter on the notebooks
PYTHON  ?= python3
DATA    ?= digits
PROFILE ?= quick
NAME    := $(shell basename "$(DATA)" | sed -E 's/\.(zip|tgz|tar(\.(gz|xz|bz2))?)$$//I')
OUT     ?= out/$(NAME)-$(PROFILE)
BIN     := .venv/bin

.PHONY: run test results lab bench soak audit

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "noisy_student needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --require-hashes --no-deps -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

run: .venv/installed
	mkdir -p "$(OUT)"
	$(BIN)/papermill data_split.ipynb "$(OUT)/data_split.ipynb" -r DATA "$(DATA)" -r PROFILE "$(PROFILE)"
	$(BIN)/papermill run.ipynb "$(OUT)/run.ipynb" -r DATA "$(DATA)" -r PROFILE "$(PROFILE)" -r OUT "$(OUT)"
	@cd "$(OUT)" && echo "Executed notebooks, tables and figures: $$PWD"

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not soak"

results: .venv/installed
	$(BIN)/python -m noisy_student --data "$(DATA)" --profile "$(PROFILE)" $(ARGS) --out "results/$(NAME)" --figures "assets/$(NAME)"

lab: .venv/installed
	$(BIN)/jupyter lab run.ipynb

bench: .venv/installed
	$(BIN)/python -m benchmarks.speed --data "$(DATA)"

soak: .venv/installed
	$(BIN)/python -m pytest -m soak

audit: .venv/installed
	$(BIN)/pip-audit -r requirements.lock --disable-pip
