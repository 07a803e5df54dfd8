"""The layer contract, for every exported layer, and the layers against their NumPy definitions."""

import functools
import inspect
import math
import re

import keras
import numpy as np
import pytest
from scipy import interpolate

from patchlib import layers, reference
from patchlib.layers import kernels

SEQUENCE = (2, 6, 4)
IMAGE = (2, 8, 8, 3)

# For each layer: its arguments, the shape of an input, and its definition in NumPy.
CONTRACT = {
    "ConvStem": (
        {"dim": 6, "patch_size": 2, "momentum": 0.9, "epsilon": 1e-5},
        (2, 6, 4, 3),
        lambda x, w: reference.conv_stem(x, w, 2, 1e-5),
    ),
    "ConvMixerBlock": (
        {"dim": 4, "kernel_size": 3, "momentum": 0.9, "epsilon": 1e-5},
        (2, 5, 4, 4),
        lambda x, w: reference.convmixer_block(x, w, 1e-5),
    ),
    "ConvMixerBlock with an even kernel": (
        {"dim": 4, "kernel_size": 4, "epsilon": 1e-3},
        (2, 5, 6, 4),
        lambda x, w: reference.convmixer_block(x, w, 1e-3),
    ),
    "PatchEmbedding": ({"dim": 5, "patch_size": 4}, (2, 8, 12, 3), lambda x, w: reference.patch_embedding(x, w, 4)),
    "ConvTokenizer": ({"channels": (4, 5)}, IMAGE, reference.conv_tokenizer),
    "ConvTokenizer, same": (
        {"channels": (4, 5), "padding": "same"},
        IMAGE,
        lambda x, w: reference.conv_tokenizer(x, w, padding="same"),
    ),
    "ConvTokenizer, symmetric, with a stride": (
        {"channels": (4,), "kernel_size": 7, "stride": 2, "padding": "symmetric"},
        (2, 16, 16, 3),
        lambda x, w: reference.conv_tokenizer(x, w, 7, 2, "symmetric"),
    ),
    "PositionEmbedding": ({"initializer": "uniform"}, SEQUENCE, reference.position_embedding),
    "ClassToken": ({}, SEQUENCE, reference.class_token),
    "TokenPooling": ({}, SEQUENCE, reference.token_pooling),
    "StochasticDepth": ({"rate": 0.5}, SEQUENCE, lambda x, w: x),
    "MLP": ({"hidden_dim": 7, "dropout": 0.1, "output_dropout": 0.1}, SEQUENCE, reference.mlp),
    "MLP, activated at its end": (
        {"hidden_dim": 7, "activate_output": True},
        SEQUENCE,
        lambda x, w: reference.mlp(x, w, activate_output=True),
    ),
    "MixerBlock": (
        {"tokens_dim": 5, "channels_dim": 7, "dropout": 0.1},
        SEQUENCE,
        lambda x, w: reference.mixer_block(x, w, 1e-6),
    ),
    "MixerBlock with one norm": (
        {"tokens_dim": 5, "channels_dim": 7, "shared_norm": True, "epsilon": 1e-2},
        SEQUENCE,
        lambda x, w: reference.mixer_block(x, w, 1e-2, shared_norm=True),
    ),
    "SelfAttention": (
        {"heads": 2, "key_dim": 3, "dropout": 0.1},
        SEQUENCE,
        lambda x, w: reference.self_attention(x, w, 2),
    ),
    "SelfAttention without bias": (
        {"heads": 2, "key_dim": 2, "qkv_bias": False},
        SEQUENCE,
        lambda x, w: reference.self_attention(x, w, 2),
    ),
    "TransformerBlock": (
        {"heads": 2, "key_dim": 4, "mlp_dim": 7, "dropout": 0.1, "attention_dropout": 0.1, "stochastic_depth": 0.1},
        SEQUENCE,
        lambda x, w: reference.transformer_block(x, w, 2, 1e-5),
    ),
    "TransformerBlock as in the example": (
        {"heads": 2, "key_dim": 4, "mlp_dim": 7, "activate_output": True},
        SEQUENCE,
        lambda x, w: reference.transformer_block(x, w, 2, 1e-5, activate_output=True),
    ),
    "TransformerBlock as CCT's authors have it": (
        {"heads": 2, "key_dim": 2, "mlp_dim": 8, "qkv_bias": False, "skip": "normalized", "epsilon": 1e-2},
        SEQUENCE,
        lambda x, w: reference.transformer_block(x, w, 2, 1e-2, skip="normalized"),
    ),
    "SequencePooling": ({}, SEQUENCE, reference.sequence_pooling),
    "FourierMixing": ({}, SEQUENCE, reference.fourier_mixing),
    "FourierMixing that keeps lengths": (
        {"norm": "ortho"},
        SEQUENCE,
        lambda x, w: reference.fourier_mixing(x, w, "ortho"),
    ),
    "FNetBlock that keeps lengths": (
        {"hidden_dim": 7, "norm": "ortho"},
        SEQUENCE,
        lambda x, w: reference.fnet_block(x, w, 1e-6, "ortho"),
    ),
    "FNetBlock": ({"hidden_dim": 7, "dropout": 0.1}, SEQUENCE, lambda x, w: reference.fnet_block(x, w, 1e-6)),
    "SpatialGatingUnit": ({"gate_stddev": 1e-6}, SEQUENCE, lambda x, w: reference.spatial_gating_unit(x, w, 1e-6)),
    "GMLPBlock": (
        {"hidden_dim": 8, "dropout": 0.1, "gate_stddev": 1e-6},
        SEQUENCE,
        lambda x, w: reference.gmlp_block(x, w, 1e-6),
    ),
    "GMLPBlock as in the example": (
        {"hidden_dim": 8, "skip": "normalized", "epsilon": 1e-2, "gate_epsilon": 1e-1},
        SEQUENCE,
        lambda x, w: reference.gmlp_block(x, w, 1e-2, "normalized", 1e-1),
    ),
}
EVERY = pytest.mark.parametrize("name", CONTRACT)

