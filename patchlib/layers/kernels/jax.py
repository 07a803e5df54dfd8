"""JAX' forms on a CPU; what has no gradient of its own here gets it from JAX."""

import math

import jax
import jax.numpy as jnp

from patchlib.layers.kernels import common


def computes_on_cpu() -> bool:
    return jax.default_backend() == "cpu"


gelu = common.gelu


# For XLA's grouped convolution and its gradients, which take ten times as long. A few images at a time stay in cache.
@jax.custom_vjp
def depthwise_conv(x, kernel):
    size = kernel.shape[0]
    return jax.lax.map(lambda image: sum(map(jnp.multiply, _shifted(image, size), _taps(kernel))), x, batch_size=4)


def _shifted(x, size):
    """Images (..., H, W, C), or their gradients, as each of a kernel's size * size taps sees them."""
    height, width, _ = x.shape[-3:]
    before, after = (size - 1) // 2, size // 2
    padded = jnp.pad(x, (*[(0, 0)] * (x.ndim - 3), (before, after), (before, after), (0, 0)))
    return [padded[..., i : i + height, j : j + width, :] for i in range(size) for j in range(size)]


def _taps(kernel):
    return kernel.reshape(-1, kernel.shape[2])


def _forward(x, kernel):
    return depthwise_conv(x, kernel), (x, kernel)


def _backward(saved, dy):
    x, kernel = saved
    size = kernel.shape[0]

    def add(total, pair):
        images, gradients = pair
        return total + jnp.stack([(shifted * gradients).sum((0, 1, 2)) for shifted in _shifted(images, size)]), None

    few = [array.reshape(-1, math.gcd(4, len(x)), *x.shape[1:]) for array in (x, dy)]
    total, _ = jax.lax.scan(add, jnp.zeros(_taps(kernel).shape, "float32"), few)
    return depthwise_conv(dy, common.turned(kernel)), total.astype(kernel.dtype).reshape(kernel.shape)


depthwise_conv.defvjp(_forward, _backward)
