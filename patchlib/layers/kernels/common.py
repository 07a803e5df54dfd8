"""What the forms of both backends are made of, and the forms for export, under their names in the package."""

import math

import numpy as np

from patchlib.backend import ops


def gelu(x):
    """x Φ(x), by the error function."""
    return 0.5 * x * (1 + ops.erf(x / math.sqrt(2)))


def fourier(x):
    """The real part of the transform by its definition, as matrix products of cosines and sines of both axes."""
    (cos_rows, sin_rows), (cos_columns, sin_columns) = map(_waves, x.shape[1:])
    return cos_rows @ (x @ cos_columns) - sin_rows @ (x @ sin_columns)


def _waves(length):
    """Cosines and sines (length, length), a row for each frequency."""
    turns = np.outer(np.arange(length), np.arange(length)) % length / length  # whole ones would cost digits
    return np.cos(2 * math.pi * turns).astype("float32"), np.sin(2 * math.pi * turns).astype("float32")


def turned(kernel):
    """The kernel whose convolution is the gradient of ``kernel``'s for its input: turned round, of odd size."""
    even = 1 - kernel.shape[0] % 2
    return ops.pad(kernel[::-1, ::-1], ((0, even), (0, even), (0, 0), (0, 0)))
