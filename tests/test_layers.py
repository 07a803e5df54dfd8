"""The layer contract, for every exported layer, and the layers against their NumPy definitions."""

import inspect

import keras
import numpy as np
import pytest

from patchlib import layers, reference

# For each layer: its arguments, an input, and its definition in NumPy.
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
}
EVERY = pytest.mark.parametrize("name", CONTRACT)


def make(case, **changes):
    arguments, shape, definition = CONTRACT[case]
    layer = getattr(layers, case.split()[0])(**arguments | changes)
    return layer, np.random.default_rng(1).normal(size=shape).astype("float32"), definition


def array(x):
    return keras.ops.convert_to_numpy(x)


def test_every_exported_layer_is_in_the_contract():
    exported = {n for n, c in inspect.getmembers(layers, inspect.isclass) if issubclass(c, keras.layers.Layer)}
    assert exported == {name.split()[0] for name in CONTRACT}


@EVERY
def test_equals_its_definition(name):
    layer, x, definition = make(name)
    layer.build(x.shape)
    weights = reference.randomize(layer)
    np.testing.assert_allclose(array(layer(x)), definition(x.astype("float64"), weights), atol=1e-5, rtol=1e-5)


@EVERY
def test_config_round_trip(name):
    layer, x, _ = make(name, name="given")
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    assert again.get_config() == layer.get_config()
    arguments = set(inspect.signature(type(layer).__init__).parameters) - {"self", "kwargs"}
    assert arguments <= set(layer.get_config())
    layer(x), again(x)
    assert [w.shape for w in again.weights] == [w.shape for w in layer.weights]


@EVERY
def test_symbolic_and_eager_agree(name):
    layer, x, _ = make(name)
    symbolic = layer(keras.Input(x.shape[1:]))
    assert symbolic.shape == (None, *layer(x).shape[1:]) == layer.compute_output_shape((None, *x.shape[1:]))
    assert keras.backend.standardize_dtype(layer(x).dtype) == "float32"


@EVERY
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_trains_with_finite_gradients_saves_and_loads(name, dtype, tmp_path):
    layer, x, _ = make(name, dtype=dtype)
    inputs = keras.Input(x.shape[1:])
    model = keras.Model(inputs, keras.layers.Dense(2, dtype="float32")(keras.layers.Flatten()(layer(inputs))))
    before = [array(w) for w in layer.trainable_weights]
    model.compile(
        keras.optimizers.SGD(0.1), "mse", jit_compile=False if keras.backend.backend() == "tensorflow" else "auto"
    )
    assert np.isfinite(model.train_on_batch(x, np.ones((len(x), 2))))
    for w, old in zip(layer.trainable_weights, before, strict=True):
        assert np.isfinite(array(w)).all(), w.path
        assert w.dtype == "float32"
        assert (array(w) != old).any(), f"{w.path} has no gradient"
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(array(loaded(x)), array(model(x)))


def test_what_is_refused():
    with pytest.raises(ValueError, match="`patch_size` must divide.*patch_size=4.*10 x 8"):
        layers.ConvStem(8, 4)(np.zeros((1, 10, 8, 3)))
    with pytest.raises(ValueError, match="`dim` must equal.*dim=8.*3"):
        layers.ConvMixerBlock(8, 5)(np.zeros((1, 4, 4, 3)))
    for wrong in (0, -1, 2.0, True, "3"):
        with pytest.raises(ValueError, match=f"Received: kernel_size={wrong!r}"):
            layers.ConvMixerBlock(8, wrong)
