"""FNet's mixing and block (Lee-Thorp et al., "FNet: Mixing Tokens with Fourier Transforms", 2022)."""

import math

from patchlib.backend import keras, ops
from patchlib.layers import kernels
from patchlib.layers.base import Block, one_of
from patchlib.layers.mlp import MLP


@keras.saving.register_keras_serializable("patchlib")
class FourierMixing(Block):
    """The real part of the Fourier transform over tokens and channels; no weights. Source: the paper's eq. 3.

    Computed in float32 whatever the dtype policy: there are no complex numbers of half the size.

    Args:
        norm: as in ``numpy.fft``: "backward", the sum as it is, as in the paper; "ortho", that divided by the root of
            tokens * dim, which keeps the length of what is mixed.

    Input and output: float (N, tokens, dim).

    Raises:
        ValueError: ``norm`` is another word.
    """

    def __init__(self, norm="backward", **kwargs):
        super().__init__(**kwargs)
        one_of(("backward", "ortho"), norm=norm)
        self.norm = norm

    def call(self, x):
        mixed = kernels.fourier(ops.cast(x, "float32"))
        if self.norm == "ortho":
            mixed /= math.sqrt(x.shape[1] * x.shape[2])
        return ops.cast(mixed, self.compute_dtype)

    def multiply_adds(self, input_shape):
        """Of a fast Fourier transform of n complex numbers, by the usual count of 5 n log2(n) operations."""
        numbers = input_shape[1] * input_shape[2]
        return {"space": round(2.5 * numbers * math.log2(numbers)), "channels": 0}


@keras.saving.register_keras_serializable("patchlib")
class FNetBlock(Block):
    """Fourier mixing, then an MLP over channels, each inside a residual and followed by a LayerNorm (fig. 1).

    Args:
        hidden_dim: width of the MLP; the paper takes four times the channels.
        activation: name or function of the activation.
        dropout: rate after the MLP's activation.
        epsilon: of the LayerNorms.
        norm: see ``FourierMixing``. With "backward", the paper's, the transform of noise is sqrt(tokens * dim / 2)
            times as large as the input that it's added to.

    Input and output: float (N, tokens, dim).

    Raises:
        ValueError: ``hidden_dim`` isn't a positive integer, ``dropout`` isn't at least 0 and less than 1, or ``norm``
            is another word.
    """

    mixes_space = ("fourier", "fourier_norm")

    def __init__(self, hidden_dim, activation="gelu", dropout=0.0, epsilon=1e-6, norm="backward", **kwargs):
        super().__init__(**kwargs)
        self.hidden_dim, self.norm = hidden_dim, norm
        self.activation = kernels.activation(activation)
        self.dropout, self.epsilon = dropout, epsilon
        part = {"dtype": self.dtype_policy}
        self.fourier = FourierMixing(norm, name="fourier", **part)
        self.fourier_norm = kernels.LayerNormalization(epsilon=epsilon, name="fourier_norm", **part)
        self.mlp = MLP(hidden_dim, self.activation, dropout, name="mlp", **part)
        self.mlp_norm = kernels.LayerNormalization(epsilon=epsilon, name="mlp_norm", **part)

    def build(self, input_shape):
        for part in (self.fourier_norm, self.mlp, self.mlp_norm):
            part.build(input_shape)

    def call(self, x, training=None):
        x = self.fourier_norm(x + self.fourier(x))
        return self.mlp_norm(x + self.mlp(x, training=training))

    def multiply_adds(self, input_shape):
        return self.mlp.multiply_adds(input_shape) | {"space": self.fourier.multiply_adds(input_shape)["space"]}
