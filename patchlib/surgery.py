"""Networks opened up: what their layers give, in float32 or at another size, and weights changed from outside."""

import contextlib
import math
from collections.abc import Iterator

import numpy as np

from patchlib.backend import keras


def intermediates(model: keras.Model) -> keras.Model:
    """A model that shares ``model``'s weights and returns every layer's output by name: ``out["block_3"]``."""
    return keras.Model(model.inputs[0], {layer.name: layer.output for layer in model.layers})


@contextlib.contextmanager
def exactly(model: keras.Model) -> Iterator[keras.Model]:
    """The model in float32 on the processor, where small differences aren't rounded away: a copy, if it isn't float32.

    A GPU rounds what goes into matrix products, in float32 too.
    """
    with keras.device("cpu"):
        if any(layer.compute_dtype != "float32" for layer in model.layers):
            exact = keras.models.clone_model(
                model, clone_function=lambda layer: type(layer).from_config(layer.get_config() | {"dtype": "float32"})
            )
            exact.set_weights(model.get_weights())
            model = exact
        yield model


def at_size(model: keras.Model, side: int) -> keras.Model:
    """The same layers, with the same weights, for square images of ``side`` pixels a side.

    Position embeddings are interpolated. MLP-Mixer and gMLP have weights for each position, so that no other size fits
    them.

    Raises:
        ValueError: the layers don't take images of this size.
    """
    if "resize" not in {layer.name for layer in model.layers}:
        patch_size = getattr(model.get_layer("stem"), "patch_size", 1)
        if side % patch_size:
            raise ValueError(f"{model.name} takes no images of {side} pixels a side: its patches are of {patch_size}.")
        if any(getattr(layer, "fixed_positions", False) for layer in model.layers) and side != model.input_shape[1]:
            raise ValueError(f"{model.name} takes no images of {side} pixels a side: its weights belong to positions.")
    images = keras.Input((side, side, model.input_shape[-1]), name="images")
    try:
        bare = keras.Model(model.inputs[0], model.outputs[0], name=model.name)  # loaded, it has lists of them
        return keras.models.clone_model(bare, images, clone_function=lambda layer: layer)
    except ValueError as error:
        raise ValueError(f"{model.name} takes no images of {side} pixels a side: a layer refuses them.") from error


def whiten(model: keras.Model, images: np.ndarray, seed: int = 0, epsilon: float = 0.02) -> None:
    """Start the first layer's kernel as random mixtures of the images' whitened patches.

    A patch's principal components, each divided by the root of its variance, are mixed by Gaussian numbers, so that a
    fine texture counts as much as the mean colour does; the layer's outputs have a standard deviation of 1. Source:
    Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (2024), section 3.2, after Page (2019); there the
    components themselves are the kernel, and stay.

    Args:
        model: one of ``patchlib.models``, with its initial weights.
        images: uint8 (N, H, W, C), of which 2,000 at random are looked at, or fewer, of 8 million pixels.
        seed: of the images and the mixtures.
        epsilon: added to the variances, in squared units of what the layer sees.
    """
    stem, rng = model.get_layer("stem"), np.random.default_rng(seed)
    most = min(2000, max(1, 2**23 // math.prod(images.shape[1:3])))
    chosen = images[rng.permutation(len(images))[:most]]
    seen = keras.ops.convert_to_numpy(keras.Model(model.inputs[0], stem.input)(chosen)).astype("float32")
    kernel = stem.first.kernel
    side, stride = kernel.shape[0], stem.first.strides[0]
    windows = np.lib.stride_tricks.sliding_window_view(seen, (side, side), axis=(1, 2))[:, ::stride, ::stride]
    taken = np.unravel_index(rng.permutation(math.prod(windows.shape[:3]))[:200_000], windows.shape[:3])
    patches = windows[taken].transpose(0, 2, 3, 1).reshape(-1, math.prod(kernel.shape[:3]))
    variances, components = np.linalg.eigh(np.cov(patches, rowvar=False))
    mixture = rng.normal(size=(len(variances), kernel.shape[3]))
    start = components / np.sqrt(variances + epsilon) @ mixture
    kernel.assign((start / (patches @ start).std()).reshape(kernel.shape))


@contextlib.contextmanager
def without(model: keras.Model, *paths: str) -> Iterator[None]:
    """All weights whose path starts with one of ``paths`` are zero, until they are put back at the end.

    Raises:
        ValueError: one of ``paths`` starts no weight's path.
    """
    silenced = [w for w in model.weights if w.path.startswith(paths)]
    for path in paths:
        if not any(w.path.startswith(path) for w in silenced):
            raise ValueError(f"no weight's path starts with {path!r}; there are {[w.path for w in model.weights]}")
    kept = [keras.ops.convert_to_numpy(w) for w in silenced]
    try:
        for weight in silenced:
            weight.assign(np.zeros(weight.shape))
        yield
    finally:
        for weight, value in zip(silenced, kept, strict=True):
            weight.assign(value)
