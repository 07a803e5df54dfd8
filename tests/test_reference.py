"""The NumPy definitions against values worked out by hand, and against SciPy, which know nothing of the layers."""

import numpy as np
import pytest
from scipy import fft, special, stats

from patchlib import reference


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def linear(name, matrix, bias=0.0):
    return {f"{name}/kernel": np.asarray(matrix, float), f"{name}/bias": np.broadcast_to(bias, len(matrix[0]))}


def neutral(name, dim):
    """A norm that only normalises."""
    return {f"{name}/gamma": np.ones(dim), f"{name}/beta": np.zeros(dim)}


def normalized(x):
    return stats.zscore(x, axis=-1)


def test_gelu_and_softmax_are_scipys():
    x = normal(3, 5)
    np.testing.assert_allclose(reference.gelu(x), x * stats.norm.cdf(x))
    np.testing.assert_allclose(reference.softmax(1000 * x), special.softmax(1000 * x, axis=-1))


def test_norms_scale_and_shift_what_has_mean_zero_and_variance_one():
    x, weights = normal(4, 6), {"n/gamma": np.full(6, 2.0), "n/beta": np.full(6, 3.0)}
    np.testing.assert_allclose(reference.layer_norm(x, weights, "n", 0.0), 2 * normalized(x) + 3)
    assert reference.layer_norm(np.array([[1.0, -1.0]]), neutral("n", 2), "n", 3.0).tolist() == [[0.5, -0.5]]
    weights |= {"n/moving_mean": np.full(6, 1.0), "n/moving_variance": np.full(6, 3.0)}
    np.testing.assert_allclose(reference.batch_norm(x, weights, "n", 1.0), 2 * (x - 1) / 2 + 3)


def test_patches_are_read_row_by_row_and_their_pixels_too():
    image = np.arange(16.0).reshape(1, 4, 4, 1)
    weights = {"embed/kernel": np.eye(4).reshape(2, 2, 1, 4), "embed/bias": np.zeros(4)}
    patches = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert reference.patch_embedding(image, weights, 2)[0].tolist() == patches
    weights |= neutral("norm", 4) | {"norm/moving_mean": np.zeros(4), "norm/moving_variance": np.ones(4)}
    stem = reference.conv_stem(image, weights, 2, 0.0)
    np.testing.assert_allclose(stem[0].reshape(4, 4), reference.gelu(np.array(patches, float)))


def test_a_depthwise_kernel_looks_left_and_up_of_its_middle_where_its_weights_stand():
    x, dot = np.zeros((1, 4, 4, 1)), np.zeros((3, 3, 1, 1))
    x[0, 1, 1], dot[0, 1] = 100.0, 1.0  # takes what stands one row above
    still = {"moving_mean": [0.0], "moving_variance": [1.0], "gamma": [1.0], "beta": [0.0]}
    weights = {
        f"{norm}/{name}": np.array(v) for norm in ("depthwise_norm", "pointwise_norm") for name, v in still.items()
    }
    weights |= {"depthwise/kernel": dot, "depthwise/bias": 0.0} | linear("pointwise", [[1.0]])
    mixed = reference.convmixer_block(x, weights, 0.0)[0, :, :, 0]
    np.testing.assert_allclose(mixed[mixed > 0], [100.0, 100.0])  # itself, by the residual, and the one below
    assert mixed[1, 1] > 0 and mixed[2, 1] > 0


def test_tokens_are_added_put_in_front_and_taken_from_there():
    x = normal(2, 3, 4)
    np.testing.assert_array_equal(reference.position_embedding(x, {"table": np.ones((3, 4))}), x + 1)
    longer = reference.class_token(x, {"token": np.full((1, 1, 4), 7.0)})
    assert longer.shape == (2, 4, 4) and (longer[:, 0] == 7).all() and (longer[:, 1:] == x).all()
    np.testing.assert_array_equal(reference.token_pooling(longer, {}), np.full((2, 4), 7.0))


def test_the_tokenizer_keeps_the_largest_of_three_by_three():
    image = np.arange(36.0).reshape(1, 6, 6, 1)
    weights = {"conv": np.pad([[1.0]], 1)[..., None, None]}  # a convolution that leaves the image as it is
    symmetric = reference.conv_tokenizer(image, weights, padding="symmetric")
    assert symmetric.ravel().tolist() == [7, 9, 11, 19, 21, 23, 31, 33, 35]
    same = reference.conv_tokenizer(image, weights, padding="same")
    assert same.ravel().tolist() == [14, 16, 17, 26, 28, 29, 32, 34, 35]
    assert reference.conv_tokenizer(image, weights).shape == (1, 9, 1)
    assert (reference.conv_tokenizer(-image, weights, padding="same") == 0).all()  # ReLU


