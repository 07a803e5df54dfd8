"""The layers once more, as plain NumPy definitions: slow, independent, and made to be read.

Tests and notebooks hold ``patchlib.layers`` against them. Arrays are float, channels last; ``weights`` maps the names
that ``named_weights`` gives to arrays.
"""

import math

import numpy as np


def named_weights(layer) -> dict[str, np.ndarray]:
    """A layer's weights by their path below the layer, such as ``"depthwise/kernel"``."""
    return {w.path.split(f"{layer.name}/", 1)[-1]: np.asarray(w) for w in layer.weights}


def randomize(layer, seed: int = 0) -> dict[str, np.ndarray]:
    """Give a built layer random weights and return them by name.

    At their initial zeros and ones, biases and normalisations hide: a definition could leave them out and still agree.
    """
    rng = np.random.default_rng(seed)
    for w in layer.weights:
        low, high = (0.5, 1.5) if w.path.endswith(("variance", "gamma")) else (-0.5, 0.5)
        w.assign(rng.uniform(low, high, w.shape))
    return named_weights(layer)


def gelu(x: np.ndarray) -> np.ndarray:
    """x times the standard normal distribution function at x (Hendrycks and Gimpel, 2016, eq. 1)."""
    return x * np.vectorize(lambda v: 0.5 * (1 + math.erf(v / math.sqrt(2))))(x)


def batch_norm(x: np.ndarray, weights: dict, name: str, epsilon: float) -> np.ndarray:
    """Batch normalisation at inference: by the stored mean and variance, per channel (Ioffe and Szegedy, 2015)."""
    gamma, beta, mean, variance = (weights[f"{name}/{w}"] for w in ("gamma", "beta", "moving_mean", "moving_variance"))
    return gamma * (x - mean) / np.sqrt(variance + epsilon) + beta


def conv_stem(images: np.ndarray, weights: dict, patch_size: int, epsilon: float) -> np.ndarray:
    """(N, H, W, C) images to (N, H/p, W/p, dim) patch embeddings (Trockman and Kolter, 2022, eq. 1)."""
    count, height, width, _ = images.shape
    kernel, bias = weights["embed/kernel"], weights["embed/bias"]
    embedded = np.zeros((count, height // patch_size, width // patch_size, kernel.shape[-1]))
    for row in range(height // patch_size):
        for column in range(width // patch_size):
            top, left = row * patch_size, column * patch_size
            patch = images[:, top : top + patch_size, left : left + patch_size, :]
            embedded[:, row, column] = np.einsum("nijc,ijcd->nd", patch, kernel) + bias
    return batch_norm(gelu(embedded), weights, "norm", epsilon)


def convmixer_block(x: np.ndarray, weights: dict, epsilon: float) -> np.ndarray:
    """(N, H, W, dim) to the same shape: space is mixed with a residual, then channels (same paper, eqs. 2 and 3)."""
    kernel = weights["depthwise/kernel"][..., 0]
    size, (_, height, width, _) = kernel.shape[0], x.shape
    before, after = (size - 1) // 2, size // 2
    padded = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    space = np.zeros_like(x)
    for row in range(height):
        for column in range(width):
            window = padded[:, row : row + size, column : column + size, :]
            space[:, row, column] = (window * kernel).sum(axis=(1, 2)) + weights["depthwise/bias"]
    x = x + batch_norm(gelu(space), weights, "depthwise_norm", epsilon)
    channels = x @ weights["pointwise/kernel"][0, 0] + weights["pointwise/bias"]
    return batch_norm(gelu(channels), weights, "pointwise_norm", epsilon)
