"""Operations whose usual form is slow on a CPU: GELU, depthwise convolution, BatchNorm, LayerNorm, Dense, Fourier.

Each gives the same numbers as Keras' own, to rounding. ``tensorflow`` and ``jax`` hold the backends' forms, under the
names used here; what a backend has none of, and everything on an accelerator, where compilers do well, is Keras' own.
Where the time goes is measured by ``make bench``.
"""

import contextlib
import contextvars
import functools
import importlib

from patchlib import machine
from patchlib.backend import keras, ops
from patchlib.layers.kernels import common

_DTYPES = ("float32", "bfloat16")  # that the forms are made for
_BACKEND = keras.backend.backend()
_FORMS = importlib.import_module(f"{__name__}.{_BACKEND}") if _BACKEND in ("tensorflow", "jax") else None
_plain = contextvars.ContextVar("plain", default=False)


@contextlib.contextmanager
def plain():
    """What is traced within it can be exported: no compiled function, no complementary error function, no FFT."""
    before = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(before)


@functools.cache
def _on_cpu() -> bool:
    return _FORMS is not None and _FORMS.computes_on_cpu()


@functools.cache
def exact(dtype: str) -> str:
    """In which dtype to compute what's of this one: float32, where TensorFlow would add up numbers in bfloat16."""
    return "float32" if dtype == "bfloat16" and _BACKEND == "tensorflow" and not machine.has_bfloat16() else dtype


def _form(name: str):
    """The form of an operation that's to be used, or None for Keras' own."""
    forms = common if _plain.get() else _FORMS if _on_cpu() else None
    return getattr(forms, name, None)


def gelu(x):
    """GELU, x Φ(x) (Hendrycks and Gimpel, 2016), the exact one, for any ``activation`` argument."""
    form = _form("gelu") if keras.backend.standardize_dtype(x.dtype) in _DTYPES else None
    return form(x) if form else keras.activations.gelu(x, approximate=False)


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
    form = _form("depthwise_conv") or functools.partial(ops.depthwise_conv, padding="same")
    return _exactly(form, x, kernel)


def _exactly(convolution, x, kernel):
    """A convolution of two arrays of one dtype, computed in the dtype in which its sums are right."""
    own = keras.backend.standardize_dtype(x.dtype)
    return ops.cast(convolution(*(ops.cast(array, exact(own)) for array in (x, kernel))), own)


def add_bias(x, bias):
    """x + bias, for a bias of x's last axis."""
    form = _form("add_bias")
    return form(x, bias) if form else x + bias


def fourier(x):
    """The real part of the two-dimensional Fourier transform of each (H, W) of (N, H, W), float32."""
    form = _form("fourier")
    return form(x) if form and None not in x.shape[1:] else ops.fft2((x, ops.zeros_like(x)))[0]


class Conv2D(keras.layers.Conv2D):
    """Keras' layer, with its bias by ``add_bias``."""

    def call(self, x):
        y = _exactly(self.convolution_op, x, ops.cast(self.kernel, self.compute_dtype))
        return self.activation(add_bias(y, ops.cast(self.bias, self.compute_dtype)) if self.use_bias else y)


class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """Keras' layer, for stride 1 and "same" padding, by ``depthwise_conv``."""

    def call(self, x):
        kernel, bias = (ops.cast(weight, self.compute_dtype) for weight in (self.kernel, self.bias))
        return add_bias(depthwise_conv(x, kernel), bias)


class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' layer over the last axis of (N, H, W, C), by ``batch_norm`` while it trains."""

    def call(self, x, training=None):
        form = _form("batch_norm")
        if not (form and training and self.trainable) or keras.backend.standardize_dtype(x.dtype) == "float64":
            return super().call(x, training=training)
        y, mean, variance = form(x, self.gamma, self.beta, self.epsilon)
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + batch * (1 - self.momentum))
        return y


class Dense(keras.layers.Dense):
    """Keras' layer, for no activation: one matrix product over all tokens, to which TensorFlow then fuses the bias."""

    def call(self, x, training=None):
        if not _on_cpu() or self.compute_dtype not in _DTYPES or None in x.shape[1:]:
            return super().call(x, training=training)
        y = ops.matmul(ops.reshape(x, (-1, x.shape[-1])), self.kernel)
        if self.use_bias:
            y = add_bias(y, self.bias)
        return ops.reshape(y, (-1, *x.shape[1:-1], self.units))


class TokenDense(Dense):
    """The same over tokens: (N, tokens, dim) to (N, units, dim), with a kernel (tokens, units)."""

    def build(self, input_shape):
        count, tokens, dim = input_shape
        super().build((count, dim, tokens))
        self.input_spec = keras.layers.InputSpec(ndim=3, axes={1: tokens})

    def call(self, x, training=None):
        form = _form("mix_tokens")
        if form and self.use_bias and self.compute_dtype in _DTYPES and None not in x.shape[1:]:
            return form(x, self.kernel, self.bias)
        return ops.transpose(super().call(ops.transpose(x, (0, 2, 1)), training=training), (0, 2, 1))

    def compute_output_shape(self, input_shape):
        count, _, dim = input_shape
        return count, self.units, dim


@keras.saving.register_keras_serializable("patchlib")
class LayerNormalization(keras.layers.LayerNormalization):
    """Keras' layer, over the last axis, by ``layer_norm``."""

    def call(self, x):
        form = _form("layer_norm")
        if not form or self.compute_dtype not in _DTYPES:
            return super().call(x)
        return form(ops.cast(x, self.compute_dtype), self.gamma, self.beta, self.epsilon)
