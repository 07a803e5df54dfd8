import inspect
from typing import Literal, get_args, get_origin

import annotated_types
import pytest

from patchlib import models
from patchlib.augment import Augmentation, Mixing
from patchlib.parameters import ARCHITECTURES, Compare, ConvMixer, Recipe, RunParameters
from patchlib.schema import ParameterError, printable

SCHEMAS = [Recipe, RunParameters, Compare, *ARCHITECTURES.values()]
# Each field by a schema that has it, once where several inherit it.
DEFINED = {(name, repr(field)): schema for schema in reversed(SCHEMAS) for name, field in schema.model_fields.items()}
FIELDS = [pytest.param(schema, name, id=f"{schema.__name__}-{name}") for (name, _), schema in DEFINED.items()]


def accepts(schema, name, value):
    """Whether a value passes, the rest being such that it may; if not, the sentence must name it."""
    others = {"heads": 1} if "heads" in schema.model_fields else {}
    try:
        return getattr(schema(**others | {name: value}), name) == value
    except ParameterError as error:
        assert f"parameter {name!r}: received {value!r}" in str(error)
        return False


def edges(field):
    """Values at the bounds that a field's metadata names, and whether each is accepted."""
    step = 1 if field.annotation is int else 1e-9
    for bound in field.metadata:
        match bound:
            case annotated_types.Ge(ge=least):
                yield from ((least, True), (least - step, False))
            case annotated_types.Gt(gt=least):
                yield from ((least, False), (least + step, True))
            case annotated_types.Le(le=most):
                yield from ((most, True), (most + step, False))
            case annotated_types.Lt(lt=most):
                yield from ((most, False), (most - step, True))
            case annotated_types.MultipleOf(multiple_of=factor):
                yield from ((2 * factor, True), (2 * factor + 1, False))
            case annotated_types.MinLen(min_length=least):
                yield from (("a" * least, True), ("a" * (least - 1), False))


@pytest.mark.parametrize(("schema", "name"), FIELDS)
def test_every_field_accepts_its_bounds_and_nothing_beyond(schema, name):
    field = schema.model_fields[name]
    tried = list(edges(field))
    assert tried or field.annotation not in (int, float), "a number without a bound"
    for value, accepted in tried:
        if field.annotation is float:
            value = float(value)
        assert accepts(schema, name, value) == accepted, value


# For each kind of field: values that it takes, and values that only look like it.
KINDS = {
    bool: ((True, False), ("false", 0, 1, None)),
    int: ((), ("1", 1.0, True, None)),
    float: ((), ("1e-3", True, None, float("nan"), float("inf"))),
    str: (("a",), (1, True, None)),
}


@pytest.mark.parametrize(("schema", "name"), FIELDS)
def test_every_field_takes_its_own_kind_and_guesses_none(schema, name):
    kind = schema.model_fields[name].annotation
    taken, refused = (get_args(kind), ("other", 1, None)) if get_origin(kind) is Literal else KINDS[kind]
    assert all(accepts(schema, name, value) for value in taken)
    assert not any(accepts(schema, name, value) for value in refused)


@pytest.mark.parametrize(("schema", "name"), FIELDS)
@pytest.mark.parametrize(
    "value", [10**4000, 10**5000, -(10**5000), [10**5000]], ids=["4001", "5001", "negative", "list"]
)
def test_a_number_that_nobody_can_write_is_refused_in_a_short_sentence(schema, name, value):
    with pytest.raises(ParameterError) as caught:
        schema(**{name: value})
    assert len(str(caught.value)) < 600, caught.value


def test_control_characters_and_what_is_no_unicode_are_escaped():
    assert printable("a\x1b[31m\n\udcff\x9b") == r"a\x1b[31m\n\udcff\x9b"
    for text in ("cat", "plain text", r"C:\x", "it's", "Müller", "می\u200cروم", "👩\u200d🚀"):
        assert printable(text) == text


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_models_parameters_are_the_builders_keywords_with_its_defaults(architecture):
    fields, keywords = (
        ARCHITECTURES[architecture].model_fields,
        inspect.signature(getattr(models, architecture)).parameters,
    )
    own = set(fields) - set(RunParameters.model_fields) - {"standardize"}  # which sets the builders' mean and std
    assert own <= set(keywords)
    assert {name: fields[name].default for name in own} == {name: keywords[name].default for name in own}


