"""Patch-based image classifiers to read, train and take apart: data, layers, models, training, runs and plots.

Module order, which is the data's way; each module imports only what stands before it:
``backend -> machine -> files -> markdown -> schema -> parameters -> pictures -> sources -> data -> augment -> reference
-> layers -> models -> surgery -> cost -> optimizers -> training -> evaluation -> cards -> networks -> prediction ->
exporting -> runs -> checks -> explain -> plots -> compare -> notebook -> plan -> batch -> cli``. A module is imported
when it's first asked for, so what needs no Keras doesn't wait for it.
"""

import os
import platform

import lazy_loader

__version__ = "0.2.0"

# Both must precede TensorFlow's import. Its start-up chatter is no output. By itself it takes oneDNN's operations, the
# faster ones on any x86 processor, only where that has AVX512_VNNI, BF16 or AMX.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if platform.machine().lower() in ("x86_64", "amd64"):
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

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
