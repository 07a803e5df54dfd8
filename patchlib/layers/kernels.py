"""Operations whose usual form is slow on a CPU: GELU, depthwise convolution, BatchNorm, LayerNorm, Dense, Fourier.

Each gives the same numbers as Keras' own, to rounding; on an accelerator Keras' own is used, since compilers do well
there. Where the time went is measured by ``make bench``.
"""

import functools
import math

import numpy as np

from patchlib.backend import keras, ops

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
    return _gelu(x) if _special() else keras.activations.gelu(x, approximate=False)


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
        return add_bias(depthwise_conv(x, kernel), bias)


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


def add_bias(x, bias):
    """x + bias, for a bias of x's last axis."""
    return _add_bias(x, tf.convert_to_tensor(bias)) if _special() == "tensorflow" else x + bias


class Dense(keras.layers.Dense):
    """Keras' layer, for no activation: one matrix product over all places, to which TensorFlow then fuses the bias."""

    def call(self, x, training=None):
        if not _special() or self.compute_dtype != "float32" or None in x.shape[1:]:
            return super().call(x, training=training)
        y = ops.matmul(ops.reshape(x, (-1, x.shape[-1])), self.kernel)
        if self.use_bias:
            y = add_bias(y, self.bias)
        return ops.reshape(y, (-1, *x.shape[1:-1], self.units))


@keras.saving.register_keras_serializable("patchlib")
class LayerNormalization(keras.layers.LayerNormalization):
    """Keras' layer, over the last axis, with a gradient of its own."""

    def call(self, x):
        if _special() != "tensorflow" or self.compute_dtype != "float32":
            return super().call(x)
        x = ops.cast(x, "float32")
        return _layer_norm(x, *map(tf.convert_to_tensor, (self.gamma, self.beta)), self.epsilon)


@keras.saving.register_keras_serializable("patchlib")
class GlobalAveragePooling2D(keras.layers.GlobalAveragePooling2D):
    """Keras' layer, over (N, H, W, C): it divides the sums, and not, in TensorFlow's gradient, every place again."""

    def call(self, x):
        if _special() != "tensorflow" or self.compute_dtype != "float32" or None in x.shape[1:]:
            return super().call(x)
        return ops.sum(x, axis=(1, 2)) / (x.shape[1] * x.shape[2])


def fourier(x):
    """The real part of the two-dimensional Fourier transform of each (H, W) of (N, H, W), float32."""
    if _special() == "tensorflow" and None not in x.shape[1:]:
        return _fourier(x)
    return ops.fft2((x, ops.zeros_like(x)))[0]


def _keras_depthwise(x, kernel):
    return ops.depthwise_conv(x, kernel, padding="same")


_tensorflow_depthwise = _jax_depthwise = _keras_depthwise


def _gelu_forward(x):
    return 0.5 * x * (1 + ops.erf(x / math.sqrt(2)))


def _gelu_gradient(x, y, dy):
    density = ops.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    # Φ(x) is y / x; that saves a second error function. Near 0 it's taken from its series, and nothing is divided.
    small = ops.abs(x) < 1e-3
    share = ops.where(small, 0.5 + x / math.sqrt(2 * math.pi), y / ops.where(small, 1.0, x))
    return dy * (share + x * density)


def _turned(kernel):
    """The kernel whose convolution is the gradient of ``kernel``'s for its input: turned round, of odd size."""
    even = 1 - kernel.shape[0] % 2
    return ops.pad(kernel[::-1, ::-1], ((0, even), (0, even), (0, 0), (0, 0)))


if _BACKEND == "tensorflow":
    # Compiled, a function is one pass over memory instead of many.
    _compiled = functools.partial(tf.function, jit_compile=True, autograph=False, reduce_retracing=True)
    _compiled_gelu, _compiled_gelu_gradient = _compiled(_gelu_forward), _compiled(_gelu_gradient)

    @tf.custom_gradient
    def _gelu(x):
        y = _compiled_gelu(x)
        return y, lambda dy: _compiled_gelu_gradient(x, y, dy)

    @tf.custom_gradient
    def _add_bias(x, bias):
        return tf.nn.bias_add(x, bias), lambda dy: (dy, _column_sums(dy))

    def _column_sums(x):
        # Over all axes but the last, by a matrix product: twice as fast as TensorFlow's sum.
        flat = tf.reshape(x, (-1, x.shape[-1]))
        return tf.linalg.matvec(flat, tf.ones_like(flat[:, 0]), transpose_a=True)

    @tf.custom_gradient
    def _layer_norm(x, gamma, beta, epsilon):
        y, mean, scale = _norm(x, gamma, beta, epsilon)

        def gradient(dy):
            dx, dgamma = _norm_gradient(x, gamma, mean, scale, dy)
            return dx, _column_sums(dgamma), _column_sums(dy), None

        return y, gradient

    @_compiled
    def _norm(x, gamma, beta, epsilon):
        mean = tf.reduce_mean(x, -1, keepdims=True)
        centred = x - mean
        scale = tf.math.rsqrt(tf.reduce_mean(centred * centred, -1, keepdims=True) + epsilon)
        return centred * scale * gamma + beta, mean, scale

    @_compiled
    def _norm_gradient(x, gamma, mean, scale, dy):
        normal, dnormal = (x - mean) * scale, dy * gamma
        along = tf.reduce_mean(dnormal * normal, -1, keepdims=True)
        return scale * (dnormal - tf.reduce_mean(dnormal, -1, keepdims=True) - normal * along), dy * normal

    @tf.custom_gradient
    def _fourier(x):
        places, dim = x.shape[1:]
        half = tf.math.real(tf.signal.rfft2d(x))  # of real numbers; the other half mirrors it, in both axes
        mirrored = tf.gather(tf.reverse(half[..., 1 : (dim + 1) // 2], [2]), -np.arange(places) % places, axis=1)
        return tf.concat([half, mirrored], 2), _fourier  # a symmetric matrix is its own gradient

    @tf.custom_gradient
    def _tensorflow_depthwise(x, kernel):
        size, unit = kernel.shape[0], [1, 1, 1, 1]

        def gradient(dy):
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
            return tf.nn.depthwise_conv2d(dy, _turned(kernel), unit, "SAME"), dkernel

        return tf.nn.depthwise_conv2d(x, kernel, unit, "SAME"), gradient


if _BACKEND == "jax":
    _gelu = _gelu_forward  # its gradient is found by JAX

    def _shifted(x, size):
        """Images (..., H, W, C), or their gradients, as each of a kernel's size * size places sees them."""
        height, width, _ = x.shape[-3:]
        before, after = (size - 1) // 2, size // 2
        padded = jnp.pad(x, (*[(0, 0)] * (x.ndim - 3), (before, after), (before, after), (0, 0)))
        return [padded[..., i : i + height, j : j + width, :] for i in range(size) for j in range(size)]

    def _taps(kernel):
        return kernel.reshape(-1, kernel.shape[2])

    # XLA's own grouped convolution and its gradients are ten times slower on a CPU. A few images stay in cache.
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
            images, gradients = pair
            return total + jnp.stack([(shifted * gradients).sum((0, 1, 2)) for shifted in _shifted(images, size)]), None

        few = [array.reshape(-1, math.gcd(4, len(x)), *x.shape[1:]) for array in (x, dy)]
        total, _ = jax.lax.scan(add, jnp.zeros(_taps(kernel).shape, "float32"), few)
        return _jax_depthwise(dy, _turned(kernel)), total.astype(kernel.dtype).reshape(kernel.shape)

    _jax_depthwise.defvjp(_forward, _backward)