# For each argument of each layer: another value than the one above or the default, and what this must change and
# nothing else: the "output", what happens in "training" alone, what is remembered of it ("moving"), the "start" of the
# weights, the "shape" of the output, or the shapes of the weights of the named parts.
ATTENTION = {"query", "key", "value", "output"}
ARGUMENTS = {
    "ConvStem": {
        "dim": (5, {"embed", "norm", "shape"}),
        "patch_size": (1, {"embed", "shape"}),
        "activation": ("relu", {"output", "moving"}),
        "momentum": (0.5, {"moving"}),
        "epsilon": (0.1, {"output"}),
    },
    "ConvMixerBlock": {
        "dim": (5, ValueError),  # it must equal the input's
        "kernel_size": (5, {"depthwise"}),
        "activation": ("relu", {"output", "moving"}),
        "momentum": (0.5, {"moving"}),
        "epsilon": (0.1, {"output", "moving"}),  # one norm's output is what the next remembers
    },
    "PatchEmbedding": {"dim": (6, {"embed", "shape"}), "patch_size": (2, {"embed", "shape"})},
    "ConvTokenizer": {
        "channels": ((4, 6), {"conv_1", "shape"}),
        "kernel_size": (1, {"conv_0", "conv_1"}),
        "stride": (2, {"output"}),
        "pool_size": (2, {"output"}),
        "pool_stride": (3, {"shape"}),
        "padding": ("same", {"output"}),
    },
    "PositionEmbedding": {"initializer": ("ones", {"start"})},
    "ClassToken": {},
    "TokenPooling": {},
    "StochasticDepth": {"rate": (0.7, {"training"})},
    "MLP": {
        "hidden_dim": (8, {"expand", "project"}),
        "activation": ("relu", {"output"}),
        "dropout": (0.7, {"training"}),
        "output_dropout": (0.7, {"training"}),
        "activate_output": (True, {"output"}),
    },
    "MixerBlock": {
        "tokens_dim": (6, {"tokens/expand", "tokens/project"}),
        "channels_dim": (8, {"channels/expand", "channels/project"}),
        "activation": ("relu", {"output"}),
        "dropout": (0.7, {"training"}),
        "shared_norm": (True, {"channels_norm"}),
        "epsilon": (0.1, {"output"}),
    },
    "SelfAttention": {
        "heads": (3, ATTENTION),
        "key_dim": (2, ATTENTION),
        "dropout": (0.7, {"training"}),
        "qkv_bias": (False, ATTENTION - {"output"}),
    },
    "TransformerBlock": {
        "heads": (3, {f"attention/{part}" for part in ATTENTION}),
        "key_dim": (3, {f"attention/{part}" for part in ATTENTION}),
        "mlp_dim": (8, {"mlp/expand", "mlp/project"}),
        "activation": ("relu", {"output"}),
        "dropout": (0.7, {"training"}),
        "attention_dropout": (0.7, {"training"}),
        "stochastic_depth": (0.7, {"training"}),
        "qkv_bias": (False, {f"attention/{part}" for part in ATTENTION - {"output"}}),
        "activate_output": (True, {"output"}),
        "skip": ("normalized", {"output"}),
        "epsilon": (0.1, {"output"}),
    },
    "SequencePooling": {},
    "FourierMixing": {"norm": ("ortho", {"output"})},
    "FNetBlock": {
        "hidden_dim": (8, {"mlp/expand", "mlp/project"}),
        "norm": ("ortho", {"output"}),
        "activation": ("relu", {"output"}),
        "dropout": (0.7, {"training"}),
        "epsilon": (0.1, {"output"}),
    },
    "SpatialGatingUnit": {"gate_stddev": (0.2, {"start"}), "epsilon": (0.1, {"output"})},
    "GMLPBlock": {
        "hidden_dim": (12, {"expand", "spatial/norm", "project"}),
        "activation": ("relu", {"output"}),
        "dropout": (0.7, {"training"}),
        "skip": ("normalized", {"output"}),
        "gate_stddev": (0.2, {"start"}),
        "gate_epsilon": (0.1, {"output"}),
        "epsilon": (0.1, {"output"}),
    },
}
EVERY_ARGUMENT = pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name, arguments in ARGUMENTS.items() for argument in arguments]
)
RATES = ("rate", "dropout", "output_dropout", "attention_dropout", "stochastic_depth")