def test_attention_without_preference_is_the_mean_and_with_a_strong_one_a_choice():
    x = normal(2, 5, 4)
    identity = {"value": np.eye(4), "output": np.eye(4)}
    weights = {"query/kernel": np.zeros((4, 4)), "key/kernel": np.zeros((4, 4)), "output/bias": np.zeros(4)}
    weights |= {f"{name}/kernel": matrix for name, matrix in identity.items()}
    mean = np.broadcast_to(x.mean(axis=1, keepdims=True), x.shape)
    np.testing.assert_allclose(reference.self_attention(x, weights, heads=2), mean)
    weights |= {"query/kernel": 1e3 * np.eye(4), "key/kernel": np.eye(4)}
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)  # each is most like itself
    np.testing.assert_allclose(reference.self_attention(unit, weights, heads=1), unit)
    np.testing.assert_allclose(reference.sequence_pooling(x, linear("score", np.zeros((4, 1)))), x.mean(axis=1))


def test_attention_divides_by_the_square_root_of_a_heads_width():
    x = np.array([[[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]]])
    weights = {f"{name}/kernel": np.eye(4) for name in ("query", "key", "value", "output")} | {"output/bias": 0.0}
    first = special.softmax(np.array([1.0, 0.0]) / np.sqrt(2)) @ x[0, :, :2]  # the first token's, of the first head
    np.testing.assert_allclose(reference.self_attention(x, weights, heads=2)[0, 0, :2], first)


def test_blocks_add_what_they_mix():
    """With every linear map zero a residual block is the identity; with one kept, what that one brings."""
    x, zeros = normal(2, 3, 4), np.zeros((4, 4))
    norms = neutral("attention_norm", 4) | neutral("mlp_norm", 4) | neutral("norm", 4) | neutral("spatial/norm", 4)
    norms |= neutral("tokens_norm", 4) | neutral("channels_norm", 4) | neutral("fourier_norm", 4)
    silent = {f"attention/{name}/kernel": zeros for name in ("query", "key", "value", "output")}
    silent |= {"attention/output/bias": 0.0} | linear("mlp/expand", zeros) | linear("mlp/project", zeros)
    np.testing.assert_allclose(reference.transformer_block(x, norms | silent, 2, 0.0), x)
    one = reference.transformer_block(x, norms | silent | linear("mlp/project", zeros, 1.0), 2, 0.0, skip="normalized")
    np.testing.assert_allclose(one, normalized(x) + 1)
    mixer = linear("tokens/expand", np.zeros((3, 2))) | linear("tokens/project", np.zeros((2, 3)), [1.0, 2.0, 3.0])
    mixer |= linear("channels/expand", zeros) | linear("channels/project", zeros)
    np.testing.assert_allclose(reference.mixer_block(x, norms | mixer, 0.0), x + np.array([1, 2, 3])[:, None])
    gated = linear("expand", np.zeros((4, 8)), 1.0) | linear("project", zeros, 5.0)
    gated |= {"spatial/gate/kernel": np.zeros((3, 3)), "spatial/gate/bias": np.ones(3)}
    np.testing.assert_allclose(reference.gmlp_block(x, norms | gated, 0.0), x + 5)
    np.testing.assert_allclose(reference.gmlp_block(x, norms | gated, 0.0, skip="normalized"), normalized(x) + 5)


def test_a_gate_mixes_tokens_of_the_second_half_and_multiplies_the_first():
    x, swap = normal(1, 2, 8), np.array([[0.0, 1.0], [1.0, 0.0]])
    weights = neutral("norm", 4) | {"gate/kernel": swap, "gate/bias": np.array([1.0, 2.0])}
    expected = x[..., :4] * (normalized(x[..., 4:])[:, ::-1] + np.array([1.0, 2.0])[:, None])
    np.testing.assert_allclose(reference.spatial_gating_unit(x, weights, 0.0), expected)


@pytest.mark.parametrize("shape", [(2, 4, 6), (1, 5, 3)])
def test_the_fourier_transform_is_scipys(shape):
    x = normal(*shape)
    np.testing.assert_allclose(reference.fourier_mixing(x, {}), fft.fft2(x).real, atol=1e-12)
    np.testing.assert_allclose(reference.fourier_matrix(5), fft.fft(np.eye(5)), atol=1e-12)
    dim = shape[-1]
    weights = neutral("fourier_norm", dim) | neutral("mlp_norm", dim)
    weights |= linear("mlp/expand", np.zeros((dim, 2))) | linear("mlp/project", np.zeros((2, dim)))
    expected = normalized(normalized(x + fft.fft2(x).real))
    np.testing.assert_allclose(reference.fnet_block(x, weights, 0.0), expected)


def test_random_weights_are_random_and_named_by_their_paths():
    from patchlib import layers

    layer = layers.ConvMixerBlock(4, 3)
    layer.build((None, 5, 5, 4))
    names = ["depthwise/kernel", "depthwise/bias", "pointwise/kernel"]
    given = reference.randomize(layer, seed=3)
    assert set(names) < set(given) and all(np.ptp(values) > 0.1 for values in given.values())
    assert min(given["depthwise_norm/gamma"].min(), given["pointwise_norm/moving_variance"].min()) >= 0.5
    again = reference.named_weights(layer)
    assert all((again[name] == given[name]).all() for name in given)
