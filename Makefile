# `make demo` and `make test` do all of their own set-up. Nothing is installed outside of .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Rebuilt only when one of these changes.
STAMP := $(VENV)/.installed
export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1
export OMP_NUM_THREADS = 1

.PHONY: install demo test test-slow lint clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "Fedward: making $(VENV) with everything in it (about 2 GB; two to four minutes the first time) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Fedward needs Python 3.11 or later: make PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
	@echo "Fedward: installed. Try: $(BIN)/fedward --help"

demo: install
	@rm -rf runs/demo
	$(BIN)/fedward simulate --dataset auto --hospitals 8 --epsilon 3 --student ternary-cnn --compare --out runs/demo
	@$(BIN)/python -m fedward.simulations.sample_image runs/demo runs/demo/sample.png
	$(BIN)/fedward edge predict runs/demo/release runs/demo/sample.png
	@echo "Look at runs/demo/report.html"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2

# Real processes, killed: twenty minutes.
test-slow: install
	$(BIN)/pytest -m slow

clean:
	rm -rf $(VENV) runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
