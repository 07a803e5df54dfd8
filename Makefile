# make help says what there is. Variables: NB, TIER, DATA, LIMIT, EPOCHS, SEED, RUN, ARGS, SAMPLE, MODULES, NOTEBOOKS.

SHELL := /bin/bash
PY := .venv/bin/python
NB := convmixer
TIER := smoke
SEED := 0
empty :=
# The folder's name tells runs apart: ARGS="-p dim 64 -p depth 2" becomes -dim-64-depth-2.
NAMED = $(subst $(empty) $(empty),-,$(subst /,_,$(strip $(subst -p ,,$(ARGS)))))
RUN = runs/$(NB)-$(TIER)$(DATA:%=-$(notdir $(basename $(DATA:%/=%))))$(LIMIT:%=-limit%)$(EPOCHS:%=-epochs%)$(NAMED:%=-%)-seed$(SEED)

# A path here means the same to the notebook, which runs in notebooks/.
DATA_PATH = $(or $(filter digits cifar10 cifar100,$(DATA)),$(abspath $(wildcard $(DATA))),$(DATA))
ifdef PATCHLIB_DATA
export PATCHLIB_DATA := $(abspath $(PATCHLIB_DATA))
endif

PAPERMILL = $(PY) -m papermill notebooks/$(NB).ipynb $(RUN)/$(NB).ipynb --cwd notebooks --stdout-file - \
	$(if $(filter-out smoke,$(TIER)),-f notebooks/tiers/$(NB)-$(TIER).yaml) \
	-p run_dir "$(abspath $(RUN))" -p seed $(SEED) $(if $(DATA),-p dataset "$(DATA_PATH)") \
	$(if $(LIMIT),-p limit $(LIMIT)) $(if $(EPOCHS),-p epochs $(EPOCHS)) $(ARGS)

# Tests compile much and run each program a few times.
COMPILE_QUICKLY = JAX_DISABLE_MOST_OPTIMIZATIONS=1 JAX_COMPILATION_CACHE_DIR="$(CURDIR)/.venv-jax/compiled" \
	JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0

.PHONY: help run full test lab refresh bench bite mutants lock
help:  ## what there is
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 10

run: .venv/ready  ## run a notebook: make run NB=convmixer TIER=tuned DATA=cifar10 LIMIT=2000 EPOCHS=2 SEED=0
	@test -f notebooks/$(NB).ipynb -a "$(NB)" != compare || { \
		echo "NB=$(NB): there are $(filter-out compare,$(notdir $(basename $(wildcard notebooks/*.ipynb))))"; exit 2; }
	@test "$(TIER)" = smoke -o -f notebooks/tiers/$(NB)-$(TIER).yaml || \
		{ echo "TIER=$(TIER): there are smoke $(patsubst $(NB)-%,%,$(notdir $(basename $(wildcard notebooks/tiers/$(NB)-*.yaml))))"; exit 2; }
	@case "$(DATA)" in */*|*.npz) test -e "$(DATA)" || { echo "DATA=$(DATA): there is no such file or folder"; exit 2; };; esac
	@if test ! -f "$(RUN)/run.json"; then mkdir -p "$(RUN)" && $(PAPERMILL); \
		elif grep -q '"dataset": "$(or $(DATA_PATH),.*)"' "$(RUN)/run.json"; then \
		echo "$(RUN) holds this run, finished; RUN=another/folder makes a new one"; \
		else echo "$(RUN) holds a run on other data: choose RUN=another/folder"; exit 2; fi
	@printf 'test accuracy: %.4f\n' $$(sed -n 's/.*"test_accuracy": \([^,]*\).*/\1/p' "$(RUN)/run.json")
	@echo "notebook: $(RUN)/$(NB).ipynb"; echo "run card: $(RUN)/run.json"; echo "model:    $(RUN)/model.keras"

full: .venv/ready  ## the full runs: every notebook, baseline and tuned, three seeds; again goes on: make full ARGS="--workers 2"
	$(PY) -m patchlib run --tier baseline tuned --seeds 3 --out runs/full $(ARGS)

test: .venv/ready .venv-jax/ready  ## all that CI runs: ruff, unit tests on TensorFlow and JAX, every notebook's outputs
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	$(PY) -m pytest --numprocesses 2 --dist worksteal tests
	$(PY) -m pytest --numprocesses 2 --dist loadfile notebooks
	KERAS_BACKEND=jax $(COMPILE_QUICKLY) .venv-jax/bin/python -m pytest --numprocesses 2 --dist worksteal tests/test_layers.py \
		tests/test_models.py tests/test_runs.py tests/test_training.py \
		-k "definition or trains_with or values_and_gradient or fresh or card or interrupted or first_epoch or ema_equals"

lab: .venv/ready  ## JupyterLab on the notebooks
	$(PY) -m jupyterlab notebooks

refresh: .venv/ready  ## run the notebooks and store their outputs: the only way the reference changes
	$(PY) tests/refresh.py notebooks/*.ipynb

bench: .venv/ready .venv-jax/ready  ## speed beside the published examples: make bench ARGS="compare time_to_accuracy growth"
	$(PY) benchmarks/bench.py $(ARGS)

bite: .venv/ready  ## plant bugs one by one and see that each is caught
	$(PY) tests/bite.py

mutants: .venv/ready  ## change the code in small ways and see what no test notices: make mutants SAMPLE=200 MODULES="data runs"
	$(PY) -m pip install --quiet --constraint constraints.txt cosmic-ray
	$(PY) tests/mutants.py $(SAMPLE:%=--sample %) $(if $(MODULES),--modules $(MODULES)) $(if $(NOTEBOOKS),--notebooks)

lock: .venv/ready  ## choose newer versions of everything
	$(PY) -m pip install --quiet uv
	$(PY) -m uv pip compile --quiet --upgrade --universal --fork-strategy fewest --python-version 3.11 --all-extras \
		--no-annotate --no-header pyproject.toml -o constraints.txt

.venv/ready: EXTRAS := tensorflow,notebooks,test
.venv-jax/ready: EXTRAS := jax,test
.venv/ready .venv-jax/ready: pyproject.toml constraints.txt
	@python=; for candidate in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
		$$candidate -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && python=$$candidate && break; \
	done; \
	test -n "$$python" || { echo "patchlib needs Python 3.11, 3.12 or 3.13; found: $$(python3 --version 2>&1). Name one with PYTHON=..."; exit 1; }; \
	echo "installing into $(@D) with $$($$python --version); TensorFlow is large, the first time takes minutes"; \
	$$python -m venv $(@D) || exit 1; \
	$(@D)/bin/python -m pip install --retries 2 --disable-pip-version-check --progress-bar on \
		--constraint constraints.txt --editable .[$(EXTRAS)] || \
		{ echo "The installation failed: is the package registry reachable? The lines above say what pip was missing."; exit 1; }
	@touch $@