@pytest.mark.parametrize("change", [Augmentation, Mixing])
def test_augmentations_parameters_have_its_defaults(change):
    for name, keyword in inspect.signature(change).parameters.items():
        assert Recipe.model_fields[name].default == keyword.default


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
        ({"patch_size": 5}, ["patch_size", "5", "32 x 32", "accepted: 1, 2, 4, 8, 16, 32."]),
        ({"patch_size": 32, "image_size": 48}, ["patch_size", "32", "48 x 48", "24, 48."]),
        ({"fixed_decay": True, "schedule": "cosine"}, ["fixed_decay", "True", "'cosine'", "'plateau'"]),
        ({"fixed_decay": True, "optimizer": "muon"}, ["fixed_decay", "True", "'muon'", "'adamw'"]),
        ({"label_smoothing": 1.0}, ["'label_smoothing'", "1.0", "less than 1"]),
        ({"start_size": 15}, ["start_size", "15", "a multiple of 2", "32"]),
        ({"start_size": 40}, ["start_size", "40", "a multiple of 2", "32"]),
        ({"start_size": 16, "patience": 3}, ["start_size", "16", "patience 3", "accepted: 0"]),
        ({"start_size": 16, "schedule": "plateau"}, ["start_size", "16", "'plateau'", "accepted: 0"]),
    ],
)
def test_what_is_refused_is_said_in_one_sentence(values, words):
    with pytest.raises(ParameterError) as caught:
        ConvMixer(**values)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_networks_with_weights_for_each_position_do_not_grow():
    for parameters in ARCHITECTURES.values():
        if parameters.any_size:
            assert parameters(dataset="photos/", start_size=32).start_size == 32
        else:
            with pytest.raises(ParameterError, match="start_size: received 16, accepted: 0, since"):
                parameters(start_size=16)
    assert {name for name, parameters in ARCHITECTURES.items() if not parameters.any_size} == {"mlp_mixer", "gmlp"}


def test_patches_must_tile_what_the_model_resizes_to_where_the_images_size_is_not_known_yet():
    assert ConvMixer(dataset="photos/", patch_size=7).patch_size == 7  # load_data looks at the pictures
    assert ARCHITECTURES["gmlp"](dataset="photos/", resize=63, patch_size=7).resize == 63
    with pytest.raises(ParameterError, match=r"patch_size: received 8 for images of 63 x 63 pixels, accepted: 1, 3, 7"):
        ARCHITECTURES["gmlp"](dataset="photos/", resize=63, patch_size=8)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_network_has_at_least_the_weights_of_its_matrices_and_not_many_more(architecture):
    p = ARCHITECTURES[architecture]()
    own = {name: getattr(p, name) for name in set(type(p).model_fields) - set(RunParameters.model_fields)}
    own.pop("standardize", None)
    count = getattr(models, architecture)(**own).count_params()
    least = p.least_weights((getattr(p, "resize", 32) // getattr(p, "patch_size", 32)) ** 2)
    assert count / 2 < least < count


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("changes", [{"dim": 2**40}, {"depth": 1000, "dim": 2**18}, {"dim": 10**4000}])
def test_an_impossible_network_is_refused_with_an_estimate(architecture, changes):
    others = {"heads": 1} if architecture == "vit" else {}
    with pytest.raises(
        ParameterError, match=r"depth \d+ and dim \d+.* at least [\d,]+.* GB\), accepted: 10,000,000,000 in"
    ):
        ARCHITECTURES[architecture](**changes, **others)


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("convmixer", {"image_size": 8192, "patch_size": 1}),
        ("gmlp", {"resize": 4096, "patch_size": 1, "dim": 1}),
        ("mlp_mixer", {"tokens_dim": 10**9}),
        ("cct", {"conv_dim": 10**9}),
        ("cct", {"heads": 10**6}),
    ],
)
def test_each_size_can_make_a_network_impossible(architecture, changes):
    with pytest.raises(ParameterError, match="weights and values of one image"):
        ARCHITECTURES[architecture](**changes)
