"""Patch-based image classifiers to read, train and take apart: data, layers, models, training, runs and plots.

Module order, which is the data's way; each module imports only what stands before it:
``backend -> files -> markdown -> schema -> parameters -> pictures -> sources -> data -> augment -> reference -> layers
-> models -> surgery -> cost -> optimizers -> training -> evaluation -> machine -> cards -> networks -> prediction ->
exporting -> runs -> checks -> explain -> plots -> compare -> notebook -> plan -> batch -> cli``. A module is imported
when it's first asked for, so what needs no Keras doesn't wait for it.
"""

import os

import lazy_loader

__version__ = "0.2.0"

# Must precede TensorFlow's import; its start-up chatter is no output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    {"augment", "cards", "checks", "compare", "cost", "data", "evaluation", "explain", "layers", "machine", "markdown"}
    | {
        "exporting",
        "models",
        "networks",
        "notebook",
        "optimizers",
        "parameters",
        "pictures",
        "plots",
        "prediction",
        "reference",
        "runs",
        "schema",
        "sources",
        "surgery",
        "training",
    },
    {"data": ["load_data"], "exporting": ["export"], "networks": ["load_model"], "pictures": ["load_picture"]}
    | {"prediction": ["classify"], "runs": ["train"]},
)
