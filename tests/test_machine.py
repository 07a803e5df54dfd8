"""What a card says of the machine is what is there."""

import os
import platform

import keras
import numpy as np

import patchlib
from patchlib import machine


def test_hardware_has_a_processors_name_and_the_cores_that_may_be_used():
    found = machine.hardware()
    assert found["cores"] <= os.cpu_count() and found["accelerators"] == []
    assert found["processor"].strip() and "\t" not in found["processor"]


def test_where_the_system_does_not_say_python_does(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path / "nothing")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    found = machine.hardware()
    assert found["processor"] == (platform.processor() or platform.machine()) and found["cores"] == os.cpu_count()


def test_versions_are_those_imported():
    found, backend = machine.versions(), keras.backend.backend()
    assert list(found) == ["python", "backend", "patchlib", "keras", backend, "numpy"]
    assert found["backend"] == backend and found["python"] == platform.python_version()
    assert (found["patchlib"], found["keras"], found["numpy"]) == (
        patchlib.__version__,
        keras.__version__,
        np.__version__,
    )
