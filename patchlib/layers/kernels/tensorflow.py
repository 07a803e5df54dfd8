"""TensorFlow's forms on a CPU. A compiled function is one pass over memory instead of many.

How long each takes beside Keras' own is measured by ``make bench ARGS=operations``.
"""

import functools
import math

import numpy as np
import tensorflow as tf

from patchlib.layers.kernels import common

_HALF = np.uint32(16)  # bits
_compiled = functools.partial(tf.function, jit_compile=True, autograph=False, reduce_retracing=True)


def computes_on_cpu() -> bool:
    return not tf.config.list_physical_devices("GPU")


# For Keras' chain of operations, in which the gradient takes the error function anew.
@_compiled
def _gelu(x):
    return _narrow(common.gelu(_wide(x)), x.dtype)


@tf.custom_gradient
def gelu(x):
    y = _gelu(x)
    return y, lambda dy: _gelu_gradient(x, y, dy)


@_compiled
def _gelu_gradient(x, y, dy):
    dtype = x.dtype
    x, y, dy = map(_wide, (x, y, dy))
    density = tf.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    # Φ(x) is y / x; that saves a second error function. Near 0 it's taken from its series, and nothing is divided.
    small = tf.abs(x) < 1e-3
    share = tf.where(small, 0.5 + x / math.sqrt(2 * math.pi), y / tf.where(small, tf.ones_like(x), x))
    return _narrow(dy * (share + x * density), dtype)


def _wide(x):
    """bfloat16 to float32, of which it's the upper half; other numbers as they are."""
    if x.dtype != tf.bfloat16:
        return x
    return tf.bitcast(tf.bitwise.left_shift(tf.cast(tf.bitcast(x, tf.uint16), tf.uint32), _HALF), tf.float32)


def _narrow(x, dtype):
    """float32 to bfloat16, rounded to the nearest and ties to the even one, where that is wanted.

    In bits, since XLA's own conversions take twice as long.
    """
    if dtype != tf.bfloat16:
        return x
    bits = tf.bitcast(x, tf.uint32)
    odd = tf.bitwise.bitwise_and(tf.bitwise.right_shift(bits, _HALF), np.uint32(1))
    rounded = tf.bitwise.right_shift(bits + np.uint32(0x7FFF) + odd, _HALF)
    return tf.bitcast(tf.cast(rounded, tf.uint16), tf.bfloat16)


# For a sum as the bias' gradient, which a matrix product adds up in half the time.
def add_bias(x, bias):
    return _add_bias(x, tf.convert_to_tensor(bias))


@tf.custom_gradient
def _add_bias(x, bias):
    return tf.nn.bias_add(x, bias), lambda dy: (dy, _column_sums(dy))


def _column_sums(x):
    """Over all axes but the last, by a matrix product."""
    flat = tf.reshape(x, (-1, x.shape[-1]))
    return tf.matmul(tf.ones_like(flat[:, :1]), flat, transpose_a=True)[0]


# For transposes before and after it, and for a bias' gradient that Keras rounds to bfloat16 at each of its sums.
def mix_tokens(x, kernel, bias):
    return _mix_tokens(x, *map(tf.convert_to_tensor, (kernel, bias)))


@tf.custom_gradient
def _mix_tokens(x, kernel, bias):
    tokens, dim = x.shape[1:]
    units = kernel.shape[1]

    def gradient(dy):
        products = tf.reshape(tf.matmul(x, dy, transpose_b=True), (-1, tokens * units))
        sums = tf.reshape(_column_sums(tf.reshape(dy, (-1, units * dim))), (units, dim))
        dbias = tf.cast(tf.reduce_sum(tf.cast(sums, "float32"), 1), bias.dtype)
        return tf.matmul(kernel[None], dy), tf.reshape(_column_sums(products), (tokens, units)), dbias

    return tf.matmul(tf.transpose(kernel)[None], x) + bias[:, None], gradient


# For Keras' ten passes over memory.
def batch_norm(x, gamma, beta, epsilon):
    y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=[], variance=[], epsilon=epsilon, is_training=True
    )
    count = tf.cast(tf.size(x) / x.shape[-1], "float32")
    return y, mean, variance * (count - 1) / count  # which TensorFlow divides by n - 1, Keras by n


# For Keras' chain of operations, whose gradient is a dozen passes.
def layer_norm(x, gamma, beta, epsilon):
    y = _layer_norm(tf.reshape(x, (-1, x.shape[-1])), *map(tf.convert_to_tensor, (gamma, beta)), epsilon)
    return tf.reshape(y, tf.shape(x))


@tf.custom_gradient
def _layer_norm(x, gamma, beta, epsilon):
    y, mean, scale = _norm(x, gamma, beta, epsilon)

    def gradient(dy):
        dx, dgamma = _norm_gradient(x, gamma, mean, scale, dy)
        return dx, *(tf.cast(_column_sums(d), "float32") for d in (dgamma, dy)), None

    return y, gradient


@_compiled
def _norm(x, gamma, beta, epsilon):
    dtype, x = x.dtype, _wide(x)
    mean = _mean(x)
    centred = x - mean
    scale = tf.math.rsqrt(_mean(centred * centred) + epsilon)
    return _narrow(centred * scale * gamma + beta, dtype), mean, scale


@_compiled
def _norm_gradient(x, gamma, mean, scale, dy):
    dtype = x.dtype
    x, dy = _wide(x), _wide(dy)
    normal, dnormal = (x - mean) * scale, dy * gamma
    dx = scale * (dnormal - _mean(dnormal) - normal * _mean(dnormal * normal))
    return _narrow(dx, dtype), _narrow(dy * normal, dtype)


def _mean(x):
    """Of each row, by a matrix product: XLA would add up a row's numbers one by one."""
    dim = tf.shape(x)[1]
    return tf.matmul(x, tf.fill((dim, 1), 1 / tf.cast(dim, "float32")))


# For a complex transform of numbers without an imaginary part.
@tf.custom_gradient
def fourier(x):
    y = _whole(tf.signal.rfft2d(x), even=x.shape[2] % 2 == 0)
    return tf.ensure_shape(y, x.shape), fourier  # a symmetric matrix is its own gradient


@_compiled
def _whole(half, even):
    """The real part of a transform of real numbers, whose last axis is mirrored from the half of it in ``half``."""
    half = tf.math.real(half)
    rest = tf.reverse(half[..., 1 : -1 if even else None], [2])
    return tf.concat([half, tf.concat([rest[:, :1], tf.reverse(rest[:, 1:], [1])], 1)], 2)


# For oneDNN's gradients, the slowest operation of a ConvMixer.
@tf.custom_gradient
def depthwise_conv(x, kernel):
    size, unit = kernel.shape[0], [1, 1, 1, 1]

    def gradient(dy):
        # oneDNN's gradient for the kernel takes three times as long as TensorFlow's own, which "EXPLICIT" gets, and
        # which is faster in float32.
        before, after = (size - 1) // 2, size // 2
        dkernel = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
            input=tf.cast(x, "float32"),
            filter_sizes=kernel.shape,
            out_backprop=tf.cast(dy, "float32"),
            strides=unit,
            padding="EXPLICIT",
            explicit_paddings=[0, 0, before, after, before, after, 0, 0],
        )
        return tf.nn.depthwise_conv2d(dy, common.turned(kernel), unit, "SAME"), tf.cast(dkernel, kernel.dtype)

    return tf.nn.depthwise_conv2d(x, kernel, unit, "SAME"), gradient
