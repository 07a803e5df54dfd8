"""What a card says of the machine is what is there."""

import os
import platform

import keras
import numpy as np
import pytest

import patchlib
from patchlib import machine
from patchlib.backend import onednn


def test_hardware_has_a_processors_name_and_the_cores_that_may_be_used():
    found = machine.hardware()
    assert found["cores"] <= os.cpu_count()
    assert found["processor"].strip() and "\t" not in found["processor"]
    assert found["threads"] >= 1 and found["onednn"] == onednn() and found["instructions"] == machine.instructions()


FLAGS = ["fma", "sse4_1", "avx", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_bf16"]


@pytest.mark.parametrize(
    ("count", "most", "name"),
    [
        (10, "", "AMX"),
        (9, "", "AVX512_BF16"),
        (8, "", "AVX512_VNNI"),
        (7, "", "AVX512"),
        (5, "", "AVX2_VNNI"),
        (4, "", "AVX2"),
        (3, "", "AVX"),
        (2, "", "SSE41"),
        (0, "", platform.machine()),
        (10, "ALL", "AMX"),
        (10, "AVX512_CORE_AMX", "AMX"),
        (10, "AVX512_CORE_BF16", "AVX512_BF16"),
        (9, "avx512_core", "AVX512"),
        (9, "AVX2", "AVX2"),
        (4, "AVX512_CORE", "AVX2"),
        (9, "SSE41", "SSE41"),
    ],
)
def test_instructions_are_the_most_capable_that_libraries_may_use(monkeypatch, count, most, name):
    monkeypatch.setattr(machine, "_cpuinfo", {"flags": " ".join(FLAGS[:count])}.get)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
    assert machine.instructions() == name


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the number is TensorFlow's")
def test_threads_are_those_of_an_operation(monkeypatch):
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "3")
    assert machine.hardware()["threads"] == 3
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS")
    assert machine.hardware()["threads"] == machine.hardware()["cores"]


def test_where_the_system_does_not_say_python_does(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path / "nothing")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    found = machine.hardware()
    assert found["processor"] == (platform.processor() or platform.machine()) and found["cores"] == os.cpu_count()
    assert found["instructions"] == platform.machine()


GPU = {"name": "one", "capability": (8, 0)}


@pytest.mark.parametrize(
    ("accelerators", "flags", "policy"),
    [
        ([], "fma avx512f avx512_bf16", "mixed_bfloat16"),
        ([], "amx_bf16 amx_tile", "mixed_bfloat16"),
        ([], "fma avx512f", "float32"),
        ([], "", "float32"),  # as on Windows and macOS
        ([GPU, GPU], "", "mixed_bfloat16"),
        ([{"name": "old", "capability": (7, 5)}], "avx512_bf16", "float32"),
        ([GPU, {"name": "old", "capability": (7, 5)}], "", "float32"),
        ([{"name": "another maker's", "capability": None}], "", "float32"),
        ([{"name": "TPU v4", "capability": None}], "", "mixed_bfloat16"),
    ],
)
def test_bfloat16_is_for_machines_that_are_faster_with_it(monkeypatch, accelerators, flags, policy):
    monkeypatch.setattr(machine, "_accelerators", lambda: accelerators)
    monkeypatch.setattr(machine, "_cpuinfo", {"flags": flags}.get)
    monkeypatch.setattr(machine, "onednn", lambda: True)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    assert machine.precision() == policy
    if not accelerators:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
        assert machine.precision() == "float32" and machine.loses_bfloat16() == ("avx512f" in flags)
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
        monkeypatch.setattr(machine, "onednn", lambda: False)
        assert machine.precision() == "float32" and not machine.loses_bfloat16()
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")  # whose matrix products aren't, on a processor
    assert machine.precision() == (policy if accelerators else "float32")


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the device list is TensorFlow's")
def test_accelerators_have_names_and_capabilities(monkeypatch):
    import tensorflow as tf

    details = {"a": {"device_name": "NVIDIA H100", "compute_capability": (9, 0)}, "b": {}}
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: list(details))
    monkeypatch.setattr(tf.config.experimental, "get_device_details", details.get)
    assert machine.hardware()["accelerators"] == ["NVIDIA H100", "GPU"]
    assert [accelerator["capability"] for accelerator in machine._accelerators()] == [(9, 0), None]


def test_versions_are_those_imported():
    found, backend = machine.versions(), keras.backend.backend()
    assert list(found) == ["python", "backend", "patchlib", "keras", backend, "numpy"]
    assert found["backend"] == backend and found["python"] == platform.python_version()
    assert (found["patchlib"], found["keras"], found["numpy"]) == (
        patchlib.__version__,
        keras.__version__,
        np.__version__,
    )
