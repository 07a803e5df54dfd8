"""The baselines beside the published examples: the same function of the weights, and the same start."""

import keras
import numpy as np
import originals
import pytest
from bench import EXAMPLES
from scipy import stats

from patchlib import layers, models


def weights(model):
    return [weight for weight in model.weights if "seed" not in weight.name]


def build_both(name, seed):
    """Our baseline and the original; both have their weights in the order of the computation."""
    keras.utils.set_random_seed(seed)
    original = getattr(originals, name)(10)
    pixels = {} if name in ("convmixer", "cct") else {"mean": 127.0, "std": 64.0}
    return getattr(models, name)((32, 32, 3), 10, **pixels), original


@pytest.mark.parametrize("name", EXAMPLES)
def test_with_its_weights_the_baseline_is_the_original(name):
    ours, original = build_both(name, 0)
    rng = np.random.default_rng(0)
    for own, other in zip(weights(ours), weights(original), strict=True):
        value = np.array(other) + 0.02 * rng.normal(size=other.shape)  # biases and gains too say where they belong
        other.assign(value)
        own.assign(value.reshape(own.shape))  # heads stand in one matrix, pointwise convolutions are dense layers
    images = rng.integers(0, 256, (4, 32, 32, 3))
    logits, expected = (np.array(model(images, training=False)) for model in (ours, original))
    if name == "convmixer":
        logits = np.array(keras.ops.softmax(logits))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_baseline_starts_as_the_original_does(name):
    pairs = [build_both(name, seed) for seed in range(2)]
    ours, theirs = ([weights(model) for model in draws] for draws in zip(*pairs, strict=True))
    for own, other in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True):
        what = f"{own[0].path} {own[0].shape}, which is {other[0].path} {other[0].shape}"
        own, other = (np.concatenate([np.ravel(draw) for draw in draws]) for draws in (own, other))
        if other.std() == 0:
            np.testing.assert_array_equal(own, other, what)
            continue
        # All are bounded, so that a few hundred numbers tell the bounds to some per cent.
        for measure in (np.std, np.min, np.max):
            assert measure(own) == pytest.approx(measure(other), rel=0.15 if measure is np.std else 0.05), what
        assert stats.ks_2samp(own, other).pvalue > 1e-4, what


def test_attention_starts_as_keras_2_drew_it_not_as_the_installed_keras_does():
    x = np.zeros((1, 64, 128), "float32")
    ours, installed = layers.SelfAttention(2, 128), keras.layers.MultiHeadAttention(2, 128)
    ours(x), installed(x, x)
    largest = {layer: [np.abs(w).max() for w in map(np.array, layer.weights) if w.any()] for layer in (ours, installed)}
    # Fans of a convolution, by the shapes (dim, heads, key_dim) and (heads, key_dim, dim); those of a matrix.
    fans = [128 * (2 + 128)] * 3 + [2 * (128 + 128)]
    np.testing.assert_allclose(largest[ours], np.sqrt(6 / np.array(fans)), rtol=1e-2)
    np.testing.assert_allclose(largest[installed], np.sqrt(6 / (128 + 2 * 128)), rtol=1e-2)
