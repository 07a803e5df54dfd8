# make says what there is. PYTHON: 3.11 to 3.13, for the environments.
PYTHON := python3
PY := .venv/bin/python
NB := convmixer
TIER := smoke
SETTINGS = $(if $(DATA),--set "dataset=$(DATA)") $(LIMIT:%=--set limit=%) $(EPOCHS:%=--set epochs=%)
FULL := nice -n 19 $(PY) -m patchlib run --out runs/full
PYTEST := -m pytest --numprocesses 2 --dist

.PHONY: help run full test lab refresh bench bite mutants lock
help:  ## what there is
	@sed -nE 's/^([a-z]+):[^#]*## /\1\t/p' Makefile | expand -t 10

run: .venv/ready  ## run a notebook: make run NB=convmixer TIER=tuned DATA=cifar10 LIMIT=2000 EPOCHS=2 SEED=0 ARGS="--set dim=64"
	@$(PY) -m patchlib run $(NB) --tier $(TIER) --seed $(or $(SEED),0) $(SETTINGS) $(ARGS)

full: .venv/ready  ## the full runs: every notebook, all tiers, three seeds; again goes on: make full ARGS="--workers 2"
	$(FULL) --tier fast --seeds 3 $(ARGS)
	$(FULL) convmixer --tier tuned --set epochs=10 $(ARGS)
	$(FULL) --tier tuned $(ARGS)
	$(FULL) --tier baseline $(ARGS)
	$(FULL) --tier tuned baseline --seeds 3 $(ARGS)

test: .venv/ready .venv-jax/ready  ## all that CI runs: ruff, unit tests on TensorFlow and JAX, every notebook's outputs
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	$(PY) $(PYTEST) worksteal tests
	$(PY) $(PYTEST) loadfile notebooks
	KERAS_BACKEND=jax .venv-jax/bin/python $(PYTEST) worksteal -m jax tests/test_explain.py tests/test_layers.py tests/test_models.py \
		tests/test_networks.py tests/test_runs.py tests/test_training.py

lab: .venv/ready  ## JupyterLab on the notebooks; as root, in a container: make lab ARGS=--allow-root
	$(PY) -m jupyterlab notebooks $(ARGS)

refresh: .venv/ready  ## run the notebooks and store their outputs: the only way the reference changes
	$(PY) tools/refresh.py notebooks/*.ipynb
bench: .venv/ready  ## speed beside the published examples, and PyTorch after make .venv-torch/ready: make bench ARGS="compare start_up"
	$(PY) tools/bench.py $(ARGS)
bite: .venv/ready  ## plant bugs one by one and see that each is caught
	$(PY) tools/bite.py $(ARGS)
mutants: .venv/ready  ## change the code in small ways and see what no test notices: make mutants ARGS="--sample 200 --modules data"
	$(PY) -m pip install --quiet --constraint constraints.txt cosmic-ray
	$(PY) tools/mutants.py $(ARGS)
lock: .venv/ready  ## choose newer versions of everything
	$(PY) -m pip install --quiet uv
	$(PY) -m uv pip compile --quiet --upgrade --universal --fork-strategy fewest --python-version 3.11 --all-extras \
		--no-annotate --no-header pyproject.toml -o constraints.txt

.venv/ready: EXTRAS := tensorflow,notebooks,test
.venv-jax/ready: EXTRAS := jax,test
.venv-torch/ready: EXTRAS := pytorch
.venv/ready .venv-jax/ready .venv-torch/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --retries 2 --disable-pip-version-check --constraint constraints.txt --editable .[$(EXTRAS)]
	@touch $@
