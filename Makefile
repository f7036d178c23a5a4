VENV := .venv
PYTHON ?= python3
# Three processes share the tests, file by file: what the tests of a file need is started once. Three on two cores, for
# many tests wait for servers and browsers.
SHARED := -n 3 --dist loadfile --no-loadscope-reorder
# Bytecode is kept, whatever the shell says: three processes and some hundred programs import the same files.
test test-fast: export PYTHONDONTWRITEBYTECODE :=
PIP := $(VENV)/bin/pip --disable-pip-version-check --quiet

.PHONY: install serve test test-fast test-chaos test-fuzz test-load test-soak test-zoo test-ray test-gpu lint type format tables notebook bench-cartpole bench-speed bench-suite bench-ablation environments clean

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt
	@echo "Installing what the server needs into $(VENV): about a minute with torch for the CPU, longer with CUDA, and no further output if all is well."
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(PIP) install -r requirements-dev.txt
	touch $@

# GRPO_PORT=9000 make serve takes another port.
serve: install
	@echo "Starting the server on this machine. It says below where its dashboard is; Ctrl-C ends it."
	@$(VENV)/bin/python run_api.py

# A test that fails runs once more, and both outcomes are shown: a busy machine is late once, a fault fails twice.
# ARGS=--fail-on-flaky makes the first failure count too.
test: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest $(SHARED) --reruns 1 --rerun-show-tracebacks -rfER $(ARGS)

# Without browsers, programs and long trainings: for every few minutes of work.
test-fast: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest $(SHARED) -m "not slow"

# A quarter of an hour and more; ARGS="--kills 1000 --seed 1" makes a longer one.
test-chaos: $(VENV)/.installed-dev
	$(VENV)/bin/python -m tests.chaos.kills $(ARGS)

# What looks for faults by the thousand. Each leaves its figures in tests/artefacts; SUITE_SEED=1 draws others.
test-fuzz: $(VENV)/.installed-dev
	SUITES=long $(VENV)/bin/python -m pytest tests/fuzz -n 2 --dist loadfile

# On a machine that does nothing else: latencies are compared.
test-load: $(VENV)/.installed-dev
	SUITES=long $(VENV)/bin/python -m pytest tests/load

test-soak: $(VENV)/.installed-dev
	SUITES=long $(VENV)/bin/python -m pytest tests/soak

test-zoo: $(VENV)/.installed-dev
	$(PIP) install rl_zoo3==2.9.2
	$(VENV)/bin/python -m pytest tests/sb3/test_zoo.py

# Jobs on a Ray cluster of several nodes on this machine. Where Ray is installed, make test runs them as well.
test-ray: $(VENV)/.installed-dev
	$(PIP) install -r requirements-ray.txt
	$(VENV)/bin/python -m pytest tests/service/workers tests/service/jobs/test_resuming.py tests/chaos/test_ray_kills.py tests/chaos/test_ray_restarts.py tests/service/sweeps tests/grpo_core/shards/test_ray_pool.py -k "ray"

# For a machine with a GPU. The library's tests, which train on the CPU otherwise, train on the GPU.
test-gpu: $(VENV)/.installed-dev
	$(VENV)/bin/python -c "import torch; assert torch.cuda.is_available(), 'torch sees no GPU; install a build with CUDA.'"
	TEST_DEVICE=cuda $(VENV)/bin/python -m pytest $(SHARED) tests/gpu tests/sb3 tests/grpo_core/checkpoints -W "ignore:You are trying to run:UserWarning"

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

type: $(VENV)/.installed-dev
	$(VENV)/bin/mypy

# The hyperparameters in docs/arguments.md and API.md, and the index of API.md's fields.
tables: install
	$(VENV)/bin/python -m docs.argument_tables

# docs/notebook.ipynb needs what make install brings; this adds JupyterLab to read it in.
notebook: install
	$(PIP) install jupyterlab
	$(VENV)/bin/jupyter lab docs/notebook.ipynb

format: $(VENV)/.installed-dev
	$(VENV)/bin/python -m tests.grpo_client.generate
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Five methods, twelve minutes of processor time. ARGS="--n-seeds 4" takes a fifth of that.
bench-cartpole: install
	$(VENV)/bin/python -m benchmarks.learning.cartpole $(ARGS)

# A quarter of an hour on a machine that does nothing else. ARGS="startup load" measures some of it.
bench-speed: $(VENV)/.installed-bench
	$(VENV)/bin/python -m benchmarks.measure_speed $(ARGS)
	$(VENV)/bin/python -m benchmarks.report

$(VENV)/.installed-bench: requirements-bench.txt $(VENV)/.installed
	$(PIP) install -r requirements-bench.txt
	touch $@

# Days; makes only the runs that are missing, the quickest first. ARGS="--max-steps 60000 --jobs 1" makes a part of them.
bench-suite: $(VENV)/.installed-bench
	$(VENV)/bin/python -m benchmarks.learning.suite $(ARGS)
	$(VENV)/bin/python -m benchmarks.report

bench-ablation: $(VENV)/.installed-bench
	$(VENV)/bin/python -m benchmarks.learning.ablation $(ARGS)
	$(VENV)/bin/python -m benchmarks.report

# An hour: installs other people's environments for trying, and writes docs/environments.md. What was tried stays; see
# python -m benchmarks.environments --help.
environments: $(VENV)/.installed-dev
	$(VENV)/bin/python -m benchmarks.environments $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
