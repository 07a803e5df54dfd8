"""Patch-based image classifiers to read, train and take apart: data, layers, models, training, runs and plots.

The way of the data is the order of the modules; each imports only what stands before it:
``parameters -> data -> augment -> reference -> layers -> models -> training -> runs -> checks -> plots -> compare ->
batch``. A module is imported when it's first asked for, since most need Keras, which takes seconds, and some need not.
"""

import importlib
import os
import sys

__version__ = "0.1.0"

os.environ.setdefault(
    "TF_CPP_MIN_LOG_LEVEL", "2"
)  # must precede TensorFlow's import; its start-up chatter is no output

__all__ = [
    "augment",
    "checks",
    "data",
    "layers",
    "load_data",
    "models",
    "parameters",
    "reference",
    "runs",
    "train",
    "training",
]
_HOMES = {"load_data": "data", "train": "runs"}


def __getattr__(name):
    if name not in __all__:
        raise AttributeError(f"module 'patchlib' has no attribute {name!r}")
    module = importlib.import_module(f"patchlib.{_HOMES.get(name, name)}")
    return getattr(module, name) if name in _HOMES else module


if "keras" in sys.modules:  # so that ``import keras, patchlib`` is all that loading a saved model takes
    from patchlib import layers, training