def class_of(case):
    return case.replace(",", "").split()[0]


def arguments_of(case):
    return set(inspect.signature(getattr(layers, class_of(case)).__init__).parameters) - {"self", "kwargs"}


def make(case, **changes):
    arguments, shape, definition = CONTRACT[case]
    layer = getattr(layers, class_of(case))(**arguments | changes)
    return layer, np.random.default_rng(1).normal(size=shape).astype("float32"), definition


def array(x):
    return keras.ops.convert_to_numpy(x)


def test_every_exported_layer_is_in_the_contract():
    exported = {n for n, c in inspect.getmembers(layers, inspect.isclass) if issubclass(c, keras.layers.Layer)}
    assert exported == {class_of(name) for name in CONTRACT} == set(ARGUMENTS)
    for name, changes in ARGUMENTS.items():
        assert set(changes) == arguments_of(name), name


@pytest.mark.jax
@EVERY
def test_equals_its_definition(name):
    layer, x, definition = make(name)
    layer.build(x.shape)
    weights = reference.randomize(layer)
    np.testing.assert_allclose(array(layer(x)), definition(x.astype("float64"), weights), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in CONTRACT if "activation" in arguments_of(name)])
def test_the_activation_is_the_one_asked_for(monkeypatch, name):
    monkeypatch.setattr(reference, "gelu", np.tanh)
    layer, x, definition = make(name, activation="tanh")
    layer.build(x.shape)
    weights = reference.randomize(layer)
    np.testing.assert_allclose(array(layer(x)), definition(x.astype("float64"), weights), atol=1e-5, rtol=1e-5)


@functools.cache
def observed(name, argument=None):
    """What a layer does, seeds and weights always alike: with the contract's arguments, or with one changed."""
    keras.utils.set_random_seed(0)
    layer, x, _ = make(name, **({argument: ARGUMENTS[name][argument][0]} if argument else {}))
    layer.build(x.shape)
    shapes = {(path, w.shape) for path, w in reference.named_weights(layer).items()}
    seen = {"weights": shapes, "shape": layer.compute_output_shape(x.shape), "start": list(map(array, layer.weights))}
    if argument and shapes ^ observed(name)["weights"]:
        return seen
    reference.randomize(layer)
    seen["output"], seen["training"] = array(layer(x)), array(layer(x, training=True))
    return seen | {"moving": list(map(array, layer.non_trainable_weights))}


@EVERY_ARGUMENT
def test_every_argument_changes_what_it_names_and_nothing_else(name, argument):
    changes = ARGUMENTS[name][argument][1]
    if changes is ValueError:
        with pytest.raises(ValueError, match=f"Received: {argument}="):
            observed(name, argument)
        return
    usual, changed = observed(name), observed(name, argument)
    differ = {path.rpartition("/")[0] for path, _ in usual["weights"] ^ changed["weights"]}
    if usual["shape"] != changed["shape"]:
        differ.add("shape")
    if not differ:
        differ = {what for what in ("start", "moving", "output", "training") if not same(usual[what], changed[what])}
        if "output" in differ:
            differ.remove("training")  # what changes at inference changes in training, too
    assert differ == changes


def same(one, other):
    return all(map(np.array_equal, one, other))


def refused(name, argument):
    """Values that an argument can't take: by its name a rate, or by its kind a size or a word."""
    if argument in RATES:
        return -0.1, 1.0, float("nan"), "0.1", None
    value = ARGUMENTS[name][argument][0]
    if type(value) is int:
        return 0, -1, 2.0, True, "3", None
    return ("none", None) if argument in ("padding", "skip") else ()


@EVERY_ARGUMENT
def test_every_argument_refuses_what_it_cannot_take(name, argument):
    for wrong in refused(name, argument):
        with pytest.raises(ValueError, match=f"`{argument}` must be .*Received: {argument}={wrong!r}"):
            make(name, **{argument: wrong})


@EVERY
def test_parts_have_the_layers_dtype_policy(name):
    layer, x, _ = make(name, dtype="mixed_bfloat16")
    layer.build(x.shape)
    assert {part.dtype_policy.name for part in layer._flatten_layers()} == {"mixed_bfloat16"}


@pytest.mark.parametrize("name", [name for name in CONTRACT if arguments_of(name) & set(RATES)])
def test_at_rates_of_zero_training_is_inference(name):
    layer, x, _ = make(name, **dict.fromkeys(arguments_of(name) & set(RATES), 0.0))
    layer.build(x.shape)
    reference.randomize(layer)
    np.testing.assert_array_equal(array(layer(x, training=True)), array(layer(x)))


def fill(layer, **values):
    """Give the weights whose paths end so, with _ for /, these values; all others become zero."""
    for path, w in zip(reference.named_weights(layer), layer.weights, strict=True):
        found = [value for end, value in values.items() if path.replace("/", "_").endswith(end)]
        w.assign(np.broadcast_to(found[0] if found else 0.0, w.shape))


def shares(values):
    """{value: how often it occurs}"""
    found, counts = np.unique(array(values).astype("float64").round(3), return_counts=True)
    return dict(zip(found.tolist(), counts / counts.sum(), strict=True))


