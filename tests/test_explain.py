"""Who hears whom, beside what can be said exactly."""

import keras
import numpy as np
import pytest

from patchlib import explain, models


def linear(positions, channels):
    """A network of one block, a matrix over positions and one over channels; and the shape of its images."""
    height, width = 2, len(positions) // 2
    images = keras.Input((height, width, len(channels)))
    block = keras.Sequential(
        [
            keras.layers.Reshape((len(positions), len(channels))),
            keras.layers.EinsumDense("npc,pq->nqc", (len(positions), len(channels))),
            keras.layers.EinsumDense("nqc,cd->nqd", (len(positions), channels.shape[1])),
        ],
        name="block_0",
    )
    model = keras.Model(images, block(keras.layers.Rescaling(2.0)(images)))
    model.set_weights([positions, channels])
    return model, (height, width, len(channels))


@pytest.mark.jax
def test_of_a_linear_block_it_is_its_matrix():
    rng = np.random.default_rng(0)
    positions, channels = rng.normal(size=(6, 6)), rng.normal(size=(5, 3))
    model, shape = linear(positions, channels)
    found = explain.influence(model, rng.normal(size=(2, *shape)), directions=4000)
    expected = np.abs(positions.T) * np.linalg.norm(channels) / 5**0.5
    assert found.shape == (2, 6, 6) and found.dtype == np.float32
    np.testing.assert_allclose(found, [expected, expected], rtol=0.03)
    (one,) = explain.influence(linear(positions, channels[:1])[0], rng.normal(size=(1, 2, 3, 1)), directions=1)
    np.testing.assert_allclose(one, np.abs(positions.T) * np.linalg.norm(channels[:1]), rtol=1e-3)


def test_a_convolution_hears_its_neighbours_and_attention_what_the_image_has():
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3))
    near = explain.influence(models.convmixer((16, 16, 3), dim=8, depth=1, kernel_size=3), images, directions=2)[0]
    places = np.indices((8, 8)).reshape(2, -1).T
    apart = np.abs(places[:, None] - places).max(axis=2)
    assert (near[apart > 1] == 0).all() and (near[apart <= 1] > 0).all()
    first, second = explain.influence(models.vit((16, 16, 3), dim=16, depth=1), images, directions=2)
    assert first.shape == (17, 17) and (first > 0).all() and not np.allclose(first, second, rtol=0.1)
