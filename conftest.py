"""What tests share, and what pytest needs to know of the notebooks, from whatever folder it's called."""

import base64
import contextlib
import copy
import io
import os
import re
import shutil
import sys
import tempfile

import numpy as np
import pytest
from PIL import Image

# Tests compile much on JAX, and run each program a few times.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(sys.prefix, "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


@pytest.fixture(scope="module")
def chromium():
    """A browser, by Playwright, whose event loop ends with it: others start loops of their own."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="there's no Playwright here: see `make browser`")
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        except sync_api.Error as error:
            pytest.skip(f"there's no Chromium here: install Debian's package of that name ({error.message[:80]})")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def eagerly():
    """Nothing is compiled in a module's tests, since that takes longer than a handful of steps."""
    with _eager(True):
        yield


@pytest.fixture
def compiled(eagerly):
    """But for this test, which takes many steps, or is about what's compiled."""
    with _eager(False):
        yield


@contextlib.contextmanager
def _eager(wanted):
    from patchlib.backend import keras

    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(wanted)
    yield
    tf.config.run_functions_eagerly(before)


def pytest_configure(config):
    if hasattr(config.option, "nbval"):
        config.option.nbval_current_env = True  # a kernel of this environment, whatever the notebook's metadata name
    config.stash[_RUNS] = os.environ["PATCHLIB_RUNS"] = tempfile.mkdtemp(prefix="patchlib-runs-")


def pytest_unconfigure(config):
    shutil.rmtree(config.stash[_RUNS], ignore_errors=True)


def pytest_collection_modifyitems(items):
    if "ONEDNN_MAX_CPU_ISA" in os.environ:
        from patchlib import machine  # here, because Keras takes seconds to import

        crashes = pytest.mark.skipif(machine.loses_bfloat16(), reason="in bfloat16 TensorFlow crashes here")
        for item in items:
            if "bfloat16" in item.name or "bfloat16" in item.keywords:
                item.add_marker(crashes)
    items.sort(key=lambda item: item.path.stem not in _LONGEST)  # first, so that at the end no process waits for one
    for item in items:
        if type(item).__name__ == "IPyNbCell":
            if "stderr" not in item.parent.skip_compare:
                item.parent.skip_compare += ("stderr",)  # TensorFlow's remarks on the machine at hand
            # Of trained numbers, which threads and processors round otherwise. By their last digits it's decided which
            # images a picture tagged "luck" shows, so that there need only be one.
            tags = item.cell.metadata.get("tags", [])
            (tolerance,) = [float(tag.removeprefix("tolerance-")) for tag in tags if "tolerance-" in tag] or [0.0]
            _compare_within(item, tolerance, 1.0 if "luck" in tags else _TRAINED if tolerance else _DRAWN)


def _compare_within(item, tolerance, difference):
    compare = item.compare_outputs

    def compare_outputs(outputs, stored):
        return compare(*pictured(within(outputs, stored, tolerance), stored, difference))

    item.compare_outputs = compare_outputs


def pictured(outputs: list, stored: list, accepted: float) -> tuple[list, list]:
    """Both, with words beside each picture: whether it's the stored one in its place.

    nbval compares words and leaves pictures alone. Two are the same here if they differ by at most ``accepted`` in the
    mean, on 64 x 64 pixels of grey from 0 to 1.
    """
    outputs, stored = copy.deepcopy(outputs), copy.deepcopy(stored)
    references = [output["data"] for output in stored if "image/png" in output.get("data", {})]
    drawn = [output["data"] for output in outputs if "image/png" in output.get("data", {})]
    for number, data in enumerate(drawn):
        apart = abs(_grey(data) - _grey(references[number])).mean() if number < len(references) else np.inf
        data["picture"] = "as stored" if apart <= accepted else f"differs by {apart:.4f}, accepted {accepted}"
    for data in references:
        data["picture"] = "as stored"
    return outputs, stored


def _grey(data):
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGBA")
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.asarray(picture.convert("L").resize((64, 64), Image.Resampling.BOX), float) / 255


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
    return {key: text for key, text in (output.get("data") or output).items() if key in _READ}


def pytest_runtest_setup(item):
    # nbval lets a cell pass that was never run, since it has nothing to compare with.
    if type(item).__name__ == "IPyNbCell" and item.cell.execution_count is None:
        pytest.fail("this cell was never run: its outputs are unknown; run `make refresh`", pytrace=False)


_READ = ("text", "text/plain", "text/markdown")
_DRAWN, _TRAINED = 0.0005, 0.03  # by how much a picture may differ, and one of what was trained here
_NUMBER = re.compile(r"(?<![\w.])-?\d+\.\d+(?![\w.]*\w)")
_LONGEST = ("test_batch", "test_faults", "test_wheel")
_RUNS = pytest.StashKey[str]()
