"""What a run was computed on and with, for its card."""

import importlib
import os
import platform
from pathlib import Path

from patchlib.backend import keras, onednn

# Instruction sets, the most capable first: as tables are named by them, each one's flag in Linux' /proc/cpuinfo, and
# what ONEDNN_MAX_CPU_ISA calls those up to which it's the most that oneDNN uses.
_INSTRUCTIONS = {
    "AMX": ("amx_bf16", "AMX"),
    "AVX512_BF16": ("avx512_bf16", "AVX512_CORE_BF16 AVX512_CORE_FP16 AVX10_1_512 AVX10_2"),
    "AVX512_VNNI": ("avx512_vnni", "AVX512_CORE_VNNI"),
    "AVX512": ("avx512bw", "AVX512_CORE"),
    "AVX2_VNNI": ("avx_vnni", "AVX2_VNNI AVX2_VNNI_2"),
    "AVX2": ("avx2", "AVX2"),
    "AVX": ("avx", "AVX"),
    "SSE41": ("sse4_1", "SSE41"),
}


def hardware() -> dict:
    """What a card says of the machine.

    Returns:
        ``processor``: its name. ``instructions``: see below. ``cores``: how many this process may use. ``threads``: how
        many compute one operation. ``onednn``: whether TensorFlow takes oneDNN's operations. ``accelerators``: the
        backend's, by name.
    """
    accelerators = [accelerator["name"] for accelerator in _accelerators()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "instructions": instructions(),
        "cores": cores,
        "threads": _threads() or cores,
        "onednn": onednn(),
        "accelerators": accelerators,
    }


def instructions() -> str:
    """The most capable instruction set that numerical libraries may use here: "AVX512_BF16", "AVX2" ...

    ``ONEDNN_MAX_CPU_ISA`` in the environment lowers it, as it does for oneDNN. Where the system doesn't say what the
    processor has, and of other kinds, it's the architecture's name, "arm64" or "AMD64".
    """
    flags, most = set(_cpuinfo("flags").split()), os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    known = list(_INSTRUCTIONS)
    first = next((i for i, name in enumerate(known) if most in _INSTRUCTIONS[name][1].split()), 0)
    return next((name for name in known[first:] if _INSTRUCTIONS[name][0] in flags), platform.machine())


def _threads():
    if keras.backend.backend() != "tensorflow":
        return 0
    import tensorflow as tf

    return tf.config.threading.get_intra_op_parallelism_threads() or int(os.environ.get("TF_NUM_INTRAOP_THREADS") or 0)


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
    """The dtype policy with which this machine computes fastest: "mixed_bfloat16" or "float32"."""
    return "mixed_bfloat16" if has_bfloat16() else "float32"


def has_bfloat16() -> bool:
    """Whether the backend computes in bfloat16 by instructions of its own, which are fast and add up in float32.

    On other processors TensorFlow is slower in it than in float32, and some of its sums stop growing after a few
    hundred terms; ``patchlib.layers`` don't use those. XLA's sums, and so JAX', are float32 everywhere.
    """
    if accelerators := _accelerators():
        return all(map(_has_bfloat16, accelerators))
    return keras.backend.backend() == "tensorflow" and onednn() and instructions() in ("AMX", "AVX512_BF16")


def loses_bfloat16() -> bool:
    """Whether TensorFlow would crash in bfloat16, since ``ONEDNN_MAX_CPU_ISA`` forbids oneDNN what it counts on."""
    wide = "avx512f" in _cpuinfo("flags").split() and not instructions().startswith(("AMX", "AVX512"))
    return wide and onednn() and not _accelerators()


def versions() -> dict:
    """Versions of Python, Keras, its backend, and what else the numbers depend on."""
    backend = keras.backend.backend()
    modules = ["patchlib", "keras", backend, "numpy"]
    numbers = {name: importlib.import_module(name).__version__ for name in modules}
    return {"python": platform.python_version(), "backend": backend} | numbers
