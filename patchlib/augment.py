"""Augmentation of training images: per image, in NumPy, outside the model.

Inside a Keras model random crops and flips turn XLA off for the whole model, and a random crop to the image's own size
changes nothing. Here each image of a batch gets its own draw from a generator that the caller seeds, on any backend.
"""

from dataclasses import dataclass

import numpy as np


def random_flip(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirror each image left to right with probability one half.

    Args:
        images: (N, H, W, C), any dtype.
        rng: source of the N draws.

    Returns:
        A new array of the same shape and dtype.
    """
    mirrored = rng.random(len(images)) < 0.5
    return np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def random_pad_crop(images: np.ndarray, rng: np.random.Generator, pad: int) -> np.ndarray:
    """Pad with ``pad`` zero pixels on every side, then cut the original size back out at a random place.

    Each image moves by -pad..pad pixels in both directions, all moves equally likely.

    Args:
        images: (N, H, W, C), any dtype.
        rng: source of the 2 N draws.
        pad: pixels, 0 or more.

    Returns:
        A new array of the same shape and dtype.
    """
    count, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    top, left = rng.integers(0, 2 * pad + 1, (2, count))
    rows = top[:, None] + np.arange(height)
    columns = left[:, None] + np.arange(width)
    return padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def random_zoom(images: np.ndarray, rng: np.random.Generator, zoom: float) -> np.ndarray:
    """Zoom each image about its middle, height and width each by its own factor from 1 - zoom to 1 + zoom.

    Bilinear; what lies outside the image is its reflection, as in Keras' RandomZoom. A zoom is a linear map of the rows
    and another of the columns, so two matrix products do it.

    Args:
        images: uint8 (N, H, W, C).
        rng: source of the 2 N draws.
        zoom: 0 or more, less than 1.

    Returns:
        A new array of the same shape and dtype.
    """
    count, height, width, channels = images.shape
    factors = rng.uniform(1 - zoom, 1 + zoom, (2, count))
    rows, columns = (_resampling(factor, size) for factor, size in zip(factors, (height, width), strict=True))
    zoomed = rows @ images.reshape(count, height, width * channels).astype("float32")
    zoomed = columns[:, None] @ zoomed.reshape(count, height, width, channels)
    return np.rint(zoomed).astype(images.dtype)


def _resampling(factors, size):
    """(N, size, size) matrices whose row i holds the bilinear weights of the places that place i is taken from."""
    middle = (size - 1) / 2
    wanted = (np.arange(size) - middle) * factors[:, None] + middle
    reflected = size - 0.5 - np.abs((wanted + 0.5) % (2 * size) - size)  # -1 becomes 0, size becomes size - 1
    distance = np.abs(np.clip(reflected, 0, size - 1)[:, :, None] - np.arange(size))
    return np.maximum(0, 1 - distance).astype("float32")


@dataclass(frozen=True)
class Augmentation:
    """A recipe's augmentation: zoom, then pad-and-crop, then flip."""

    flip: bool = True
    pad: int = 0
    zoom: float = 0.0

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(N, H, W, C) to the same shape and dtype; the input isn't changed."""
        if self.zoom:
            images = random_zoom(images, rng, self.zoom)
        if self.pad:
            images = random_pad_crop(images, rng, self.pad)
        if self.flip:
            images = random_flip(images, rng)
        return images
