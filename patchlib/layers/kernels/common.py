"""What the forms of both backends are made of."""

import math

from patchlib.backend import ops


def gelu(x):
    """x Φ(x), by the error function."""
    return 0.5 * x * (1 + ops.erf(x / math.sqrt(2)))


def turned(kernel):
    """The kernel whose convolution is the gradient of ``kernel``'s for its input: turned round, of odd size."""
    even = 1 - kernel.shape[0] % 2
    return ops.pad(kernel[::-1, ::-1], ((0, even), (0, even), (0, 0), (0, 0)))
