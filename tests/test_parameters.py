import numpy as np
import pytest

from patchlib.parameters import ConvMixer, ParameterError, Recipe


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epoch": 3}, ["unknown parameter 'epoch'", "received 3", "'epochs'"]),
        ({"flip": "false"}, ["'flip'", "'false' (str)", "boolean", "-p NAME False"]),
        ({"learning_rate": "1e-3"}, ["'learning_rate'", "'1e-3' (str)", "number", "0.001"]),
        ({"learning_rate": 0.0}, ["'learning_rate'", "0.0", "greater than 0"]),
        ({"learning_rate": float("nan")}, ["'learning_rate'", "nan", "finite"]),
        ({"epochs": 0}, ["'epochs'", "0", "greater than or equal to 1"]),
        ({"epochs": 2.0}, ["'epochs'", "2.0 (float)", "integer"]),
        ({"epochs": True}, ["'epochs'", "True (bool)", "integer"]),
        ({"schedule": "cosin"}, ["'schedule'", "'cosin'", "'one_cycle'", "'cosine'"]),
        ({"warmup_epochs": 1.0}, ["warmup_epochs", "1.0", "'cosine'"]),
        ({"warmup_epochs": 5.0, "schedule": "cosine", "epochs": 5}, ["warmup_epochs", "5.0", "less than epochs"]),
        ({"ema": 1.0}, ["'ema'", "1.0", "less than 1"]),
    ],
)
def test_what_is_refused_is_said_in_one_sentence(values, words):
    with pytest.raises(ParameterError) as caught:
        ConvMixer(**values)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_an_integer_is_a_number_but_parameters_are_fixed():
    recipe = Recipe(learning_rate=1)
    with pytest.raises(Exception, match="frozen"):
        recipe.epochs = 2


def test_read_refuses_a_mistyped_injection_only_before_the_notebook_has_names_of_its_own():
    namespace = {"epochs": 2, "_i1": "", "In": [], "np": np, "exit": exit}
    assert ConvMixer.read(namespace).epochs == 2
    namespace |= {"card": {}, "history": [1, 2], "epochs": 4, "width": 8}
    assert ConvMixer.read(namespace).epochs == 4
    with pytest.raises(ParameterError, match="'epoch'.*'epochs'.*del epoch"):
        ConvMixer.read(namespace | {"epoch": 7})
    with pytest.raises(ParameterError, match="'epoch'.*'epochs'"):
        ConvMixer.read({"epochs": 2, "epoch": 3})
