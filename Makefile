# make says what there is. PYTHON: 3.11 to 3.13, for the environments.
PYTHON := python3
PY := .venv/bin/python
NB := convmixer
TIER := smoke
# What was given reaches the shell in its environment, so that nothing in it is taken for code.
GIVEN := NB TIER DATA LIMIT EPOCHS SEED ARGS
$(foreach name,$(GIVEN),$(eval export GIVEN_$(name) := $$(value $(name))))
unexport $(GIVEN)
PYTEST := -m pytest --numprocesses 3 --dist

.PHONY: help run full test lab processors refresh bench bite mutants siege site browser lock
help:  ## what there is
	@sed -nE 's/^([a-z]+):[^#]*## /\1\t/p' Makefile | expand -t 12

run: .venv/ready  ## run a notebook: make run NB=convmixer TIER=tuned DATA=cifar10 LIMIT=2000 EPOCHS=2 SEED=0 ARGS="--set dim=64"
	@set -f; $(PY) -m patchlib run "$$GIVEN_NB" --tier "$$GIVEN_TIER" --seed "$${GIVEN_SEED:-0}" \
		$${GIVEN_DATA:+--set "dataset=$$GIVEN_DATA"} $${GIVEN_LIMIT:+--set "limit=$$GIVEN_LIMIT"} \
		$${GIVEN_EPOCHS:+--set "epochs=$$GIVEN_EPOCHS"} $$GIVEN_ARGS

full: .venv/ready  ## the full runs and ablations of results/full.txt; again goes on: make full ARGS="--workers 2"
	@set -f; xargs -L 1 nice -n 19 $(PY) -m patchlib run --out runs/full $$GIVEN_ARGS < results/full.txt

test:  ## all that CI runs: ruff, mypy, unit tests on TensorFlow and JAX, every notebook's outputs
	@$(MAKE) --no-print-directory --jobs 2 .venv/ready .venv-jax/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	$(PY) -m mypy
	$(PY) $(PYTEST) worksteal tests
	$(PY) $(PYTEST) loadfile notebooks
	KERAS_BACKEND=jax .venv-jax/bin/python $(PYTEST) worksteal -m jax tests/test_explain.py tests/test_layers.py tests/test_models.py \
		tests/test_networks.py tests/test_runs.py tests/test_surgery.py tests/test_training.py

lab: .venv/ready  ## JupyterLab on the notebooks; as root, in a container: make lab ARGS=--allow-root
	$(PY) -m jupyterlab notebooks $$GIVEN_ARGS

processors: .venv/ready .venv-jax/ready  ## make test as on other processors: make processors ARGS="AVX2 SSE4"
	$(PY) tools/processors.py $$GIVEN_ARGS
refresh: .venv/ready  ## run the notebooks and store their outputs: the only way the reference changes
	$(PY) tools/refresh.py notebooks/*.ipynb
bench: .venv/ready  ## speed beside the published examples, and PyTorch after make .venv-torch/ready: make bench ARGS="compare start_up"
	$(PY) tools/bench.py $$GIVEN_ARGS
bite: .venv/ready  ## plant bugs one by one and see that each is caught
	$(PY) tools/bite.py $$GIVEN_ARGS
mutants: .venv/ready  ## change the code in small ways and see what no test notices: make mutants ARGS="--sample 200 --modules data"
	$(PY) -m pip install --quiet --constraint constraints.txt cosmic-ray
	$(PY) tools/mutants.py $$GIVEN_ARGS
siege: .venv/ready  ## kill runs, cut the power, fill the disk, make up bad input, and count: half an hour
	$(PY) tools/siege.py
site: .venv-site/ready .venv-site/node_modules/mathjax  ## the project's pages, into site/
	rm -rf site docs/api
	KERAS_BACKEND=jax .venv-site/bin/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env --conf-dir docs \
		--doctree-dir .venv-site/doctrees . site
browser: .venv/ready site  ## see in Chromium that the site is whole and that JupyterLab runs a notebook
	$(PY) -m pip install --quiet --constraint constraints.txt playwright
	$(PY) -m pytest tests/test_site.py tests/test_lab.py
lock: .venv/ready  ## choose newer versions of everything
	$(PY) -m pip install --quiet uv
	$(PY) -m uv pip compile --quiet --upgrade --universal --fork-strategy fewest --python-version 3.11 --all-extras \
		--no-annotate --no-header pyproject.toml -o constraints.txt

.venv/ready: EXTRAS := tensorflow,notebooks,export,test
.venv-jax/ready: EXTRAS := jax,test
.venv-torch/ready: EXTRAS := pytorch
.venv-site/ready: EXTRAS := jax,site
.venv/ready .venv-jax/ready .venv-torch/ready .venv-site/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --retries 2 --disable-pip-version-check --constraint constraints.txt --editable .[$(EXTRAS)]
	@touch $@
.venv-site/node_modules/mathjax: .venv-site/ready
	-npm install --silent --no-save --prefix .venv-site mathjax@3.2.2
