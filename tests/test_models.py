import functools
import inspect
import itertools

import keras
import numpy as np
import pytest

from patchlib import models, reference, surgery
from patchlib.data import load_data
from patchlib.layers import kernels
from patchlib.layers.base import Block
from patchlib.optimizers import compile_model
from patchlib.parameters import ARCHITECTURES, Recipe


@pytest.mark.parametrize("build", [getattr(models, name) for name in ARCHITECTURES])
def test_no_two_weights_start_alike(build):
    """Keras' initialisers repeat themselves if layers share one."""
    values = [keras.ops.convert_to_numpy(w).ravel() for w in build(depth=2).trainable_weights]
    drawn = [value for value in values if value.std()]
    for a, b in itertools.combinations(drawn, 2):
        assert a.size != b.size or not np.array_equal(a, b)


@pytest.mark.jax
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_plain_operations_give_the_same_logits(name):
    model = getattr(models, name)(depth=1, dim=8)
    reference.randomize(model)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3))
    fast = model(images, training=False)
    with kernels.plain():
        np.testing.assert_allclose(model(images, training=False), fast, atol=1e-5)


CALM = {"dropout": 0.0, "head_dropout": 0.0, "resize": 16}  # so that a dozen steps surely help
SMALL = {
    models.convmixer: {"dim": 4, "depth": 1},
    models.cct: {
        "dim": 8,
        "key_dim": 4,
        "mlp_dim": 8,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "stochastic_depth": 0.0,
    },
    models.mlp_mixer: {"dim": 8, "depth": 1, **CALM},
    models.fnet: {"dim": 8, "depth": 1, **CALM},
    models.gmlp: {"dim": 8, "depth": 1, "hidden_dim": 8, **CALM},
    models.vit: {"dim": 8, "depth": 1, "heads": 2, "mlp_dim": 8, "patch_size": 8, "dropout": 0.0},
}


