import numpy as np
import pytest

from patchlib.parameters import ConvMixer, Recipe
from patchlib.schema import ParameterError


def test_arguments_are_those_a_function_takes():
    def function(dim, depth=0, other=0):
        pass

    assert ConvMixer(dim=3, depth=4).arguments(function) == {"dim": 3, "depth": 4}


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


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("epochs", "010", 10),
        ("epochs", "1:30", "1:30"),
        ("learning_rate", "1e-3", 1e-3),
        ("learning_rate", "fast", "fast"),
        ("flip", "True", True),
        ("flip", "false", False),
        ("flip", "on", "on"),
        ("dataset", "2024", "2024"),
        ("schedule", "true", "true"),
        ("epoch", "3", "3"),
    ],
)
def test_a_word_becomes_what_its_parameter_is(name, text, value):
    found = ConvMixer.parse(name, text)
    assert found == value and type(found) is type(value)


def test_a_hint_at_yaml_only_for_what_could_be_a_number():
    for text, hinted in (("1e-3", True), ("fast", False)):
        with pytest.raises(ParameterError) as caught:
            ConvMixer(learning_rate=text)
        assert ("YAML" in str(caught.value)) == hinted


@pytest.mark.parametrize("name", ["In", "Out", "open", "exit", "_epochs", "__epochs__"])
def test_names_that_python_has_uses_for_pass_no_value(name):
    usual = {"In": ["", "x"], "Out": {}, "open": open, "exit": object(), "_i1": "epochs = 3", "_": 5, "__name__": "x"}
    ConvMixer.read(dict(usual))
    with pytest.raises(ParameterError, match=f"unknown parameter '{name}'"):
        ConvMixer.read(usual | {name: 3})
