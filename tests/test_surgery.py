import contextlib
import tracemalloc

import keras
import numpy as np
import pytest

from patchlib import models, reference, surgery
from patchlib.parameters import ARCHITECTURES


@pytest.mark.jax
@pytest.mark.parametrize("side", [16, 24])
@pytest.mark.parametrize("name", [name for name, parameters in ARCHITECTURES.items() if parameters.any_size])
def test_the_same_weights_serve_images_of_another_size(name, side):
    build, small = getattr(models, name), {"depth": 1, "dim": 8}
    small |= {"resize": 0, "patch_size": 4} if name == "fnet" else {}
    model = build(**small)
    reference.randomize(model)
    other, native = surgery.at_size(model, side), build((side, side, 3), model.output_shape[-1], **small)
    images = np.random.default_rng(0).integers(0, 256, (2, side, side, 3))
    position = {layer.name: layer for layer in other.layers}.get("position")
    for weight, there in zip(native.weights, model.weights, strict=True):
        assert weight.path == there.path
        value = position._rows(weight.shape[0]) if weight.shape != there.shape else there
        weight.assign(keras.ops.convert_to_numpy(value))
    np.testing.assert_allclose(other(images), native(images), atol=1e-5)
    assert {id(w) for w in other.weights} == {id(w) for w in model.weights}


def test_weights_that_belong_to_positions_serve_no_other_size():
    for build in (models.mlp_mixer, models.gmlp):
        with pytest.raises(ValueError, match="takes no images of 16 pixels a side: its weights belong"):
            surgery.at_size(build(resize=0, patch_size=4, depth=1), 16)
        assert surgery.at_size(build(depth=1), 16)(np.zeros((1, 16, 16, 3))).shape == (1, 100)  # which it enlarges


@pytest.mark.parametrize("build", [models.convmixer, models.cct, models.mlp_mixer])  # a network of each stem
def test_whitening_lets_every_direction_of_a_patch_count_alike(build):
    small = {"resize": 0, "patch_size": 4} if build is models.mlp_mixer else {}
    model = build(dim=400, depth=1, **small, **({"conv_dim": 400} if build is models.cct else {}))
    rng = np.random.default_rng(1)
    # Smooth images, as real ones are: most of the variance lies in few directions.
    images = rng.integers(0, 256, (40, 4, 4, 3)).repeat(8, 1).repeat(8, 2) // 2 + rng.integers(0, 30, (40, 32, 32, 3))
    first, stem = model.get_layer("stem").first, model.get_layer("stem")
    seen = keras.ops.convert_to_numpy(keras.Model(model.input, stem.input)(images))
    side, stride = first.kernel.shape[0], first.strides[0]
    places = [(i, j) for i in range(0, 33 - side, stride) for j in range(0, 33 - side, stride)]
    patches = np.concatenate([seen[:, i : i + side, j : j + side].reshape(40, -1) for i, j in places])
    covariance = np.cov(patches, rowvar=False)

    def shares(kernel):
        """How much of the outputs' variance comes from each principal component."""
        variances, components = np.linalg.eigh(covariance)
        return ((components.T @ kernel) ** 2).sum(axis=1) * variances

    for epsilon in (None, 1e-9, 1e9):  # as drawn; whitened; and one so large that nothing is divided
        if epsilon:
            surgery.whiten(model, images, seed=2, epsilon=epsilon)
        kernel = keras.ops.convert_to_numpy(first.kernel).reshape(side * side * 3, -1)
        assert epsilon is None or (patches @ kernel).std() == pytest.approx(1, rel=0.02)
        spread = shares(kernel).max() / shares(kernel).min()
        assert spread < 2 if epsilon == 1e-9 else spread > 10
    for seed, same in ((2, True), (3, False)):
        before = keras.ops.convert_to_numpy(first.kernel)
        surgery.whiten(model, images, seed=seed, epsilon=1e9)
        assert np.allclose(keras.ops.convert_to_numpy(first.kernel), before) == same


def test_whitening_takes_little_memory_for_large_images():
    images = np.random.default_rng(0).integers(0, 256, (300, 96, 96, 3), dtype="uint8")
    model = models.cct((96, 96, 3), dim=8, depth=1, conv_dim=8)
    tracemalloc.start()
    surgery.whiten(model, images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6  # of every window there would be 286 million bytes


def test_what_is_silenced_is_put_back_and_must_exist():
    model = models.vit(dim=8, depth=1)
    before = model.get_weights()
    with pytest.raises(RuntimeError), surgery.without(model, "block_0/mlp/"):
        assert not np.any(model.get_layer("block_0").mlp.expand.kernel)
        raise RuntimeError
    for weight, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, kept)
    with (
        pytest.raises(ValueError, match="no weight's path starts with 'block_9/'"),
        surgery.without(model, "block_9/"),
    ):
        pass


def test_where_small_differences_count_the_processor_computes(monkeypatch):
    """There float32 products are exact; the weights are the model's, which is left as it is."""
    model, here, seen = models.vit((8, 8, 3), 3, dim=8, depth=1, dtype="mixed_bfloat16"), ["cuda:0"], []

    @contextlib.contextmanager
    def device(name):
        here.append(name)
        yield
        here.pop()

    monkeypatch.setattr(keras, "device", device)
    with surgery.exactly(model) as exact:
        seen.append(here[-1])
        assert {layer.compute_dtype for layer in exact.layers} == {"float32"}
        with surgery.exactly(exact) as again:
            assert again is exact
    assert (seen, here) == (["cpu"], ["cuda:0"])
    assert model.get_layer("block_0").compute_dtype == "bfloat16"
    for weight, same in zip(exact.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)
