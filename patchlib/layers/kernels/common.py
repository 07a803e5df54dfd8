"""What the forms of both backends are made of, and the forms for export, under their names in the package."""

import math

from scipy import linalg

from patchlib.backend import ops


def gelu(x):
    """x Φ(x), by the error function."""
    return 0.5 * x * (1 + ops.erf(x / math.sqrt(2)))


def fourier(x):
    """The real part of the transform by its definition: matrix products with the cosines and sines of both axes."""
    rows, columns = (linalg.dft(length).astype("complex64") for length in x.shape[1:])
    return rows.real @ (x @ columns.real) - rows.imag @ (x @ columns.imag)


def turned(kernel):
    """The kernel whose convolution is the gradient of ``kernel``'s for its input: turned round, of odd size."""
    even = 1 - kernel.shape[0] % 2
    return ops.pad(kernel[::-1, ::-1], ((0, even), (0, even), (0, 0), (0, 0)))
