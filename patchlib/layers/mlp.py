"""The two-layer MLP, and MLP-Mixer's block made of two of them."""

import math

from patchlib.backend import keras
from patchlib.layers import kernels
from patchlib.layers.base import Block, fraction, positive


@keras.saving.register_keras_serializable("patchlib")
class MLP(Block):
    """Two linear layers over the last axis, back to its own width, with the activation between them.

    Args:
        hidden_dim: width between the two.
        activation: name or function of the activation.
        dropout: rate after the activation.
        output_dropout: rate at the end.
        activate_output: apply the activation at the end as well, as the Keras example of CCT does; no paper does.

    Input and output: float (..., dim).

    Raises:
        ValueError: ``hidden_dim`` isn't a positive integer, or a rate isn't at least 0 and less than 1.
    """

    linear, axis = kernels.Dense, -1  # the layer and its axis, of which subclasses have others

    def __init__(self, hidden_dim, activation="gelu", dropout=0.0, output_dropout=0.0, activate_output=False, **kwargs):
        super().__init__(**kwargs)
        positive(hidden_dim=hidden_dim)
        fraction(dropout=dropout, output_dropout=output_dropout)
        self.hidden_dim = hidden_dim
        self.activation = kernels.activation(activation)
        self.dropout, self.output_dropout, self.activate_output = dropout, output_dropout, activate_output

    def build(self, input_shape):
        part = {"dtype": self.dtype_policy}
        self.expand = self.linear(self.hidden_dim, name="expand", **part)
        self.expand.build(input_shape)
        self.drop = keras.layers.Dropout(self.dropout, name="drop", **part)
        self.project = self.linear(input_shape[self.axis], name="project", **part)
        self.project.build(self.expand.compute_output_shape(input_shape))
        self.output_drop = keras.layers.Dropout(self.output_dropout, name="output_drop", **part)

    def call(self, x, training=None):
        x = self.drop(self.activation(self.expand(x)), training=training)
        x = self.project(x)
        if self.activate_output:
            x = self.activation(x)
        return self.output_drop(x, training=training)

    def multiply_adds(self, input_shape):
        return {"space": 0, "channels": 2 * math.prod(input_shape[1:]) * self.hidden_dim}


class _TokenMLP(MLP):
    """The same over tokens: float (N, tokens, dim)."""

    linear, axis = kernels.TokenDense, 1


@keras.saving.register_keras_serializable("patchlib")
class MixerBlock(Block):
    """Mix tokens with one MLP, then channels with another, each after a LayerNorm and inside a residual.

    Source: Tolstikhin et al., "MLP-Mixer" (2021), eq. 1.

    Args:
        tokens_dim: width of the MLP over tokens, the paper's D_S; the paper takes half the channels.
        channels_dim: width of the MLP over channels, the paper's D_C; the paper takes four times the channels.
        activation: name or function of the activation.
        dropout: rate at the end of both MLPs.
        shared_norm: one LayerNorm for both halves, as in the Keras example; the paper has two.
        epsilon: of the LayerNorms.

    Input and output: float (N, tokens, dim).

    Raises:
        ValueError: a width isn't a positive integer, or ``dropout`` isn't at least 0 and less than 1.
    """

    mixes_space = ("tokens", "tokens_norm")
    fixed_positions = True

    def __init__(
        self, tokens_dim, channels_dim, activation="gelu", dropout=0.0, shared_norm=False, epsilon=1e-6, **kwargs
    ):
        super().__init__(**kwargs)
        positive(tokens_dim=tokens_dim, channels_dim=channels_dim)
        fraction(dropout=dropout)
        self.tokens_dim, self.channels_dim = tokens_dim, channels_dim
        self.activation = kernels.activation(activation)
        self.dropout, self.shared_norm, self.epsilon = dropout, shared_norm, epsilon
        part = {"dtype": self.dtype_policy}
        mlp = {"activation": self.activation, "output_dropout": dropout, **part}
        self.tokens_norm = kernels.LayerNormalization(epsilon=epsilon, name="tokens_norm", **part)
        self.tokens = _TokenMLP(tokens_dim, name="tokens", **mlp)
        self.channels_norm = self.tokens_norm
        if not shared_norm:
            self.channels_norm = kernels.LayerNormalization(epsilon=epsilon, name="channels_norm", **part)
        self.channels = MLP(channels_dim, name="channels", **mlp)

    def build(self, input_shape):
        self.tokens_norm.build(input_shape)
        self.tokens.build(input_shape)
        if not self.shared_norm:
            self.channels_norm.build(input_shape)
        self.channels.build(input_shape)

    def call(self, x, training=None):
        x = x + self.tokens(self.tokens_norm(x), training=training)
        return x + self.channels(self.channels_norm(x), training=training)

    def multiply_adds(self, input_shape):
        _, tokens, dim = input_shape
        return {"space": 2 * tokens * dim * self.tokens_dim, "channels": 2 * tokens * dim * self.channels_dim}