# Layers, the MLP in each if it isn't the whole, and the rates after this one's activation and at its end.
@pytest.mark.parametrize(
    ("layer", "part", "inner", "end"),
    [
        (lambda: layers.MLP(6, "sigmoid", dropout=0.25), None, 0.25, 0),
        (lambda: layers.MLP(6, "sigmoid", output_dropout=0.5), None, 0, 0.5),
        (lambda: layers.MLP(6, "sigmoid", 0.25, 0.5), None, 0.25, 0.5),
        (lambda: layers.MLP(6, "sigmoid", 0.25, 0.5, activate_output=True), None, 0.25, 0.5),
        (lambda: layers.TransformerBlock(2, 3, 6, "sigmoid", dropout=0.25), None, 0.25, 0.25),
        (lambda: layers.MixerBlock(6, 6, "sigmoid", dropout=0.5), "tokens", 0, 0.5),
        (lambda: layers.MixerBlock(6, 6, "sigmoid", dropout=0.5), "channels", 0, 0.5),
        (lambda: layers.FNetBlock(6, "sigmoid", dropout=0.25), "mlp", 0.25, 0),
        (lambda: layers.GMLPBlock(12, "sigmoid", dropout=0.25), None, 0.25, 0),
    ],
)
def test_dropout_acts_after_the_activation_and_at_the_end(layer, part, inner, end):
    keras.utils.set_random_seed(0)
    layer, x = layer(), np.zeros((300, 6, 6), "float32")
    layer.build(x.shape)
    # The activation gives 1/2, of which the identity and a bias make 3/2; gates let it pass.
    fill(layer, project_kernel=np.eye(6), project_bias=1, gate_bias=1)
    values = array((getattr(layer, part) if part else layer)(x, training=True))
    activate = (lambda v: 1 / (1 + np.exp(-v))) if getattr(layer, "activate_output", False) else (lambda v: v)
    expected = {
        0: end,
        activate(1) / (1 - end): inner * (1 - end),
        activate(1 + 0.5 / (1 - inner)) / (1 - end): (1 - inner) * (1 - end),
    }
    expected = {float(np.round(value, 3)): share for value, share in expected.items() if share}
    assert shares(values) == pytest.approx(expected, abs=0.03)
    for axis in range(3):  # each number has a draw of its own
        assert (values != values.take([0], axis)).any()


@pytest.mark.parametrize(
    "layer", [lambda: layers.SelfAttention(2, 3, 0.5), lambda: layers.TransformerBlock(2, 3, 4, attention_dropout=0.5)]
)
def test_attention_dropout_acts_on_the_weights_of_attention(layer):
    keras.utils.set_random_seed(0)
    layer, x = layer(), np.zeros((200, 4, 6), "float32")
    layer.build(x.shape)
    fill(layer, value_bias=1, output_kernel=np.eye(6))
    np.testing.assert_allclose(array(layer(x)), 1, atol=1e-6)
    sums = array(layer(x, training=True)).reshape(200, 4, 2, 3)  # of what each head takes from four tokens alike
    assert (sums == sums[..., :1]).all() and (sums[:, :, 0] != sums[:, :, 1]).any() and (sums != sums[:, :1]).any()
    expected = {kept / 4 / (1 - 0.5): math.comb(4, kept) / 2**4 for kept in range(5)}
    assert shares(sums) == pytest.approx(expected, abs=0.04)


def test_stochastic_depth_drops_both_branches_of_whole_images():
    keras.utils.set_random_seed(0)
    block, x = layers.TransformerBlock(2, 3, 4, stochastic_depth=0.25), np.zeros((2000, 2, 6), "float32")
    block.build(x.shape)
    fill(block, attention_output_bias=3, mlp_project_bias=30)
    values = array(block(x, training=True))
    assert (values == values[:, :1, :1]).all()
    expected = {0.0: 1 / 16, 4.0: 3 / 16, 40.0: 3 / 16, 44.0: 9 / 16}
    assert shares(values) == pytest.approx(expected, abs=0.04)


def test_weights_start_as_asked():
    gate, table = layers.SpatialGatingUnit(gate_stddev=0.3), layers.PositionEmbedding("ones")
    patches, token = layers.PatchEmbedding(64, 4), layers.ClassToken()
    gate.build((None, 40, 4)), table.build((None, 5, 4)), patches.build((None, 8, 8, 3)), token.build((None, 5, 4))
    kernel, bias = map(array, (gate.gate.kernel, gate.gate.bias))
    assert kernel.std() == pytest.approx(0.3, rel=0.1) and np.abs(kernel).max() > 0.75 and (bias == 1).all()
    assert (array(table.table) == 1).all() and (array(token.token) == 0).all()
    # Glorot uniform of the linear layer on flat patches.
    assert np.abs(array(patches.embed.kernel)).max() == pytest.approx(math.sqrt(6 / (4 * 4 * 3 + 64)), rel=0.01)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("after", [2, 3, 4, 6])
