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
    channels = x @ weights["pointwise/kernel"] + weights["pointwise/bias"]
    return batch_norm(gelu(channels), weights, "pointwise_norm", epsilon)


def layer_norm(x: np.ndarray, weights: dict, name: str, epsilon: float) -> np.ndarray:
    """Layer normalisation: by each vector's own mean and variance (Ba et al., 2016)."""
    centred = x - x.mean(axis=-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
    return weights[f"{name}/gamma"] * centred / spread + weights[f"{name}/beta"]


def softmax(x: np.ndarray) -> np.ndarray:
    """Exponentials over their sum, along the last axis."""
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def patch_embedding(images: np.ndarray, weights: dict, patch_size: int) -> np.ndarray:
    """(N, H, W, C) images to (N, tokens, dim): each patch, flat, times a matrix (Dosovitskiy et al., 2021, eq. 1)."""
    count, height, width, channels = images.shape
    matrix = weights["embed/kernel"].reshape(patch_size * patch_size * channels, -1)
    tokens = []
    for top in range(0, height, patch_size):
        for left in range(0, width, patch_size):
            patch = images[:, top : top + patch_size, left : left + patch_size, :].reshape(count, -1)
            tokens.append(patch @ matrix + weights["embed/bias"])
    return np.stack(tokens, axis=1)


def position_embedding(x: np.ndarray, weights: dict) -> np.ndarray:
    """Each position's own vector is added."""
    return x + weights["table"]


def class_token(x: np.ndarray, weights: dict) -> np.ndarray:
    """One more token in front, the same for every image."""
    return np.stack([np.concatenate([weights["token"][0], sequence]) for sequence in x])


def token_pooling(x: np.ndarray, weights: dict) -> np.ndarray:
    """The first token."""
    return np.stack([sequence[0] for sequence in x])


def _pad(x, before, after):
    return np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))


