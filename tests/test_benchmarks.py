from pathlib import Path

import keras
import numpy as np
import pytest

from patchlib import models

ROOT = Path(__file__).parents[1]
ARCHITECTURES = ["convmixer", "cct", "mlp_mixer", "fnet", "gmlp"]


@pytest.fixture
def originals(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import originals

    return originals


def weights(model):
    return [weight for weight in model.weights if "seed" not in weight.name]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_with_its_weights_the_baseline_is_the_original(name, originals):
    keras.utils.set_random_seed(0)
    original = getattr(originals, name)(10)
    pixels = {} if name in ("convmixer", "cct") else {"mean": 127.0, "std": 64.0}
    ours = getattr(models, name)((32, 32, 3), 10, **pixels)
    rng = np.random.default_rng(0)
    for own, other in zip(weights(ours), weights(original), strict=True):  # both are in the order of the computation
        value = np.array(other) + 0.02 * rng.normal(size=other.shape)  # biases and gains too say where they belong
        other.assign(value)
        own.assign(value.reshape(own.shape))  # heads stand in one matrix, pointwise convolutions are dense layers
    images = rng.integers(0, 256, (4, 32, 32, 3))
    logits, expected = (np.array(model(images, training=False)) for model in (ours, original))
    if name == "convmixer":
        logits = np.array(keras.ops.softmax(logits))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
