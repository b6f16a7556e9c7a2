# `make demo` and `make test` need Python 3.11 or newer, a C++ compiler and the package index; no GPU, no CUDA toolkit.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# the pins reach isolated builds too
export PIP_CONSTRAINT = $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK = 1
SOURCES = setup.py pyproject.toml constraints.txt $(wildcard csrc/*)

.PHONY: demo test lint bench gpu clean

demo: $(VENV)/.demo  ## 64 digits by 50-step F-PNDM into digits.png
	$(BIN)/pndm-fast sample --solver f-pndm --steps 50 --number 64 --seed 0 --out digits.png --force

test: $(VENV)/.test  ## the whole suite
	$(BIN)/pytest

lint: $(VENV)/.lint  ## ruff, mypy --strict, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict pndm_fast
	$(BIN)/clang-format --dry-run --Werror csrc/*.cpp csrc/*.h

bench: $(VENV)/.bench  ## the CPU benchmarks, written to benchmarks/results/cpu/
	$(BIN)/python benchmarks/run.py

gpu:  ## on a machine with a GPU and torch: build in place, run what needs a GPU, write benchmarks/results/
	$(PYTHON) -m pip install --quiet --no-index --no-build-isolation --no-deps --editable .
	test ! -d .whl || $(PYTHON) -m pip install --quiet --no-index --no-deps .whl/*.whl  # what travelled: diffusers
	$(PYTHON) -m pytest -m gpu
	$(PYTHON) -m pytest tests/test_triton.py tests/test_noise.py
	$(PYTHON) benchmarks/run.py --device cuda

clean:
	rm -rf $(VENV) build *.egg-info pndm_fast/_C*.so

$(VENV)/.demo: EXTRA = images
$(VENV)/.test: EXTRA = test
$(VENV)/.lint: EXTRA = test,lint
$(VENV)/.bench: EXTRA = bench

$(VENV)/.demo $(VENV)/.test $(VENV)/.lint $(VENV)/.bench: $(VENV)/.%: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRA)]'
	touch $@
