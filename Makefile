# demo: the storybook model.  test: what the README promises.  check: style, types, floors.

VENV := .venv
BIN := $(VENV)/bin

unexport PYTHONDONTWRITEBYTECODE # rewriting each assert takes seconds in every process: it is kept

.PHONY: demo check test test-slow test-gpu docs bench clean

demo: $(VENV)/demo
	$(BIN)/groundup build recipes/storybook.toml

$(VENV)/demo: pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/dev: pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/demo

check: $(VENV)/dev
	$(BIN)/ruff format --check src tests bench docs .ci
	$(BIN)/ruff check src tests bench docs .ci
	$(BIN)/python .ci/startup.py src docs
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(VENV)/dev
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow and not gpu"

test-slow: $(VENV)/dev
	$(BIN)/pytest -n 2 --dist worksteal -m "slow and not gpu"

# without the checks of shapes, which wrap functions, and with warnings: the compiler trips over both
test-gpu: $(VENV)/dev
	CUBLAS_WORKSPACE_CONFIG=:4096:8 $(BIN)/pytest -o addopts="--import-mode=importlib --strict-markers" -W default -m gpu -rs tests/gpu

docs: $(VENV)/dev
	$(BIN)/python docs/make.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/dev
	@echo "one question a file; results belong into docs/numbers.md:"
	@grep -h -m1 '^"""' bench/*.py

clean:
	rm -rf $(VENV) dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
