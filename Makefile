# make run     installs into .venv and runs both notebooks (DATA=, SIZE=, LABELS=, SEEDS=, RECIPE=, DEVICE=, OUT=)
# make test    all tests, lint and types
# make study   trains what a study lacks and writes its rows (NAME=generations); make pages renders them
# make verify  trains a study's cheapest rows again and says how far they are from the committed ones (NAME=, RUNS=2)
# make bench, make soak, make audit  speed; long fault tests; known vulnerabilities of the locked packages
# make lab     opens Jupyter on the notebooks; make notebooks runs them in place, as they are committed
PYTHON ?= python3
DATA   ?= digits
# The recipe and the number of labels that stand in the notebooks are written for the digits.
RECIPE ?= $(if $(filter digits,$(DATA)),mine,auto)
LABELS ?= $(if $(filter digits,$(DATA)),,auto)
RUNS   ?= 2
NAME   ?=
OUT    ?= out/$(shell basename "$(DATA)" | sed -E 's/\.(zip|tgz|tar(\.(gz|xz|bz2))?)$$//I')
BIN    := .venv/bin
# What a notebook is not told it decides itself; -r hands over text as it is, -p numbers, -y lists.
GIVEN  := -r DATA "$(DATA)" $(foreach v,SIZE LABELS,$(if $($v),-p $v "$($v)"))
MORE   := -r RECIPE "$(RECIPE)" -r OUT "$(OUT)" $(if $(DEVICE),-r DEVICE "$(DEVICE)") $(if $(SEEDS),-y "SEEDS: [$(SEEDS)]")

KNOWN  := PYTHON DATA SIZE LABELS SEEDS RECIPE DEVICE OUT NAME RUNS ARGS
UNKNOWN := $(filter-out $(KNOWN),$(foreach v,$(.VARIABLES),$(if $(findstring command,$(origin $v)),$v)))
ifneq ($(UNKNOWN),)
$(error unknown variable $(firstword $(UNKNOWN)): make knows $(KNOWN))
endif

.PHONY: run test study pages verify lab notebooks bench soak audit

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "noisy_student needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --require-hashes --no-deps -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

run: .venv/installed
	mkdir -p "$(OUT)"
	$(BIN)/papermill data_split.ipynb "$(OUT)/data_split.ipynb" $(GIVEN)
	$(BIN)/papermill run.ipynb "$(OUT)/run.ipynb" $(GIVEN) $(MORE)
	@cd "$(OUT)" && echo "Executed notebooks, tables and figures: $$PWD"

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m noisy_student pages --check
	$(BIN)/python -m pytest -m "not soak"

study: .venv/installed
	$(BIN)/python -m noisy_student study "$(NAME)" $(ARGS)

pages: .venv/installed
	$(BIN)/python -m noisy_student pages

verify: .venv/installed
	$(BIN)/python -m noisy_student verify "$(NAME)" --runs $(RUNS) $(ARGS)

lab: .venv/installed
	$(BIN)/jupyter lab run.ipynb

# Twice: the first time trains, the second, in seconds, leaves no progress bars in them.
notebooks: .venv/installed
	for pass in 1 2; do $(BIN)/jupyter nbconvert --to notebook --execute --inplace --NotebookClient.record_timing=False \
		data_split.ipynb run.ipynb || exit 1; done

bench: .venv/installed
	$(BIN)/python -m benchmarks.speed --data "$(DATA)"

soak: .venv/installed
	$(BIN)/python -m pytest -m soak

audit: .venv/installed
	$(BIN)/pip-audit -r requirements.lock --disable-pip
