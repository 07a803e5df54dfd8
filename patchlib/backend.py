"""Keras, imported without the lines that TensorFlow's libraries write to the terminal while they load.

Modules and notebooks import it from here. Errors come as always.
"""

import contextlib
import os
import sys
import warnings


@contextlib.contextmanager
def quiet():
    """Nothing reaches file descriptor 2, which libraries in C++ write to; Python's own stderr goes on."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


with quiet():
    try:
        import keras
    except ModuleNotFoundError as error:
        if error.name not in ("tensorflow", "jax", "torch"):
            raise
        raise ModuleNotFoundError(
            f"Keras' backend {error.name} isn't installed: pip install tensorflow, or pip install jax and set "
            "KERAS_BACKEND=jax",
            name=error.name,
        ) from None
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.list_physical_devices()  # looks for a GPU's driver, and complains where there's none

ops = keras.ops


def onednn() -> bool:
    """Whether TensorFlow computes with oneDNN's operations, which it decides when it's imported."""
    if keras.backend.backend() != "tensorflow":
        return False
    from tensorflow.python.util import _pywrap_util_port

    return _pywrap_util_port.IsMklEnabled()


if os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "1" and keras.backend.backend() == "tensorflow" and not onednn():
    warnings.warn(
        "TensorFlow was imported before patchlib and computes without oneDNN, which is slower: import patchlib before "
        "keras, or set TF_ENABLE_ONEDNN_OPTS=1 in the environment.",
        RuntimeWarning,
        stacklevel=2,
    )
