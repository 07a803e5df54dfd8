"""Who hears whom, beside what can be said exactly."""

import keras
import numpy as np
import pytest

from patchlib import explain, models, reference, surgery, training
from patchlib.data import Split


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
    found = explain.influence(model, rng.normal(size=(2, *shape)), directions=100)
    expected = np.abs(positions.T) * np.linalg.norm(channels) / 5**0.5
    assert found.shape == (2, 6, 6) and found.dtype == np.float32
    np.testing.assert_allclose(found, [expected, expected], rtol=0.1)
    (one,) = explain.influence(linear(positions, channels[:1])[0], rng.normal(size=(1, 2, 3, 1)), directions=1)
    np.testing.assert_allclose(one, np.abs(positions.T) * np.linalg.norm(channels[:1]), rtol=1e-3)


def test_a_convolution_hears_its_neighbours_and_attention_what_the_image_has():
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3))
    near = explain.influence(models.convmixer((16, 16, 3), dim=8, depth=1, kernel_size=3), images, directions=2)[0]
    places = np.indices((8, 8)).reshape(2, -1).T
    apart = np.abs(places[:, None] - places).max(axis=2)
    assert near[apart > 1].max() < 1e-4 * near.max() and (near[apart <= 1] > 1e-4 * near.max()).all()
    first, second = explain.influence(models.vit((16, 16, 3), dim=16, depth=1), images, directions=2)
    assert first.shape == (16, 16) and (first > 0).all(), "without the class token"
    assert not np.allclose(first, second, rtol=0.1)


def test_images_differ_by_what_is_in_them_and_not_by_the_directions():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3))
    first, second = explain.influence(models.vit((16, 16, 3), dim=16, depth=1), np.stack([image, image]), directions=2)
    np.testing.assert_allclose(first, second, rtol=0.01)


def test_many_positions_are_looked_at_in_parts_and_come_back_whole():
    rng = np.random.default_rng(0)
    positions, channels = rng.normal(size=(150, 150)), rng.normal(size=(1, 3))
    model, shape = linear(positions, channels)
    (found,) = explain.influence(model, rng.normal(size=(1, *shape)), directions=1)
    np.testing.assert_allclose(found, np.abs(positions.T) * np.linalg.norm(channels), rtol=0.02, atol=1e-3)


