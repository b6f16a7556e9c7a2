# `make demo` and `make test` need Python 3.11 or newer, a C++ compiler and the package index; no GPU, no CUDA toolkit.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# the pins reach isolated builds too
export PIP_CONSTRAINT = $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK = 1
SOURCES = setup.py pyproject.toml constraints.txt pndm_fast/row/schema.py $(wildcard csrc/*.* csrc/*/*.*)

.PHONY: demo quick test gpu-dry machine-code stress lint bench gpu clean

demo: $(VENV)/.demo  ## 64 digits by 50-step F-PNDM into digits.png
	$(BIN)/pndm-fast sample --solver f-pndm --steps 50 --number 64 --seed 0 --out digits.png --force

quick: $(VENV)/.test  ## what each edit runs
	$(BIN)/pytest -m "not slow and not machine_code and not stress" --hypothesis-profile quick

test: $(VENV)/.test  ## the suite: every law
	$(BIN)/pytest

gpu-dry: $(VENV)/.test  ## the tests that need a GPU, on the CPU with the fake driver: half a minute
	$(BIN)/pytest --fake-device -m gpu tests/test_gpu.py tests/test_gpu_accelerate.py tests/test_gpu_graph.py tests/test_gpu_networks.py

machine-code: $(VENV)/.test  ## the kernels compiled for GPUs that need not be there
	$(BIN)/pytest -m machine_code

stress: $(VENV)/.test  ## full products, many steps, many random grids: some minutes
	$(BIN)/pytest -m "stress or hypothesis" --hypothesis-profile stress

lint: $(VENV)/.lint  ## ruff, mypy --strict, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict pndm_fast
	$(BIN)/clang-format --dry-run --Werror csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h tests/*.cpp tests/*.h

bench: $(VENV)/.bench  ## the CPU benchmarks, written to benchmarks/results/cpu/
	$(BIN)/python benchmarks speed

# 9 minutes; parts: STEPS="smoke tests"; OUT=dir keeps all that was found so far in dir/gpu.tar.gz; COMMIT=... where no
# .git travels; TOTAL=seconds
gpu:  ## on a machine with a GPU and torch: build, smoke, tests, benchmarks, memcheck into benchmarks/results/<gpu>/
	$(PYTHON) benchmarks gpu $(STEPS) $(if $(OUT),--out $(OUT)) $(if $(COMMIT),--commit $(COMMIT)) $(if $(TOTAL),--total $(TOTAL))

clean:
	rm -rf $(VENV) build *.egg-info pndm_fast/_C*.so

$(VENV)/.demo: EXTRA = cli,images
$(VENV)/.test: EXTRA = test
$(VENV)/.lint: EXTRA = test,lint
$(VENV)/.bench: EXTRA = bench

$(VENV)/.demo $(VENV)/.test $(VENV)/.lint $(VENV)/.bench: $(VENV)/.%: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRA)]'
	touch $@
