"""Three operations whose usual form is slow on a CPU: depthwise convolution, BatchNorm and GELU.

Each gives the same numbers as Keras' own, to rounding; on an accelerator Keras' own is used, since compilers do well
there. Where the time went is measured by ``make bench``.
"""

import functools
import math

import keras
from keras import ops

_BACKEND = keras.backend.backend()
if _BACKEND == "tensorflow":
    import tensorflow as tf
elif _BACKEND == "jax":
    import jax
    import jax.numpy as jnp


@functools.cache
def _special() -> str:
    """The backend, if it has forms of its own here and computes on a CPU; else nothing."""
    if _BACKEND == "tensorflow" and not tf.config.list_physical_devices("GPU"):
        return _BACKEND
    return _BACKEND if _BACKEND == "jax" and jax.default_backend() == "cpu" else ""


def gelu(x):
    """GELU, x Φ(x) (Hendrycks and Gimpel, 2016), the exact one, for any ``activation`` argument."""
    return _gelu(x) if _special() == "tensorflow" else keras.activations.gelu(x, approximate=False)


@keras.saving.register_keras_serializable("patchlib")
def gelu_tanh(x):
    """GELU by its tanh approximation (Hendrycks and Gimpel, 2016, section 2), for any ``activation`` argument."""
    return keras.activations.gelu(x, approximate=True)


def activation(identifier):
    """The function of an ``activation`` argument: Keras', but for "gelu" the one above."""
    function = keras.activations.get(identifier)
    return gelu if function is keras.activations.gelu else function


def depthwise_conv(x, kernel):
    """Each channel's own convolution, stride 1, "same": (N, H, W, C) and (k, k, C, 1) to (N, H, W, C)."""
    convolve = {"tensorflow": _tensorflow_depthwise, "jax": _jax_depthwise}.get(_special(), _keras_depthwise)
    return convolve(x, kernel)


class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """Keras' layer, for stride 1 and "same" padding, by ``depthwise_conv``."""

    def call(self, x):
        kernel, bias = (ops.cast(weight, self.compute_dtype) for weight in (self.kernel, self.bias))
        return depthwise_conv(x, kernel) + bias


class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' layer over the last axis of (N, H, W, C), computed by TensorFlow's fused operation while it trains."""

    def call(self, x, training=None):
        if not training or not self.trainable or _special() != "tensorflow" or x.dtype == tf.float64:
            return super().call(x, training=training)
        y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=x, scale=self.gamma, offset=self.beta, mean=[], variance=[], epsilon=self.epsilon, is_training=True
        )
        count = ops.cast(ops.size(x) / x.shape[-1], "float32")
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance * (count - 1) / count)):
            moving.assign(moving * self.momentum + batch * (1 - self.momentum))
        return y


def _keras_depthwise(x, kernel):
    return ops.depthwise_conv(x, kernel, padding="same")


_tensorflow_depthwise = _jax_depthwise = _keras_depthwise

if _BACKEND == "tensorflow":

    @tf.custom_gradient
    def _gelu(x):
        return _gelu_forward(x), lambda dy: _gelu_gradient(x, dy)

    # Compiled, each is one pass over memory instead of four and ten.
    @tf.function(jit_compile=True, autograph=False, reduce_retracing=True)
    def _gelu_forward(x):
        return 0.5 * x * (1 + tf.math.erf(x / math.sqrt(2)))

    @tf.function(jit_compile=True, autograph=False, reduce_retracing=True)
    def _gelu_gradient(x, dy):
        density = tf.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        return dy * (0.5 * (1 + tf.math.erf(x / math.sqrt(2))) + x * density)

    @tf.custom_gradient
    def _tensorflow_depthwise(x, kernel):
        size, unit = kernel.shape[0], [1, 1, 1, 1]

        def gradient(dy):
            dx = tf.nn.depthwise_conv2d_backprop_input(tf.shape(x), kernel, dy, unit, "SAME")
            # oneDNN's gradient for the kernel takes three times as long as TensorFlow's own, which "EXPLICIT" gets.
            before, after = (size - 1) // 2, size // 2
            dkernel = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
                input=x,
                filter_sizes=kernel.shape,
                out_backprop=dy,
                strides=unit,
                padding="EXPLICIT",
                explicit_paddings=[0, 0, before, after, before, after, 0, 0],
            )
            return dx, dkernel

        return tf.nn.depthwise_conv2d(x, kernel, unit, "SAME"), gradient


if _BACKEND == "jax":

    def _shifted(x, size):
        """One image (H, W, C), or its gradient, as each of a kernel's size * size places sees it."""
        height, width, _ = x.shape
        before, after = (size - 1) // 2, size // 2
        padded = jnp.pad(x, ((before, after), (before, after), (0, 0)))
        return [padded[i : i + height, j : j + width] for i in range(size) for j in range(size)]

    def _taps(kernel):
        return kernel.reshape(-1, kernel.shape[2])

    # XLA's own grouped convolution and its gradients are ten times slower on a CPU. Image by image all stays in cache.
    @jax.custom_vjp
    def _jax_depthwise(x, kernel):
        size = kernel.shape[0]
        return jax.lax.map(lambda image: sum(map(jnp.multiply, _shifted(image, size), _taps(kernel))), x, batch_size=4)

    def _forward(x, kernel):
        return _jax_depthwise(x, kernel), (x, kernel)

    def _backward(saved, dy):
        x, kernel = saved
        size = kernel.shape[0]

        def add(total, pair):
            image, gradient = pair
            return total + jnp.stack([(shifted * gradient).sum((0, 1)) for shifted in _shifted(image, size)]), None

        total, _ = jax.lax.scan(add, jnp.zeros(_taps(kernel).shape, "float32"), (x, dy))
        # The transposed convolution: for an odd kernel the same convolution with the kernel turned round.
        turned = kernel[::-1, ::-1]
        if size % 2 == 0:
            turned = jnp.pad(turned, ((0, 1), (0, 1), (0, 0), (0, 0)))
        return _jax_depthwise(dy, turned), total.astype(kernel.dtype).reshape(kernel.shape)

    _jax_depthwise.defvjp(_forward, _backward)
