"""Patch-based image classifiers to read, train and take apart: data, layers, models, training, runs and plots.

The way of the data is the order of the modules; each imports only what stands before it:
``parameters -> pictures -> data -> augment -> reference -> layers -> models -> training -> runs -> checks -> plots ->
compare -> batch``. All but the last three are imported, so that Keras knows the layers of a saved model. The command
line alone takes only what it needs, which isn't Keras.
"""

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
    "load_picture",
    "models",
    "parameters",
    "pictures",
    "reference",
    "runs",
    "train",
    "training",
]
_COMMANDS = "patchlib", os.path.join(os.path.dirname(__file__), "__main__.py")  # the second in its worker processes
if sys.orig_argv[1:3] != ["-m", "patchlib"] and not {sys.argv[0], os.path.basename(sys.argv[0])} & {*_COMMANDS}:
    from patchlib import augment, checks, data, layers, models, parameters, pictures, reference, runs, training
    from patchlib.data import load_data
    from patchlib.pictures import load_picture
    from patchlib.runs import train
