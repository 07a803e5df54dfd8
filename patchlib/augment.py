"""Augmentation of training images: per image, in NumPy, outside the model.

Inside a Keras model random crops and flips turn XLA off for the whole model, and a random crop to the image's own size
changes nothing. Here each image of a batch gets its own draw from a generator that the caller seeds, on any backend.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps


def random_flip(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirror each image left to right with probability one half.

    Args:
        images: (N, H, W, C), any dtype.
        rng: source of the N draws.

    Returns:
        A new array of the same shape and dtype.
    """
    return _mirrored(images, rng.random(len(images)) < 0.5)


def alternating_flip(images: np.ndarray, started: np.ndarray, epoch: int) -> np.ndarray:
    """Mirror each image left to right in every second epoch, so that two epochs show both of its sides.

    Source: Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (2024), section 3.6.

    Args:
        images: (N, H, W, C), any dtype.
        started: bool (N,), which images are mirrored in even epochs; the others are in odd ones.
        epoch: from 0 on.

    Returns:
        A new array of the same shape and dtype.
    """
    return _mirrored(images, started ^ (epoch % 2 == 1))


def _mirrored(images, which):
    return np.where(which[:, None, None, None], images[:, :, ::-1], images)


def random_pad_crop(images: np.ndarray, rng: np.random.Generator, pad: int) -> np.ndarray:
    """Pad with ``pad`` zero pixels on every side, then cut the original size back out at a random position.

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


def shrink(images: np.ndarray, side: int) -> np.ndarray:
    """Make square images smaller: each new pixel is the mean of the area that it covers.

    Args:
        images: uint8 (N, H, H, C).
        side: pixels a side of the result, at most H; of any images, square or not, if it's H.

    Returns:
        An array (N, side, side, C) of the same dtype; the input itself if it's of that height.

    Raises:
        ValueError: the images are smaller, or aren't square.
    """
    count, height, width, channels = images.shape
    if side == height:
        return images
    if side > height or height != width:
        raise ValueError(f"`side` must be at most that of square images. Received: {side} for {height} x {width}")
    edges, pixels = np.linspace(0, height, side + 1), np.arange(height)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    means = (np.maximum(covered, 0) * side / height).astype("float32")
    rows = means @ images.reshape(count, height, height * channels).astype("float32")
    return np.rint(means @ rows.reshape(count, side, height, channels)).astype(images.dtype)


def _resampling(factors, size):
    """(N, size, size) matrices whose row i holds the bilinear weights of the pixels that pixel i is taken from."""
    middle = (size - 1) / 2
    wanted = (np.arange(size) - middle) * factors[:, None] + middle
    reflected = size - 0.5 - np.abs((wanted + 0.5) % (2 * size) - size)  # -1 becomes 0, size becomes size - 1
    distance = np.abs(np.clip(reflected, 0, size - 1)[:, :, None] - np.arange(size))
    return np.maximum(0, 1 - distance).astype("float32")


def trivial_augment(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change each image by one operation, drawn from fourteen, at a strength drawn from its whole range.

    Source: Müller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation" (2021), with the
    ranges of its table 1 ("RA"), pixels of its 32 x 32 images as shares of the width. Unlike RandAugment as Keras has
    it, each image gets an operation of its own.

    Args:
        images: uint8 (N, H, W, 3).
        rng: source of the 2 N draws.

    Returns:
        A new array of the same shape and dtype.
    """
    chosen = rng.integers(0, len(_OPERATIONS), len(images))
    strengths = rng.integers(0, 31, len(images)) / 30 * rng.choice((-1, 1), len(images))
    pairs = zip(images, chosen, strengths, strict=True)
    return np.stack([np.asarray(_OPERATIONS[i](Image.fromarray(image), strength)) for image, i, strength in pairs])


def _affine(matrix):
    return lambda image, s: image.transform(image.size, Image.Transform.AFFINE, matrix(s, *image.size))


def _enhance(kind):
    return lambda image, s: kind(image).enhance(1 + 0.9 * s)


# Each takes a picture and a strength from -1 to 1; those without two directions use its size.
_OPERATIONS = (
    lambda image, s: image,
    lambda image, s: ImageOps.autocontrast(image),
    lambda image, s: ImageOps.equalize(image),
    lambda image, s: image.rotate(30 * s),
    lambda image, s: ImageOps.solarize(image, round(256 * (1 - abs(s)))),
    lambda image, s: ImageOps.posterize(image, 8 - round(4 * abs(s))),
    _enhance(ImageEnhance.Color),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Sharpness),
    _affine(lambda s, w, h: (1, 0.3 * s, 0, 0, 1, 0)),
    _affine(lambda s, w, h: (1, 0, 0, 0.3 * s, 1, 0)),
    _affine(lambda s, w, h: (1, 0, 10 / 32 * w * s, 0, 1, 0)),
    _affine(lambda s, w, h: (1, 0, 0, 0, 1, 10 / 32 * h * s)),
)