@pytest.mark.jax
@pytest.mark.parametrize(("size", "kernel_size", "depth"), [((16, 16), 3, 2), ((12, 20), 4, 2), ((64, 64), 5, 8)])
def test_the_middle_patch_reaches_as_far_as_kernels_do(size, kernel_size, depth):
    model = models.convmixer((*size, 3), dim=16, depth=depth, kernel_size=kernel_size)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3))
    rows, columns = size[0] // 2, size[1] // 2
    away = np.indices((rows, columns)) - np.reshape([rows // 2, columns // 2], (2, 1, 1))
    before, after = kernel_size // 2, (kernel_size - 1) // 2  # a kernel looks further ahead than back
    for picture in (image, 0 * image):
        found = explain.reached(model, picture)
        assert list(found) == ["stem", *(f"block_{i}" for i in range(depth))]
        for blocks, there in enumerate(found.values()):
            np.testing.assert_array_equal(there, ((-blocks * before <= away) & (away <= blocks * after)).all(axis=0))


def test_how_loud_a_change_of_the_middle_patch_still_is():
    model = models.convmixer((12, 20, 3), dim=8, depth=2, kernel_size=3)
    image = np.random.default_rng(0).integers(0, 256, (12, 20, 3))
    found, reached = explain.reach(model, image, step=50), explain.reached(model, image)
    assert list(found) == ["stem", "block_0", "block_1"]
    for name, change in found.items():
        assert (change[reached[name]] > 1e-5 * change.max()).all() and (
            change[~reached[name]] < 1e-5 * change.max()
        ).all()
    inside = keras.Model(model.inputs[0], model.get_layer("stem").output)
    changed = image.copy()
    changed[6:8, 10:12] += 50
    expected = np.linalg.norm(np.array(inside(changed[None]) - inside(image[None]))[0], axis=-1)
    np.testing.assert_allclose(found["stem"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_small_changes_are_followed_in_float32_whatever_the_network_computes_in(precision):
    """In bfloat16 a change that has come far is rounded away, and a derivative by differences is noise."""
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3))
    networks = [models.convmixer((16, 16, 3), dim=16, depth=1, dtype=dtype) for dtype in (precision, "float32")]
    networks[1].set_weights(networks[0].get_weights())
    for look in (explain.reach, explain.reached):
        found, expected = (look(network, image) for network in networks)
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-6)
    found, expected = (explain.influence(network, image[None], directions=1) for network in networks)
    np.testing.assert_allclose(found, expected, atol=1e-3 * expected.max())


SMALL = {
    "convmixer": models.convmixer((8, 8, 3), 3, dim=8, depth=2),
    "cct": models.cct((8, 8, 3), 3, dim=8, key_dim=4, conv_dim=4),
    "mlp_mixer": models.mlp_mixer((8, 8, 3), 3, resize=0, patch_size=2, dim=8, depth=2),
    "fnet": models.fnet((8, 8, 3), 3, resize=0, patch_size=2, dim=8, depth=2),
    "gmlp": models.gmlp((8, 8, 3), 3, resize=0, patch_size=2, dim=8, hidden_dim=8, depth=2),
    "vit": models.vit((8, 8, 3), 3, patch_size=2, dim=8, depth=2),
}


@pytest.mark.parametrize("name", SMALL)
def test_without_its_mixing_of_space_a_block_leaves_each_position_alone(name):
    model = SMALL[name]
    reference.randomize(model)
    tried = explain.lesions(model)
    blocks = [what for what in tried if what.startswith("block_")]
    whole = {"all blocks: mixing of space"} if name != "fnet" else {"all blocks: MLP"}
    whole |= {"position embedding"} if name in ("cct", "fnet", "vit") else set()
    whole |= {"vote, for the mean"} if name == "cct" else set()
    assert len(blocks) == 2 and set(tried) - set(blocks) == whole
    images = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3))
    with surgery.without(model, *tried[blocks[1]]):
        (heard,) = explain.influence(model, images, "block_1", directions=1)
    apart = ~np.eye(len(heard), dtype=bool)
    assert (heard[apart].max() < 1e-3 * heard.max()) == (name != "fnet")
    assert explain.influence(model, images, "block_1", directions=1)[0][apart].max() > 1e-2 * heard.max(), "put back"


def test_a_lesion_is_counted_on_the_same_images_with_its_standard_error(monkeypatch):
    model, split = SMALL["cct"], Split(np.zeros((4, 8, 8, 3), "uint8"), np.array([0, 1, 2, 0]))
    said = iter([[0, 1, 2, 1], [0, 1, 1, 0], *[[0, 1, 2, 1]] * 4])
    monkeypatch.setattr(training, "logits", lambda model, split: np.eye(3)[next(said)])
    first, second, third, *_ = explain.lesion(model, split)
    assert first == {"without": "nothing", "accuracy": 0.75, "difference": 0.0, "standard_error": 0.0}
    assert (second["accuracy"], second["difference"]) == (0.75, 0.0)
    np.testing.assert_allclose(second["standard_error"], np.std([0, 0, -1, 1]) / 2)
    assert third["standard_error"] == 0
    table = explain.lesion_table({"a": [first, second], "b": [first, second, third]}).splitlines()
    assert table[0] == "| left out | a: accuracy (difference) | b: accuracy (difference) |"
    assert table[3] == "| block_0: mixing of space | 0.750 (0.000 ± 0.354) | 0.750 (0.000 ± 0.354) |"
    assert table[4].endswith("|  | 0.750 (0.000 ± 0.000) |")