def _same(size, window, stride):
    """TensorFlow's "same": as many outputs as strides fit, the zeros they need shared, the odd one behind."""
    missing = max((-(-size // stride) - 1) * stride + window - size, 0)
    return missing // 2, missing - missing // 2


def _windows(x, window, stride):
    """Each window (N, window, window, C) of an image, by the row and column of its output."""
    for row in range((x.shape[1] - window) // stride + 1):
        for column in range((x.shape[2] - window) // stride + 1):
            top, left = row * stride, column * stride
            yield row, column, x[:, top : top + window, left : left + window, :]


def conv_tokenizer(
    images: np.ndarray, weights: dict, kernel_size: int = 3, stride: int = 1, padding: str = "after_activation"
) -> np.ndarray:
    """(N, H, W, C) square images to (N, tokens, dim): convolution, ReLU, 3 x 3 max pooling of stride 2, repeated."""
    x, half = images, kernel_size // 2
    for kernel in weights.values():
        if padding != "after_activation":
            x = _pad(x, half, half) if padding == "symmetric" else _pad(x, *_same(x.shape[1], kernel_size, stride))
        side = (x.shape[1] - kernel_size) // stride + 1
        convolved = np.zeros((len(x), side, side, kernel.shape[-1]))
        for row, column, window in _windows(x, kernel_size, stride):
            convolved[:, row, column] = np.maximum(0, np.einsum("nijc,ijcd->nd", window, kernel))
        x = _pad(convolved, half, half) if padding == "after_activation" else convolved
        x = _pad(x, 1, 1) if padding == "symmetric" else _pad(x, *_same(x.shape[1], 3, 2))
        side = (x.shape[1] - 3) // 2 + 1
        pooled = np.zeros((len(x), side, side, kernel.shape[-1]))
        for row, column, window in _windows(x, 3, 2):
            pooled[:, row, column] = window.max(axis=(1, 2))
        x = pooled
    return x.reshape(len(x), -1, x.shape[-1])


def self_attention(x: np.ndarray, weights: dict, heads: int, prefix: str = "") -> np.ndarray:
    """Each head compares every token with every other and takes from them accordingly (Vaswani et al., 2017, eq. 1)."""
    query, key, value = (
        np.split(x @ weights[f"{prefix}{name}/kernel"] + weights.get(f"{prefix}{name}/bias", 0), heads, axis=-1)
        for name in ("query", "key", "value")
    )
    mixed = [
        softmax(q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])) @ v
        for q, k, v in zip(query, key, value, strict=True)
    ]
    return np.concatenate(mixed, axis=-1) @ weights[f"{prefix}output/kernel"] + weights[f"{prefix}output/bias"]


def mlp(x: np.ndarray, weights: dict, prefix: str = "", activate_output: bool = False) -> np.ndarray:
    """Two linear maps of the last axis with GELU between them."""
    hidden = gelu(x @ weights[f"{prefix}expand/kernel"] + weights[f"{prefix}expand/bias"])
    output = hidden @ weights[f"{prefix}project/kernel"] + weights[f"{prefix}project/bias"]
    return gelu(output) if activate_output else output


def transformer_block(
    x: np.ndarray, weights: dict, heads: int, epsilon: float, activate_output: bool = False, skip: str = "input"
) -> np.ndarray:
    """Attention, then an MLP, each on the normalised stream and added (Dosovitskiy et al., 2021, eqs. 2 and 3)."""
    x = x + self_attention(layer_norm(x, weights, "attention_norm", epsilon), weights, heads, "attention/")
    normalized = layer_norm(x, weights, "mlp_norm", epsilon)
    return mlp(normalized, weights, "mlp/", activate_output) + (normalized if skip == "normalized" else x)


def sequence_pooling(x: np.ndarray, weights: dict) -> np.ndarray:
    """The mean of all tokens, each weighted by the softmax of its score (Hassani et al., 2021, eqs. 4 to 6)."""
    importance = softmax((x @ weights["score/kernel"] + weights["score/bias"])[..., 0])
    return np.stack([w @ sequence for w, sequence in zip(importance, x, strict=True)])


def mixer_block(x: np.ndarray, weights: dict, epsilon: float, shared_norm: bool = False) -> np.ndarray:
    """One MLP along the tokens, another along the channels (Tolstikhin et al., 2021, eq. 1)."""
    x = x + mlp(layer_norm(x, weights, "tokens_norm", epsilon).transpose(0, 2, 1), weights, "tokens/").transpose(
        0, 2, 1
    )
    norm = "tokens_norm" if shared_norm else "channels_norm"
    return x + mlp(layer_norm(x, weights, norm, epsilon), weights, "channels/")


def fourier_matrix(size: int) -> np.ndarray:
    """The complex matrix whose product with a sequence is its Fourier transform: exp(-2 pi i j k / size)."""
    steps = np.arange(size)
    return np.exp(-2j * np.pi * np.outer(steps, steps) / size)


def fourier_mixing(x: np.ndarray, weights: dict, norm: str = "backward") -> np.ndarray:
    """The real part of one Fourier matrix over tokens and another over channels (Lee-Thorp et al., 2022, eq. 3).

    With ``norm`` "ortho" both matrices are divided by the root of their size, and so keep lengths.
    """
    over_tokens, over_channels = map(fourier_matrix, x.shape[1:])
    mixed = np.einsum("pq,nqc,cd->npd", over_tokens, x, over_channels).real
    return mixed / np.sqrt(len(over_tokens) * len(over_channels)) if norm == "ortho" else mixed


def fnet_block(x: np.ndarray, weights: dict, epsilon: float, norm: str = "backward") -> np.ndarray:
    """Fourier mixing, then an MLP, each added and then normalised (Lee-Thorp et al., 2022, fig. 1)."""
    x = layer_norm(x + fourier_mixing(x, weights, norm), weights, "fourier_norm", epsilon)
    return layer_norm(x + mlp(x, weights, "mlp/"), weights, "mlp_norm", epsilon)


def spatial_gating_unit(x: np.ndarray, weights: dict, epsilon: float, prefix: str = "") -> np.ndarray:
    """One half of the channels times a linear mixture, over tokens, of the other (Liu et al., 2021, eqs. 2 and 4)."""
    kept, gating = np.split(x, 2, axis=-1)
    gating = layer_norm(gating, weights, f"{prefix}norm", epsilon)
    mixed = np.einsum("qp,nqc->npc", weights[f"{prefix}gate/kernel"], gating)
    return kept * (mixed + weights[f"{prefix}gate/bias"][:, None])


def gmlp_block(
    x: np.ndarray, weights: dict, epsilon: float, skip: str = "input", gate_epsilon: float = 1e-6
) -> np.ndarray:
    """Expand, gate, project, and add to the input or to the normalised input (Liu et al., 2021, fig. 1)."""
    normalized = layer_norm(x, weights, "norm", epsilon)
    hidden = gelu(normalized @ weights["expand/kernel"] + weights["expand/bias"])
    gated = spatial_gating_unit(hidden, weights, gate_epsilon, "spatial/")
    mixed = gated @ weights["project/kernel"] + weights["project/bias"]
    return mixed + (normalized if skip == "normalized" else x)
