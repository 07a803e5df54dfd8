"""What pytest needs to know of the notebooks, from whatever folder it's called."""

import copy
import os
import re
import shutil
import sys
import tempfile

import pytest

# Tests compile much on JAX, and run each program a few times.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(sys.prefix, "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def pytest_configure(config):
    if hasattr(config.option, "nbval"):
        config.option.nbval_current_env = True  # a kernel of this environment, whatever the notebook's metadata name
    config.stash[_RUNS] = os.environ["PATCHLIB_RUNS"] = tempfile.mkdtemp(prefix="patchlib-runs-")


def pytest_unconfigure(config):
    shutil.rmtree(config.stash[_RUNS], ignore_errors=True)


def pytest_collection_modifyitems(items):
    for item in items:
        if type(item).__name__ == "IPyNbCell":
            if "stderr" not in item.parent.skip_compare:
                item.parent.skip_compare += ("stderr",)  # TensorFlow's remarks on the machine at hand
            for tag in item.cell.metadata.get("tags", []):
                if tag.startswith("tolerance-"):  # of trained numbers, which threads and processors round otherwise
                    _compare_within(item, float(tag.removeprefix("tolerance-")))


def _compare_within(item, tolerance):
    compare = item.compare_outputs
    item.compare_outputs = lambda outputs, stored: compare(within(outputs, stored, tolerance), stored)


def within(outputs: list, stored: list, tolerance: float) -> list:
    """The outputs, with each decimal number that is near enough to the stored one in its place written as that one."""
    texts = [text for output in stored for text in _texts(output).values()]
    references = iter(_NUMBER.findall(" ".join(texts)))

    def nearest(found):
        reference = next(references, found[0])
        return reference if abs(float(found[0]) - float(reference)) <= tolerance + 1e-9 else found[0]

    outputs = copy.deepcopy(outputs)
    for output in outputs:
        holder = output.get("data", output)
        holder.update({key: _NUMBER.sub(nearest, text) for key, text in _texts(output).items()})
    return outputs


def _texts(output):
    """What of an output is text: a stream's, but for stderr, or a value's."""
    if output.get("name") == "stderr":
        return {}
    return {key: text for key, text in (output.get("data") or output).items() if key in ("text", "text/plain")}


def pytest_runtest_setup(item):
    # nbval lets a cell pass that was never run, since it has nothing to compare with.
    if type(item).__name__ == "IPyNbCell" and item.cell.execution_count is None:
        pytest.fail("this cell was never run: its outputs are unknown; run `make refresh`", pytrace=False)


_NUMBER = re.compile(r"(?<![\w.])-?\d+\.\d+(?![\w.]*\w)")
_RUNS = pytest.StashKey[str]()