def test_positions_are_interpolated_between_the_middles_of_patches(first, after):
    layer = layers.PositionEmbedding()
    layer.build((None, first + 16, 3))
    reference.randomize(layer)
    table = array(layer.table)
    grid = np.pad(table[first:].reshape(4, 4, 3), ((1, 1), (1, 1), (0, 0)), "edge")
    middles = np.arange(-1, 5) + 0.5, np.arange(-1, 5) + 0.5
    places = (np.indices((after, after)).reshape(2, -1).T + 0.5) * 4 / after
    expected = interpolate.RegularGridInterpolator(middles, grid)(places)
    for count in (1, 5):
        moved = array(layer(np.zeros((count, first + after**2, 3))))
        np.testing.assert_allclose(moved, np.broadcast_to([*table[:first], *expected], moved.shape), atol=1e-6)


def test_positions_of_what_is_no_square_are_not_guessed():
    for there, here in ((16, 12), (16, 17), (12, 9), (17, 16)):
        layer = layers.PositionEmbedding()
        layer.build((None, there, 3))
        with pytest.raises(ValueError, match=f"Received: {here} tokens for a table of {there}"):
            layer(np.zeros((1, here, 3)))


@EVERY
def test_config_round_trip(name):
    layer, x, _ = make(name, name="given")
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    assert again.get_config() == layer.get_config()
    assert arguments_of(name) <= set(layer.get_config())
    layer(x), again(x)
    assert [w.shape for w in again.weights] == [w.shape for w in layer.weights]


@EVERY
def test_symbolic_and_eager_agree(name):
    layer, x, _ = make(name)
    symbolic = layer(keras.Input(x.shape[1:]))
    assert symbolic.shape == (None, *layer(x).shape[1:]) == layer.compute_output_shape((None, *x.shape[1:]))
    assert keras.backend.standardize_dtype(layer(x).dtype) == "float32"


@pytest.mark.jax
@EVERY
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_trains_with_finite_gradients(name, dtype):
    keras.utils.set_random_seed(0)  # stochastic depth may drop both images
    layer, x, _ = make(name, dtype=dtype)
    layer.build(x.shape)
    reference.randomize(layer)  # at a gate near zero nothing behind it would move
    inputs = keras.Input(x.shape[1:])
    model = keras.Model(inputs, keras.layers.Dense(2, dtype="float32")(keras.layers.Flatten()(layer(inputs))))
    before = [array(w) for w in layer.trainable_weights]
    # Tracing is what takes TensorFlow long, running op by op JAX.
    model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=keras.backend.backend() == "tensorflow")
    assert np.isfinite(model.train_on_batch(x, np.ones((len(x), 2))))
    for w, old in zip(layer.trainable_weights, before, strict=True):
        assert np.isfinite(array(w)).all(), w.path
        assert w.dtype == "float32"
        # A key's bias moves all scores of a place alike, and a pooling's moves all: the softmax undoes it.
        assert (array(w) != old).any() or w.path.endswith(("key/bias", "score/bias")), f"{w.path} has no gradient"