# A tiny instance of each, and for each keyword another value and what it must change: the weights' shapes in the named
# layers, or where there's a word, the first layer that computes something else at "inference", in "training" alone, or
# remembers ("moving") or starts ("start") otherwise.
BLOCKS = {"block_0", "block_1"}
PIXELS = {"mean": (9.0, "inference", "rescale"), "std": (64.0, "inference", "rescale")}
SHARED = PIXELS | {
    "depth": (3, {"block_2"}),
    "activation": ("relu", "inference", "block_0"),
    "epsilon": (0.1, "inference", "block_0"),
    "dropout": (0.7, "training", "block_0"),
}
PATCHES = SHARED | {"patch_size": (4, {"stem"} | BLOCKS), "head_dropout": (0.7, "training", "head_drop")}
ATTENTION = SHARED | {
    "mlp_dim": (7, BLOCKS),
    "attention_dropout": (0.7, "training", "block_0"),
    "stochastic_depth": (0.7, "training", "block_1"),
}
ARGUMENTS = {
    models.convmixer: (
        {"dim": 4, "kernel_size": 3},
        PIXELS
        | {
            "dim": (5, {"stem", "head"} | BLOCKS),
            "depth": (3, {"block_2"}),
            "kernel_size": (5, BLOCKS),
            "patch_size": (4, {"stem"}),
            "activation": ("relu", "inference", "stem"),
            "batchnorm_momentum": (0.5, "moving", "stem"),
            "batchnorm_epsilon": (0.1, "inference", "stem"),
        },
    ),
    models.cct: (
        {"dim": 8, "key_dim": 4, "mlp_dim": 6, "conv_dim": 5},
        ATTENTION
        | {
            "dim": (9, {"stem", "position", "norm", "pool", "head"} | BLOCKS),
            "heads": (3, BLOCKS),
            "key_dim": (3, BLOCKS),
            "conv_layers": (1, {"stem", "position"}),
            "conv_dim": (6, {"stem"}),
            "kernel_size": (1, {"stem"}),
            "stride": (2, "inference", "stem"),
            "padding": ("same", "inference", "stem"),
            "position": (False, {"position"}),
            "qkv_bias": (False, BLOCKS),
            "activate_output": (False, "inference", "block_0"),
            "skip": ("normalized", "inference", "block_0"),
        },
    ),
    models.mlp_mixer: (
        {"dim": 6, "tokens_dim": 5, "channels_dim": 7, "resize": 16, "final_norm": True},
        PATCHES
        | {
            "resize": (32, BLOCKS),
            "dim": (5, {"stem", "norm", "head"} | BLOCKS),
            "tokens_dim": (6, BLOCKS),
            "channels_dim": (6, BLOCKS),
            "shared_norm": (False, BLOCKS),
            "final_norm": (False, {"norm"}),
        },
    ),
    models.fnet: (
        {"dim": 6, "hidden_dim": 7, "resize": 16},
        PATCHES
        | {
            "resize": (32, {"position"}),
            "patch_size": (4, {"stem", "position"}),
            "dim": (5, {"stem", "position", "head"} | BLOCKS),
            "hidden_dim": (6, BLOCKS),
            "norm": ("ortho", "inference", "block_0"),
            "position": (False, {"position"}),
        },
    ),
    models.gmlp: (
        {"dim": 6, "hidden_dim": 8, "resize": 16, "gate_stddev": 0.1, "final_norm": True},
        PATCHES
        | {
            "resize": (32, BLOCKS),
            "dim": (5, {"stem", "norm", "head"} | BLOCKS),
            "hidden_dim": (6, BLOCKS),
            "skip": ("input", "inference", "block_0"),
            "gate_stddev": (0.2, "start", "block_0"),
            "gate_epsilon": (0.1, "inference", "block_0"),
            "final_norm": (False, {"norm"}),
        },
    ),
    models.vit: (
        {"dim": 8, "heads": 2, "mlp_dim": 6, "attention_dropout": 0.1, "stochastic_depth": 0.1},
        ATTENTION
        | {
            "patch_size": (2, {"stem", "position"}),
            "dim": (6, {"stem", "token", "position", "norm", "head"} | BLOCKS),
            "heads": (4, "inference", "block_0"),
            "pool": ("mean", {"token", "position"}),
            "dropout": (0.7, "training", "drop"),
        },
    ),
}
assert {*ARGUMENTS} == {*SMALL} == {getattr(models, name) for name in ARCHITECTURES}
BUILDERS = pytest.mark.parametrize("build", ARGUMENTS, ids=lambda build: build.__name__)
EVERY_ARGUMENT = pytest.mark.parametrize(
    ("build", "argument"),
    [
        pytest.param(build, argument, id=f"{build.__name__}-{argument}")
        for build, (_, changes) in ARGUMENTS.items()
        for argument in changes
    ],
)
SHAPE, CLASSES = (8, 8, 3), 3
COMMON = {"input_shape", "num_classes", "dtype", "name"}


def tiny(build, **changes):
    keras.utils.set_random_seed(0)
    return build(SHAPE, CLASSES, **{"depth": 2} | ARGUMENTS[build][0] | changes)


def by_layer(weights):
    """{name of a layer: its arrays}"""
    layers = {}
    for weight in weights:
        layers.setdefault(weight.path.split("/")[0], []).append(keras.ops.convert_to_numpy(weight))
    return layers


@functools.cache
def tried(build, argument=None):
    """A model with one argument changed, or none, and how it starts."""
    model = tiny(build, **({argument: ARGUMENTS[build][1][argument][0]} if argument else {}))
    return model, by_layer(model.weights)


@functools.cache
def observed(build, argument=None):
    """What each layer of such a model does, seeds and weights always alike."""
    model, start = tried(build, argument)
    reference.randomize(model)
    images, out = np.random.default_rng(0).integers(0, 256, (2, *SHAPE)), surgery.intermediates(model)
    seen = {"start": start}
    for what in ("inference", "training"):
        outputs = out(images, training=what == "training")
        seen[what] = {name: [keras.ops.convert_to_numpy(x)] for name, x in outputs.items()}
    return seen | {"moving": by_layer(model.non_trainable_weights)}


def differing(one, other):
    """The names of the layers, in order, whose arrays differ."""
    names = [*one, *(name for name in other if name not in one)]
    return [name for name in names if name not in one or not all(map(np.array_equal, one[name], other.get(name, [0])))]


def shapes(layers):
    return {name: [np.array(array.shape) for array in arrays] for name, arrays in layers.items()}