def random_erasing(images: np.ndarray, rng: np.random.Generator, probability: float) -> np.ndarray:
    """Fill a random rectangle of an image with random pixels, with the given probability for each image.

    Source: Zhong et al., "Random Erasing Data Augmentation" (2020), algorithm 1, with its share of the area, 0.02 to
    0.4, and aspect ratio, 0.3 to 3.3, here drawn evenly by its logarithm. A rectangle longer than the image is cut to
    it, where the paper draws again.

    Args:
        images: uint8 (N, H, W, C).
        rng: source of the draws.
        probability: 0 to 1.

    Returns:
        A new array of the same shape and dtype.
    """
    count, height, width, _ = images.shape
    area, ratio = rng.uniform(0.02, 0.4, count) * height * width, np.exp(rng.uniform(np.log(0.3), np.log(3.3), count))
    inside = _boxes(np.sqrt(area * ratio), np.sqrt(area / ratio), images.shape, rng)
    inside &= (rng.random((count,)) < probability)[:, None, None]
    return np.where(inside[..., None], rng.integers(0, 256, images.shape, dtype=images.dtype), images)


def _boxes(heights, widths, shape, rng):
    """(N, H, W) masks of one rectangle an image, of the given sizes in pixels, placed at random inside it."""
    masks = []
    for sizes, side in ((heights, shape[1]), (widths, shape[2])):
        sizes = np.clip(np.rint(sizes), 0, side).astype(int)
        start = rng.integers(0, side - sizes + 1)[:, None]
        masks.append((start <= np.arange(side)) & (np.arange(side) < start + sizes[:, None]))
    return masks[0][:, :, None] & masks[1][:, None, :]


def mixup(images: np.ndarray, targets: np.ndarray, rng: np.random.Generator, alpha: float):
    """Blend each image, and its target, with another of the batch (Zhang et al., "mixup", 2018, eq. 1).

    Args:
        images: uint8 (N, H, W, C).
        targets: float (N, classes), rows that sum to 1.
        rng: source of the partners and of each image's own share, from Beta(alpha, alpha).
        alpha: above 0.

    Returns:
        New arrays of the same shapes and dtypes.
    """
    partner, share = rng.permutation(len(images)), rng.beta(alpha, alpha, len(images)).astype("float32")
    kept = share[:, None, None, None]
    mixed = np.rint(kept * images + (1 - kept) * images[partner]).astype(images.dtype)
    return mixed, _blend(targets, partner, share)


def cutmix(images: np.ndarray, targets: np.ndarray, rng: np.random.Generator, alpha: float):
    """Paste a rectangle of another image of the batch into each; targets by area (Yun et al., "CutMix", 2019, eq. 1).

    Args:
        images: uint8 (N, H, W, C).
        targets: float (N, classes), rows that sum to 1.
        rng: source of the partners, of each image's own share of the area, from Beta(alpha, alpha), and of where.
        alpha: above 0.

    Returns:
        New arrays of the same shapes and dtypes.
    """
    partner, cut = rng.permutation(len(images)), np.sqrt(1 - rng.beta(alpha, alpha, len(images)))
    pasted = _boxes(cut * images.shape[1], cut * images.shape[2], images.shape, rng)
    share = 1 - pasted.mean((1, 2), dtype="float32")
    return np.where(pasted[..., None], images[partner], images), _blend(targets, partner, share)


def _blend(targets, partner, share):
    return share[:, None] * targets + (1 - share[:, None]) * targets[partner]


@dataclass(frozen=True)
class Augmentation:
    """A recipe's augmentation of single images, in this order; ``Mixing`` comes after it."""

    zoom: float = 0.0
    pad: int = 0
    flip: bool = True
    trivial_augment: bool = False
    erasing: float = 0.0

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(N, H, W, C) to the same shape and dtype; the input isn't changed."""
        if self.zoom:
            images = random_zoom(images, rng, self.zoom)
        if self.pad:
            images = random_pad_crop(images, rng, self.pad)
        if self.flip:
            images = random_flip(images, rng)
        if self.trivial_augment:
            images = trivial_augment(images, rng)
        if self.erasing:
            images = random_erasing(images, rng, self.erasing)
        return images


@dataclass(frozen=True)
class Mixing:
    """A recipe's mixing of images with each other: MixUp, CutMix, or each for one half of the batches."""

    mixup: float = 0.0
    cutmix: float = 0.0

    def __call__(self, images: np.ndarray, targets: np.ndarray, rng: np.random.Generator):
        """Images (N, H, W, C) and targets (N, classes) to the same shapes and dtypes; the inputs aren't changed."""
        wanted = [(mix, alpha) for mix, alpha in ((mixup, self.mixup), (cutmix, self.cutmix)) if alpha]
        if not wanted:
            return images, targets
        mix, alpha = wanted[rng.integers(len(wanted))]
        return mix(images, targets, rng, alpha)
