"""What a run was computed on and with, for its card."""

import importlib
import os
import platform
from pathlib import Path

from patchlib.backend import keras


def hardware() -> dict:
    """Processor, the cores this process may use, and the backend's accelerators, by name."""
    accelerators = []
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf  # here, because on other backends it needn't be installed

        gpus = tf.config.list_physical_devices("GPU")
        accelerators = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
    elif keras.backend.backend() == "jax":
        import jax

        accelerators = [device.device_kind for device in jax.devices() if device.platform != "cpu"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": _processor(), "cores": cores, "accelerators": accelerators}


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions() -> dict:
    """Versions of Python, Keras, its backend, and what else the numbers depend on."""
    backend = keras.backend.backend()
    modules = ["patchlib", "keras", backend, "numpy"]
    numbers = {name: importlib.import_module(name).__version__ for name in modules}
    return {"python": platform.python_version(), "backend": backend} | numbers