@EVERY
def test_saves_and_loads(name, tmp_path):
    layer, x, _ = make(name)
    inputs = keras.Input(x.shape[1:])
    model = keras.Model(inputs, layer(inputs))
    reference.randomize(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(array(loaded(x)), array(model(x)))


# By hand: for each product of a matrix, its tokens times its inputs times its outputs.
MULTIPLY_ADDS = {
    "ConvStem": (0, 3 * 2 * (2 * 2 * 3) * 6),
    "ConvMixerBlock": (5 * 4 * 3 * 3 * 4, 5 * 4 * 4 * 4),
    "PatchEmbedding": (0, 2 * 3 * (4 * 4 * 3) * 5),
    "ConvTokenizer": (6 * 6 * (3 * 3 * 3) * 4 + 2 * 2 * (3 * 3 * 4) * 5, 0),
    "ConvTokenizer, same": (8 * 8 * (3 * 3 * 3) * 4 + 4 * 4 * (3 * 3 * 4) * 5, 0),
    "ConvTokenizer, symmetric, with a stride": (8 * 8 * (7 * 7 * 3) * 4, 0),
    "PositionEmbedding": (0, 0),
    "ClassToken": (0, 0),
    "TokenPooling": (0, 0),
    "StochasticDepth": (0, 0),
    "MLP": (0, 6 * (4 * 7 + 7 * 4)),
    "MixerBlock": (4 * (6 * 5 + 5 * 6), 6 * (4 * 7 + 7 * 4)),
    "SelfAttention": (6 * 4 * (4 * 6) + 2 * (3 * 6 * 6) * 2, 0),
    "TransformerBlock": (6 * 4 * (4 * 8) + 2 * (4 * 6 * 6) * 2, 6 * (4 * 7 + 7 * 4)),
    "SequencePooling": (6 * 4 + 6 * 4, 0),
    "FourierMixing": (round(5 * 24 * np.log2(24) / 2), 0),
    "FNetBlock": (round(5 * 24 * np.log2(24) / 2), 6 * (4 * 7 + 7 * 4)),
    "SpatialGatingUnit": (6 * 6 * 2, 0),
    "GMLPBlock": (6 * 6 * 4, 6 * (4 * 8 + 4 * 4)),
}


def test_the_multiply_adds_of_every_layer_are_counted_by_hand():
    kinds = {name for name in layers.__all__ if inspect.isclass(getattr(layers, name))}
    assert {name.partition(",")[0].partition(" ")[0] for name in MULTIPLY_ADDS} == kinds


@pytest.mark.parametrize("name", MULTIPLY_ADDS)
def test_counts_its_multiply_adds(name):
    space, channels = MULTIPLY_ADDS[name]
    layer, x, _ = make(name)
    layer(x)
    assert layer.multiply_adds(x.shape) == {"space": space, "channels": channels}


def gradients(function, *xs):
    """What a random weighing of the function's values changes by with each argument."""
    values = array(function(*xs))
    cotangent = np.random.default_rng(5).normal(size=values.shape).astype("float32")
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        variables = [tf.Variable(x) for x in xs]
        with tf.GradientTape() as tape:
            weighed = tf.reduce_sum(function(*variables) * cotangent)
        return [values, *map(array, tape.gradient(weighed, variables))]
    import jax

    return [values, *map(array, jax.vjp(function, *xs)[1](cotangent))]


def with_and_without_kernels(monkeypatch, function, *xs):
    """Values and gradients of the fast form, and of Keras' own."""
    assert kernels._on_cpu()
    fast = gradients(function, *xs)
    monkeypatch.setattr(kernels, "_on_cpu", lambda: False)
    return zip(fast, gradients(function, *xs), strict=True)


@pytest.mark.jax
@pytest.mark.parametrize("size", range(1, 6))
def test_depthwise_convolution_has_keras_values_and_gradients(monkeypatch, size):
    rng = np.random.default_rng(size)
    x, kernel = (rng.normal(size=s).astype("float32") for s in ((6, 7, 8, 3), (size, size, 3, 1)))
    for fast, plain in with_and_without_kernels(monkeypatch, kernels.depthwise_conv, x, kernel):
        np.testing.assert_allclose(fast, plain, atol=5e-5)


@pytest.mark.jax
def test_gelu_has_keras_values_and_gradient(monkeypatch):
    x = np.concatenate([np.linspace(-6, 6, 101), [-1e-3, 9e-4, 1e-3, 1e-30]]).astype("float32")
    for fast, plain in with_and_without_kernels(monkeypatch, kernels.gelu, x):
        np.testing.assert_allclose(fast, plain, atol=1e-6)
    np.testing.assert_allclose(array(kernels.gelu(x)), reference.gelu(x.astype("float64")), atol=1e-6)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="elsewhere the backend finds the gradients")
def test_gelu_has_a_second_derivative_at_zero():
    import tensorflow as tf

    x = tf.Variable([0.0, 1e-20, -0.5])
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            y = kernels.gelu(x)
        first = inner.gradient(y, x)
    density = np.exp([0, 0, -0.125]) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(outer.gradient(first, x), density * (2 - np.array([0, 0, 0.25])), atol=1e-5)


@pytest.mark.jax
@pytest.mark.parametrize("shape", [(2, 4, 6), (3, 5, 7), (2, 1, 2), (1, 2, 1)])
def test_fourier_has_keras_values_and_gradient(monkeypatch, shape):
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    for fast, plain in with_and_without_kernels(monkeypatch, kernels.fourier, x):
        np.testing.assert_allclose(fast, plain, atol=1e-5)


@pytest.mark.jax
@pytest.mark.parametrize(
    ("kind", "arguments", "tokens"),
    [
        *((kernels.Dense, {"units": 5}, tokens) for tokens in [(), (4,), (2, 3)]),
        *((kernels.LayerNormalization, {}, tokens) for tokens in [(), (4,), (2, 3)]),
        (kernels.Dense, {"units": 5, "use_bias": False}, (4,)),
        (kernels.TokenDense, {"units": 5}, (4,)),
        (kernels.TokenDense, {"units": 5, "use_bias": False}, (4,)),
    ],
)
def test_dense_and_layer_norm_have_keras_values_and_gradients(monkeypatch, kind, arguments, tokens):
    rng, layer = np.random.default_rng(0), kind(**arguments)
    layer.build((None, *tokens, 6))
    weights = [rng.normal(size=w.shape).astype("float32") for w in layer.weights]
    x = rng.normal(1, 2, (2, *tokens, 6)).astype("float32")

    def call(x, *weights):
        trainable = layer.trainable_variables
        with keras.StatelessScope(zip(trainable, map(keras.ops.convert_to_tensor, weights), strict=True)):
            return layer(x)

    for fast, plain in with_and_without_kernels(monkeypatch, call, x, *weights):
        np.testing.assert_allclose(fast, plain, atol=2e-5)


@pytest.mark.jax
@EVERY
def test_a_layer_gives_the_same_in_plain_operations(name):
    layer, x, _ = make(name)
    layer.build(x.shape)
    reference.randomize(layer)
    fast = array(layer(x))
    with kernels.plain():
        plain = array(layer(x))
        assert not {"PartitionedCall", "StatefulPartitionedCall", "Erfc", "RFFT2D", "FFT2D"} & traced(layer, x)
    np.testing.assert_allclose(plain, fast, atol=1e-5 * max(1, np.abs(fast).max()))
    np.testing.assert_array_equal(array(layer(x)), fast)


