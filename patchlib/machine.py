"""What a run was computed on and with, for its card."""

import importlib
import os
import platform
from pathlib import Path

from patchlib.backend import keras


def hardware() -> dict:
    """Processor, the cores this process may use, and the backend's accelerators, by name."""
    accelerators = [accelerator["name"] for accelerator in _accelerators()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": cores,
        "accelerators": accelerators,
    }


def _accelerators():
    """The backend's accelerators: their names, and compute capability, such as (8, 0), where they are NVIDIA's."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf  # here, because on other backends it needn't be installed

        details = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
        return [{"name": d.get("device_name", "GPU"), "capability": d.get("compute_capability")} for d in details]
    if keras.backend.backend() == "jax":
        import jax

        devices = [device for device in jax.devices() if device.platform != "cpu"]
        capabilities = [getattr(device, "compute_capability", "") for device in devices]
        return [
            {"name": device.device_kind, "capability": tuple(map(int, capability.split("."))) if capability else None}
            for device, capability in zip(devices, capabilities, strict=True)
        ]
    return []


def _has_bfloat16(accelerator):
    """NVIDIA's from Ampere on, and every TPU; of others nobody here knows."""
    return (accelerator["capability"] or (0, 0)) >= (8, 0) or "TPU" in accelerator["name"]


def _cpuinfo(key):
    """What Linux says of the first core; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(key))
    except (OSError, StopIteration):
        return ""


def precision() -> str:
    """The dtype policy with which this machine computes fastest: "mixed_bfloat16" or "float32".

    bfloat16 pays on accelerators with units for it, and with TensorFlow on processors with instructions for it.
    """
    if accelerators := _accelerators():
        return "mixed_bfloat16" if all(map(_has_bfloat16, accelerators)) else "float32"
    flags = _cpuinfo("flags").split()
    on_cpu = keras.backend.backend() == "tensorflow" and {"avx512_bf16", "amx_bf16"} & set(flags)
    return "mixed_bfloat16" if on_cpu else "float32"


def versions() -> dict:
    """Versions of Python, Keras, its backend, and what else the numbers depend on."""
    backend = keras.backend.backend()
    modules = ["patchlib", "keras", backend, "numpy"]
    numbers = {name: importlib.import_module(name).__version__ for name in modules}
    return {"python": platform.python_version(), "backend": backend} | numbers
