"""Keras is imported in silence, and where its backend is missing, a sentence says so."""

import importlib
import os
import platform
import subprocess
import sys

import keras
import pytest

import patchlib


def python(program, **environment):
    own = ("TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS")  # that patchlib sets
    env = {name: value for name, value in os.environ.items() if name not in own} | environment
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)


@pytest.mark.parametrize("first", ["layers", "runs"])
def test_nothing_is_written_to_the_terminal_while_keras_loads_and_stderr_works_afterwards(first):
    program = f"import sys, numpy; from patchlib import {first}, layers; layers.MLP(3)(numpy.ones((1, 1)))"
    done = python(f"{program}; print('heard', file=sys.stderr)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "heard\n")


HIDE = """
import sys
class Missing:
    def find_spec(name, *_):
        if name in ("tensorflow", "jax"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Missing)
import patchlib.models
"""


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_a_missing_backend_is_said_in_a_sentence(backend):
    last = python(HIDE, KERAS_BACKEND=backend).stderr.splitlines()[-1]
    assert last.startswith(
        f"ModuleNotFoundError: Keras' backend {backend} isn't installed: pip install tensorflow, or pip "
    )


ON_X86 = platform.machine().lower() in ("x86_64", "amd64")
SAID = "; from patchlib import backend; print(backend.onednn())"


@pytest.mark.skipif(keras.backend.backend() != "tensorflow" or not ON_X86, reason="oneDNN is TensorFlow's, on x86")
def test_tensorflow_computes_with_onednn_unless_the_user_says_otherwise():
    # Where it's off, as TensorFlow by itself has it on most processors, and then asked for too late.
    late = "import os, keras; import patchlib.models; os.environ['TF_ENABLE_ONEDNN_OPTS'] = '1'; print('asked')"
    off = python(late + SAID + "; import importlib; importlib.reload(backend)", TF_ENABLE_ONEDNN_OPTS="0")
    assert off.stdout == "asked\nFalse\n"
    assert off.stderr.count("computes without oneDNN") == 1
    assert "import patchlib before keras, or set TF_ENABLE_ONEDNN_OPTS=1" in off.stderr
    on = python("import patchlib" + SAID)
    assert (on.stdout, on.stderr) == ("True\n", "")


@pytest.mark.parametrize(("processor", "given"), [("x86_64", "1"), ("AMD64", "1"), ("arm64", None), ("aarch64", None)])
def test_it_is_asked_for_on_x86_alone(monkeypatch, processor, given):
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    monkeypatch.setattr(platform, "machine", lambda: processor)
    importlib.reload(patchlib)
    assert os.environ.get("TF_ENABLE_ONEDNN_OPTS") == given