def traced(layer, x):
    """The operations of the graph that TensorFlow would export; of JAX none."""
    if keras.backend.backend() != "tensorflow":
        return set()
    import tensorflow as tf

    return {op.type for op in tf.function(layer, autograph=False).get_concrete_function(x).graph.get_operations()}


@pytest.mark.jax
@pytest.mark.parametrize("shape", [(1, 1), (4, 6), (5, 7), (64, 256)])
def test_the_fourier_transform_in_plain_operations_is_numpys(shape):
    x = np.random.default_rng(0).normal(size=(2, *shape))
    with kernels.plain():
        mixed = array(kernels.fourier(keras.ops.convert_to_tensor(x, "float32")))
    np.testing.assert_allclose(mixed, np.fft.fft2(x).real, atol=4e-6 * math.prod(shape) ** 0.5)


@pytest.mark.parametrize(
    ("kind", "arguments", "shape"),
    [
        (kernels.Dense, {"units": 6}, (3, 4, 5)),
        (kernels.TokenDense, {"units": 6}, (3, 4, 5)),
        (kernels.LayerNormalization, {}, (3, 4, 5)),
        (kernels.DepthwiseConv2D, {"kernel_size": 3, "padding": "same"}, (2, 5, 6, 3)),
        (kernels.DepthwiseConv2D, {"kernel_size": 4, "padding": "same"}, (2, 5, 6, 3)),
        (kernels.BatchNormalization, {}, (2, 5, 6, 3)),
        (keras.layers.Activation, {"activation": kernels.gelu}, (3, 40)),
    ],
)
def test_in_bfloat16_a_kernel_errs_by_rounding_alone(kind, arguments, shape):
    """Values and gradients, for the input and for the weights, against the same in float32."""
    exact, rounded = kind(**arguments), kind(**arguments, dtype="mixed_bfloat16")
    exact.build(shape), rounded.build(shape)
    drawn = [np.random.default_rng(1).normal(size=w.shape) for w in exact.trainable_variables]
    x, *weights = (array(keras.ops.cast(a, "bfloat16")).astype("float32") for a in (normal(shape), *drawn))
    found = []
    for layer in (exact, rounded):

        def call(x, *weights, layer=layer):
            trainable, given = layer.trainable_variables, map(keras.ops.convert_to_tensor, weights)
            with keras.StatelessScope(zip(trainable, given, strict=True)):
                y = layer(x, training=True) if kind is kernels.BatchNormalization else layer(x)
                return keras.ops.cast(y, "float32")

        found.append(gradients(call, x, *weights))
    for ours, wanted in zip(*reversed(found), strict=True):
        np.testing.assert_allclose(ours, wanted, atol=0.02 * np.abs(wanted).max())
        assert (ours != wanted).any()


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="XLA sums bfloat16 in float32")
# Of each class the first.
@pytest.mark.parametrize("name", {re.match(r"\w+", name)[0]: name for name in reversed(CONTRACT)}.values())
def test_in_bfloat16_the_gradients_of_many_images_add_up(name):
    """In a compiled step, as training has it: a sum that's rounded at each of its terms stops growing."""
    import tensorflow as tf

    found, (_, x, _) = {}, make(name)
    x = np.random.default_rng(0).normal(size=(1024, *x.shape[1:])).astype("float32")
    for dtype in ("float32", "mixed_bfloat16"):
        layer, *_ = make(name, dtype=dtype)
        layer.build(x.shape)
        reference.randomize(layer)

        @tf.function
        def gradient(x, weighing, layer=layer):
            with tf.GradientTape() as tape:
                total = tf.reduce_sum(tf.cast(layer(x), "float32") * weighing)
            return tape.gradient(total, [weight.value for weight in layer.trainable_weights])

        weighing = np.random.default_rng(5).normal(1, size=layer(x).shape).astype("float32")
        found[dtype] = map(array, gradient(x, weighing))
    for weight, exact, rounded in zip(layer.trainable_weights, *found.values(), strict=True):
        if not weight.path.endswith(("key/bias", "score/bias")):  # without a gradient
            assert np.abs(rounded - exact).max() < 0.03 * np.abs(exact).max(), weight.path


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="it's TensorFlow's form")
def test_bits_become_bfloat16_and_float32_as_tensorflows_casts_make_them():
    import tensorflow as tf

    from patchlib.layers.kernels import tensorflow as forms

    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 0.0, -0.0, np.inf, -np.inf, np.nan, 3e38], "float32")
    x = tf.constant(np.concatenate([ties, normal(1000).astype("float32")]))
    rounded = forms._narrow(x, tf.bfloat16)
    np.testing.assert_array_equal(array(forms._wide(rounded)), array(tf.cast(tf.cast(x, tf.bfloat16), tf.float32)))
    np.testing.assert_array_equal(array(tf.cast(rounded, tf.float32)), array(forms._wide(rounded)))


def normal(shape):
    return np.random.default_rng(0).normal(size=shape)


