"""Keras is imported in silence, and where its backend is missing, a sentence says so."""

import os
import subprocess
import sys

import pytest


def python(program, **environment):
    env = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"} | environment
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
