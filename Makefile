# Two commands for a fresh machine: 'make demo' and 'make test'. Everything is installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test sites faults hostile check format bench bench-full study clean help

help:            ## this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/: .*## /\t/' | expand -t 12

$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: $(INSTALLED)            ## one server and four clients train a split ResNet-34 on drawn fundus images
	$(BIN)/torchrun --nproc_per_node=5 launch/run.py

test: $(INSTALLED)            ## all tests but the slow ones, on as many cores as there are (at most four)
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile -m 'not slow' --durations=20

sites: $(INSTALLED)           ## whole runs: sites that come, die and return, on several networks; torchrun on two nodes; attacked runs
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile \
		tests/integration/test_sites.py tests/integration/test_mixed_sites.py tests/integration/test_far_sites.py tests/integration/test_hospitals.py \
		tests/integration/test_cluster.py tests/integration/test_attacked_runs.py \
		tests/integration/test_oracle.py::test_real_images_over_every_carrier_end_with_the_same_weights

faults: $(INSTALLED)          ## kill, freeze and cut off every member at every moment; prints the table
	$(BIN)/python -m pytest tests/integration/faults

hostile: $(INSTALLED)         ## every attack of the hostile suite, and what came of it
	$(BIN)/python -m pytest -s tests/integration/hostile

check: $(INSTALLED)           ## ruff, format, mypy strict, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build && $(BIN)/pip install --quiet --no-deps --target build/check .
	MYPYPATH=build/check $(BIN)/mypy
	cd build/check && ../../$(BIN)/lint-imports --config ../../setup.cfg

format: $(INSTALLED)          ## let ruff format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)           ## the four sections of docs/benchmarks.md; about an hour (line and sites as root)
	$(BIN)/suture bench all

bench-full: $(INSTALLED)      ## step times in every size, cut and width: 20 minutes, into docs/benchmarks-full
	$(BIN)/suture bench train --full

study: $(INSTALLED)           ## the published study at scale laptop, an hour and a half, and its report (needs SUTURE_DATA)
	$(BIN)/suture experiment all --scale laptop --budget 90
	$(BIN)/suture report

clean:           ## everything that was made here, but for runs/
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
