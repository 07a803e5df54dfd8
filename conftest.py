"""What pytest needs to know of the notebooks, from whatever folder it's called."""

import os
import shutil
import tempfile

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def pytest_configure(config):
    if hasattr(config.option, "nbval"):
        config.option.nbval_current_env = True  # a kernel of this environment, whatever the notebook's metadata name
    config.stash[_RUNS] = os.environ["PATCHLIB_RUNS"] = tempfile.mkdtemp(prefix="patchlib-runs-")


def pytest_unconfigure(config):
    shutil.rmtree(config.stash[_RUNS], ignore_errors=True)


def pytest_collection_modifyitems(items):
    for item in items:
        if type(item).__name__ == "IPyNbCell" and "stderr" not in item.parent.skip_compare:
            item.parent.skip_compare += ("stderr",)  # TensorFlow's remarks on the machine at hand


def pytest_runtest_setup(item):
    # nbval lets a cell pass that was never run, since it has nothing to compare with.
    if type(item).__name__ == "IPyNbCell" and item.cell.execution_count is None:
        pytest.fail("this cell was never run: its outputs are unknown; run `make refresh`", pytrace=False)


_RUNS = pytest.StashKey[str]()