def test_layer_norm_takes_halves():
    x = np.arange(8).reshape(2, 4)
    given, plain = (kernels.LayerNormalization()(keras.ops.cast(x, dtype)) for dtype in ("float16", "float32"))
    np.testing.assert_allclose(array(given), array(plain), atol=1e-3)


@pytest.mark.parametrize("layer", [layers.MLP(8), layers.FNetBlock(8)])
def test_some_layers_take_any_number_of_tokens(layer):
    model = keras.Sequential([keras.Input((None, 4)), layer])
    assert model.output_shape == (None, None, 4)
    for tokens in (3, 5):
        assert model(np.ones((2, tokens, 4), "float32")).shape == (2, tokens, 4)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="elsewhere it's Keras' own")
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_batch_normalization_trains_and_remembers_as_keras_does(monkeypatch, dtype):
    x = np.random.default_rng(0).normal(3, 2, (4, 5, 6, 3)).astype("float32")
    layer = kernels.BatchNormalization(momentum=0.7, dtype=dtype)
    layer.build(x.shape)
    remembered = []

    def train(x):
        reference.randomize(layer)
        y = layer(keras.ops.cast(x, layer.compute_dtype), training=True)
        remembered.append([array(layer.moving_mean), array(layer.moving_variance)])
        return keras.ops.cast(y, "float32")

    tolerance = 1e-4 if dtype == "float32" else 0.05
    for fast, plain in with_and_without_kernels(monkeypatch, train, x):
        np.testing.assert_allclose(fast, plain, atol=tolerance)
    for fast in remembered:
        np.testing.assert_allclose(fast, remembered[-1], rtol=1e-5)
    layer.trainable = False
    frozen = array(layer(x, training=True))
    np.testing.assert_allclose(frozen, array(layer(x)), atol=tolerance)


def test_activations_and_initializers_come_back_from_the_configuration():
    mlp = layers.MLP(4, activation=layers.gelu_tanh)
    again = layers.MLP.from_config(mlp.get_config())
    x = np.linspace(-3, 3, 5, dtype="float32")
    np.testing.assert_array_equal(array(again.activation(x)), array(mlp.activation(x)))
    assert 0 < np.abs(array(mlp.activation(x)) - array(keras.activations.gelu(x))).max() < 1e-3
    position = layers.PositionEmbedding(keras.initializers.RandomNormal(stddev=0.2))
    assert layers.PositionEmbedding.from_config(position.get_config()).initializer.stddev == 0.2


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean():
    keras.utils.set_random_seed(0)
    layer = layers.StochasticDepth(0.25)
    x = np.ones((400, 3, 2), "float32")
    dropped = array(layer(x, training=True))
    assert set(np.unique(dropped.round(4))) == {0, np.float32(1.3333)}
    assert (dropped == dropped[:, :1, :1]).all() and 0.18 < (dropped[:, 0, 0] == 0).mean() < 0.32
    assert (array(layer(x)) == x).all()


def test_a_gate_near_zero_starts_as_the_identity():
    x = np.random.default_rng(0).normal(size=SEQUENCE).astype("float32")
    gate = layers.SpatialGatingUnit(gate_stddev=1e-6)
    np.testing.assert_allclose(array(gate(x)), x[..., :2], atol=1e-4)
    assert np.abs(array(layers.SpatialGatingUnit()(x)) - x[..., :2]).max() > 0.1


def test_the_examples_padding_leaves_a_rim_of_zeros_and_same_does_not():
    images = np.random.default_rng(0).random(IMAGE).astype("float32")
    rim, same = (
        layers.ConvTokenizer((4,), pool_size=1, pool_stride=1, padding=p) for p in ("after_activation", "same")
    )
    maps = [array(layer(images)).reshape(2, 8, 8, 4) for layer in (rim, same)]
    assert (maps[0][:, 0] == 0).all() and (maps[0][:, :, -1] == 0).all() and (maps[1][:, 0] != 0).any()


def test_attention_and_pooling_weights_are_shares():
    x = np.random.default_rng(0).normal(size=SEQUENCE).astype("float32")
    block, pooling = layers.TransformerBlock(2, 4, 8), layers.SequencePooling()
    block(x), pooling(x)
    assert block.attention_weights(x).shape == (2, 2, 6, 6) and pooling.weights_for(x).shape == (2, 6)
    for shares in (block.attention_weights(x), pooling.weights_for(x)):
        np.testing.assert_allclose(array(shares).sum(axis=-1), 1, atol=1e-5)


def test_what_is_refused():
    with pytest.raises(ValueError, match="`patch_size` must divide.*patch_size=4.*10 x 8"):
        layers.ConvStem(8, 4)(np.zeros((1, 10, 8, 3)))
    with pytest.raises(ValueError, match="`dim` must equal.*dim=8.*3"):
        layers.ConvMixerBlock(8, 5)(np.zeros((1, 4, 4, 3)))
    with pytest.raises(ValueError, match="'input', 'normalized'. Received: skip='none'"):
        layers.GMLPBlock(8, skip="none")
    with pytest.raises(ValueError, match="must be even"):
        layers.SpatialGatingUnit()(np.zeros((1, 4, 3)))
