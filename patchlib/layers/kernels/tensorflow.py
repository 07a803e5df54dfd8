"""TensorFlow's forms on a CPU. A compiled function is one pass over memory instead of many.

Times are of the value and the gradient, at a tuned tier's size on two cores.
"""

import functools
import math

import numpy as np
import tensorflow as tf

from patchlib.layers.kernels import common

_compiled = functools.partial(tf.function, jit_compile=True, autograph=False, reduce_retracing=True)


def computes_on_cpu() -> bool:
    return not tf.config.list_physical_devices("GPU")


# For Keras' chain of operations, in which the gradient takes the error function anew: less than half the time.
@_compiled
def _gelu(x):
    return tf.cast(common.gelu(tf.cast(x, "float32")), x.dtype)


@tf.custom_gradient
def gelu(x):
    y = _gelu(x)
    return y, lambda dy: _gelu_gradient(x, y, dy)


@_compiled
def _gelu_gradient(x, y, dy):
    dtype = x.dtype
    x, y, dy = (tf.cast(a, "float32") for a in (x, y, dy))
    density = tf.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    # Φ(x) is y / x; that saves a second error function. Near 0 it's taken from its series, and nothing is divided.
    small = tf.abs(x) < 1e-3
    share = tf.where(small, 0.5 + x / math.sqrt(2 * math.pi), y / tf.where(small, tf.ones_like(x), x))
    return tf.cast(dy * (share + x * density), dtype)


# For a sum as the bias' gradient: that alone takes half the time, of the whole a tenth less.
def add_bias(x, bias):
    return _add_bias(x, tf.convert_to_tensor(bias))


@tf.custom_gradient
def _add_bias(x, bias):
    return tf.nn.bias_add(x, bias), lambda dy: (dy, _column_sums(dy))


def _column_sums(x):
    """Over all axes but the last, by a matrix product."""
    flat = tf.reshape(x, (-1, x.shape[-1]))
    return tf.linalg.matvec(flat, tf.ones_like(flat[:, 0]), transpose_a=True)


# For Keras' ten passes over memory: less than half the time.
def batch_norm(x, gamma, beta, epsilon):
    y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=[], variance=[], epsilon=epsilon, is_training=True
    )
    count = tf.cast(tf.size(x) / x.shape[-1], "float32")
    return y, mean, variance * (count - 1) / count  # which TensorFlow divides by n - 1, Keras by n


# For Keras' chain of operations, whose gradient is a dozen passes: four fifths of the time.
def layer_norm(x, gamma, beta, epsilon):
    return _layer_norm(x, *map(tf.convert_to_tensor, (gamma, beta)), epsilon)


@tf.custom_gradient
def _layer_norm(x, gamma, beta, epsilon):
    y, mean, scale = _norm(x, gamma, beta, epsilon)

    def gradient(dy):
        dx, dgamma = _norm_gradient(x, gamma, mean, scale, dy)
        return dx, *(tf.cast(_column_sums(d), "float32") for d in (dgamma, dy)), None

    return y, gradient


@_compiled
def _norm(x, gamma, beta, epsilon):
    dtype, x = x.dtype, tf.cast(x, "float32")
    mean = tf.reduce_mean(x, -1, keepdims=True)
    centred = x - mean
    scale = tf.math.rsqrt(tf.reduce_mean(centred * centred, -1, keepdims=True) + epsilon)
    return tf.cast(centred * scale * gamma + beta, dtype), mean, scale


@_compiled
def _norm_gradient(x, gamma, mean, scale, dy):
    dtype = x.dtype
    x, dy = tf.cast(x, "float32"), tf.cast(dy, "float32")
    normal, dnormal = (x - mean) * scale, dy * gamma
    along = tf.reduce_mean(dnormal * normal, -1, keepdims=True)
    dx = scale * (dnormal - tf.reduce_mean(dnormal, -1, keepdims=True) - normal * along)
    return tf.cast(dx, dtype), tf.cast(dy * normal, dtype)


# For Keras' mean, whose gradient divides every position's share anew: nine tenths of the time.
def global_average(x):
    return tf.cast(tf.reduce_sum(tf.cast(x, "float32"), axis=(1, 2)) / (x.shape[1] * x.shape[2]), x.dtype)


# For a complex transform of numbers without an imaginary part: little more than half the time.
@tf.custom_gradient
def fourier(x):
    tokens, dim = x.shape[1:]
    half = tf.math.real(tf.signal.rfft2d(x))  # of real numbers; the other half mirrors it, in both axes
    mirrored = tf.gather(tf.reverse(half[..., 1 : (dim + 1) // 2], [2]), -np.arange(tokens) % tokens, axis=1)
    return tf.concat([half, mirrored], 2), fourier  # a symmetric matrix is its own gradient


# For oneDNN's gradients, the slowest operation of a ConvMixer: half the time.
@tf.custom_gradient
def depthwise_conv(x, kernel):
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
        return tf.nn.depthwise_conv2d(dy, common.turned(kernel), unit, "SAME"), dkernel

    return tf.nn.depthwise_conv2d(x, kernel, unit, "SAME"), gradient
