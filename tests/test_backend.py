"""Keras is imported in silence, and where its backend is missing, a sentence says so."""

import os
import platform
import subprocess
import sys

import keras
import pytest


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
    for first in ("import patchlib, keras", "import keras, patchlib"):
        for said, on in (("1", "True\n"), ("0", "False\n")):
            done = python(first + SAID, TF_ENABLE_ONEDNN_OPTS=said)
            assert done.stdout == on and "computes without" not in done.stderr, first
    assert python("import patchlib" + SAID).stdout == "True\n"
    # Of a processor on which TensorFlow has it off by itself.
    late = "import os, keras; del os.environ['TF_ENABLE_ONEDNN_OPTS']; import patchlib; from patchlib import models"
    done = python(late + SAID, TF_ENABLE_ONEDNN_OPTS="0")
    assert done.stdout == "False\n" and done.stderr.count("computes without oneDNN") == 1
    assert "import patchlib before keras, or set TF_ENABLE_ONEDNN_OPTS=1" in done.stderr


@pytest.mark.parametrize(("processor", "given"), [("x86_64", "1"), ("AMD64", "1"), ("arm64", None), ("aarch64", None)])
def test_it_is_asked_for_on_x86_alone(processor, given):
    program = f"import os, platform; platform.machine = lambda: {processor!r}; import patchlib"
    assert python(f"{program}; print(os.environ.get('TF_ENABLE_ONEDNN_OPTS'))").stdout == f"{given}\n"