@EVERY_ARGUMENT
def test_every_keyword_changes_what_it_names(build, argument):
    _, *changes = ARGUMENTS[build][1][argument]
    weights = set(differing(*(shapes(tried(build, changed)[1]) for changed in (None, argument))))
    if len(changes) == 1:
        assert [weights] == changes
        return
    assert not weights
    kind, first = changes
    usual, changed = observed(build), observed(build, argument)
    differ = {what: differing(usual[what], changed[what]) for what in usual}
    assert differ[kind][0] == first
    if kind in ("inference", "training"):
        assert differ[kind][-1] == "head"
    if kind != "inference":
        assert not differ["inference"]


@EVERY_ARGUMENT
def test_every_keyword_reaches_all_layers_that_have_it(build, argument):
    value, *_ = ARGUMENTS[build][1][argument]
    wanted = kernels.activation(value) if argument == "activation" else value
    attribute = argument.removeprefix("batchnorm_")
    for layer in tried(build, argument)[0].layers if argument != "stochastic_depth" else []:
        has_it = attribute in inspect.signature(type(layer).__init__).parameters
        if has_it and isinstance(layer, Block | keras.layers.LayerNormalization):
            assert getattr(layer, attribute) == wanted, layer.name


@BUILDERS
def test_every_keyword_is_tried_and_the_common_ones_do_what_they_say(build):
    assert set(inspect.signature(build).parameters) == {*ARGUMENTS[build][1], *COMMON}
    model = tiny(build, dtype="mixed_bfloat16", name="other")
    assert model.name == "other" and model.input_shape == (None, *SHAPE) and model.output_shape == (None, CLASSES)
    policies = {layer.name: layer.dtype_policy.name for layer in model.layers if layer.weights}
    assert policies.pop("head") == "float32" and set(policies.values()) == {"mixed_bfloat16"}


@pytest.mark.parametrize("build", [models.cct, models.vit])
def test_stochastic_depth_grows_linearly_from_none_to_the_last_block(build):
    model = tiny(build, depth=4, stochastic_depth=0.6)
    rates = [model.get_layer(f"block_{i}").stochastic_depth for i in range(4)]
    np.testing.assert_allclose(rates, [0, 0.2, 0.4, 0.6])


@pytest.mark.parametrize(
    ("build", "argument", "before", "after"),
    [
        (models.mlp_mixer, "head_dropout", "pool", "head_drop"),
        (models.fnet, "head_dropout", "pool", "head_drop"),
        (models.gmlp, "head_dropout", "pool", "head_drop"),
        (models.vit, "dropout", "position", "drop"),
    ],
)
def test_dropout_outside_the_blocks_has_its_rate(build, argument, before, after):
    model = tiny(build, **{argument: 0.25})
    images = np.random.default_rng(0).integers(0, 256, (300, *SHAPE))
    out = surgery.intermediates(model)(images, training=True)
    share = keras.ops.convert_to_numpy(out[after]) / keras.ops.convert_to_numpy(out[before])
    values, counts = np.unique(share.round(3), return_counts=True)
    np.testing.assert_allclose(values, [0, 1.333], atol=1e-3)
    assert counts[0] / counts.sum() == pytest.approx(0.25, abs=0.04)


@pytest.mark.jax
@pytest.mark.parametrize("pool", ["token", "mean"])
def test_vit_equals_its_definition(pool):
    model = tiny(models.vit, pool=pool, mean=100.0, std=50.0, epsilon=1e-2)
    reference.randomize(model)
    images = np.random.default_rng(0).integers(0, 256, (2, *SHAPE))
    weights = {layer.name: reference.named_weights(layer) for layer in model.layers}
    x = reference.patch_embedding((images - 100) / 50, weights["stem"], 4)
    if pool == "token":
        x = reference.class_token(x, weights["token"])
    x = reference.position_embedding(x, weights["position"])
    for i in range(2):
        x = reference.transformer_block(x, weights[f"block_{i}"], 2, 1e-2)
    x = reference.layer_norm(x, {f"norm/{name}": w for name, w in weights["norm"].items()}, "norm", 1e-2)
    x = x[:, 0] if pool == "token" else x.mean(1)
    logits = x @ weights["head"]["kernel"] + weights["head"]["bias"]
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(images)), logits, rtol=1e-3, atol=1e-4)


def test_vits_head_starts_near_zero_and_its_positions_small():
    model = models.vit(num_classes=100, depth=1)
    head, table = (
        keras.ops.convert_to_numpy(w) for w in (model.get_layer("head").kernel, model.get_layer("position").table)
    )
    assert head.std() == pytest.approx(0.02, rel=0.15) and np.abs(table).max() == pytest.approx(0.05, rel=0.01)


@pytest.mark.bfloat16
@pytest.mark.parametrize(
    ("name", "changes", "standardized"),
    [("convmixer", {}, False), ("cct", {}, False), ("cct", {"standardize": True}, True)]
    + [(name, {}, True) for name in ("mlp_mixer", "fnet", "gmlp", "vit")],
)
def test_the_parameters_of_a_run_make_its_model(name, changes, standardized):
    data, p = load_data("digits", limit=50), ARCHITECTURES[name](dim=16, depth=1, seed=3, **changes)
    model, again, other = (models.build(p.model_copy(update={"seed": s}), data, "mixed_bfloat16") for s in (3, 3, 4))
    assert (model.name, model.input_shape, model.output_shape) == (name, (None, 32, 32, 3), (None, 10))
    assert model.get_layer("stem").compute_dtype == "bfloat16"
    weights = [[np.array(w) for w in m.get_weights()] for m in (model, again, other)]
    assert all(map(np.array_equal, *weights[:2])) and not all(map(np.array_equal, *weights[1:]))
    mean, std = (data.mean, data.std) if standardized else (0, 255)
    pixels = data.train.images[:2].astype("float32")
    seen = keras.ops.convert_to_numpy(surgery.intermediates(model)(pixels)["rescale"]).astype("float32")
    np.testing.assert_allclose(seen, (pixels - mean) / std, atol=0.02)


@pytest.mark.parametrize("build", SMALL, ids=lambda build: build.__name__)
def test_every_model_trains_and_comes_back_from_disk(build, tmp_path):
    keras.utils.set_random_seed(0)
    model = build(num_classes=3, **SMALL[build])
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype="uint8")
    compile_model(model, Recipe(learning_rate=2e-3), steps_per_epoch=1)
    losses = [model.train_on_batch(images, np.eye(3, dtype="float32")[[0, 1, 2, 0]])[0] for _ in range(12)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    logits, expected = (keras.ops.convert_to_numpy(trained(images, training=False)) for trained in (loaded, model))
    assert logits.shape == (4, 3) and logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=1e-6)


def test_batchnorm_and_layer_names_are_as_asked():
    model = models.convmixer(dim=4, depth=2, batchnorm_momentum=0.9, batchnorm_epsilon=1e-5)
    assert [layer.name for layer in model.layers[1:]] == ["rescale", "stem", "block_0", "block_1", "pool", "head"]
    for norm in (model.get_layer("stem").norm, model.get_layer("block_1").depthwise_norm):
        assert (norm.momentum, norm.epsilon) == (0.9, 1e-5)
    out = surgery.intermediates(model)(np.zeros((1, 32, 32, 3)))
    assert out["block_1"].shape == (1, 16, 16, 4) and out["head"].shape == (1, 10)


def test_pixels_enter_as_asked():
    pixels = np.full((1, 4, 4, 3), [0, 51, 255])
    for mean, std, expected in [(0.0, 255.0, [0, 0.2, 1]), ([0, 51, 0], (1, 2, 255), [0, 0, 1])]:
        model = models.convmixer((4, 4, 3), dim=2, depth=1, mean=mean, std=std)
        rescaled = keras.ops.convert_to_numpy(surgery.intermediates(model)(pixels)["rescale"])
        np.testing.assert_allclose(rescaled[0, 0, 0], expected, atol=1e-6)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="`patch_size` must divide.*patch_size=5.*32 x 32"):
        models.convmixer(patch_size=5)
    for wrong in ({"dim": 0}, {"depth": 0}, {"depth": -1}):
        with pytest.raises(ValueError, match=f"Received: {next(iter(wrong))}="):
            models.convmixer(**wrong)
    with pytest.raises(ValueError, match="Received: conv_layers=0"):
        models.cct(conv_layers=0)
    with pytest.raises(ValueError, match="`std` must be above zero"):
        models.convmixer(std=[1, 0, 1])
    with pytest.raises(ValueError, match="`heads` must divide `dim`. Received: heads=3, dim=128"):
        models.vit(heads=3)
    with pytest.raises(ValueError, match="one of 'token', 'mean'. Received: pool='max'"):
        models.vit(pool="max")
