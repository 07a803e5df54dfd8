"""Self-attention, the transformer block of ViT and CCT, and CCT's sequence pooling."""

import math

from patchlib.backend import keras, ops
from patchlib.layers import kernels
from patchlib.layers.base import Block, fraction, one_of, positive
from patchlib.layers.mlp import MLP
from patchlib.layers.regularization import StochasticDepth


def _uniform(limit):
    return keras.initializers.RandomUniform(-limit, limit)


@keras.saving.register_keras_serializable("patchlib")
class SelfAttention(Block):
    """Multi-head self-attention (Vaswani et al., "Attention Is All You Need", 2017, section 3.2).

    Args:
        heads: number of heads.
        key_dim: width of each head. The papers take dim / heads; the Keras example of CCT takes dim itself.
        dropout: rate on the attention weights.
        qkv_bias: give queries, keys and values a bias; CCT's authors don't. The output always has one.

    Input and output: float (N, tokens, dim).

    Raises:
        ValueError: a number isn't a positive integer, or ``dropout`` isn't at least 0 and less than 1.
    """

    def __init__(self, heads, key_dim, dropout=0.0, qkv_bias=True, **kwargs):
        super().__init__(**kwargs)
        positive(heads=heads, key_dim=key_dim)
        fraction(dropout=dropout)
        self.heads, self.key_dim, self.dropout, self.qkv_bias = heads, key_dim, dropout, qkv_bias

    def build(self, input_shape):
        part, dim = {"dtype": self.dtype_policy}, input_shape[-1]
        # Queries and keys start small, as in the Keras example of CCT, whose Keras 2 took the axes of a kernel
        # (dim, heads, key_dim) for a convolution's. Keras 3.15 counts inputs and outputs, as for any linear layer.
        # (An initialiser repeats itself, so that each kernel needs its own.)
        limit = math.sqrt(6 / (dim * (self.heads + self.key_dim)))
        self.query, self.key, self.value = (
            kernels.Dense(self.heads * self.key_dim, None, self.qkv_bias, _uniform(limit), name=name, **part)
            for name in ("query", "key", "value")
        )
        self.drop = keras.layers.Dropout(self.dropout, name="drop", **part)
        limit = math.sqrt(6 / (self.heads * (self.key_dim + dim)))
        self.output_projection = kernels.Dense(dim, kernel_initializer=_uniform(limit), name="output", **part)
        for projection in (self.query, self.key, self.value):
            projection.build(input_shape)
        self.output_projection.build((*input_shape[:-1], self.heads * self.key_dim))

    def _split(self, x):
        """(N, tokens, heads * key_dim) to (N, heads, tokens, key_dim)."""
        return ops.transpose(ops.reshape(x, (-1, x.shape[1], self.heads, self.key_dim)), (0, 2, 1, 3))

    def weights_for(self, x):
        """The attention weights (N, heads, tokens, tokens): how much each token takes from each; rows sum to 1."""
        query, key = self._split(self.query(x)), self._split(self.key(x))
        return ops.softmax(query / self.key_dim**0.5 @ ops.transpose(key, (0, 1, 3, 2)))

    def call(self, x, training=None):
        weights = self.drop(self.weights_for(x), training=training)
        mixed = ops.transpose(weights @ self._split(self.value(x)), (0, 2, 1, 3))
        return self.output_projection(ops.reshape(mixed, (-1, x.shape[1], self.heads * self.key_dim)))

    def multiply_adds(self, input_shape):
        _, tokens, dim = input_shape
        width = self.heads * self.key_dim
        return {"space": 2 * tokens**2 * width + 4 * tokens * dim * width, "channels": 0}


@keras.saving.register_keras_serializable("patchlib")
class TransformerBlock(Block):
    """Self-attention mixes tokens, an MLP mixes channels, each after a LayerNorm and inside a residual.

    Source: Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021), eqs. 2 and 3.

    Args:
        heads, key_dim, qkv_bias: see ``SelfAttention``.
        mlp_dim: width of the MLP.
        activation: name or function of the MLP's activation.
        dropout: rate after both layers of the MLP.
        attention_dropout: rate on the attention weights.
        stochastic_depth: rate at which an image's branches are dropped.
        activate_output: see ``MLP``.
        skip: what the MLP's output is added to: "input", or "normalized", the normalised stream, as in the code of
            CCT's authors.
        epsilon: of the LayerNorms.

    Input and output: float (N, tokens, dim).

    Raises:
        ValueError: a number is out of its range, or ``skip`` is another word.
    """

    mixes_space = ("attention_norm", "attention")

    def __init__(
        self,
        heads,
        key_dim,
        mlp_dim,
        activation="gelu",
        dropout=0.0,
        attention_dropout=0.0,
        stochastic_depth=0.0,
        qkv_bias=True,
        activate_output=False,
        skip="input",
        epsilon=1e-5,
        **kwargs,
    ):
        super().__init__(**kwargs)
        positive(mlp_dim=mlp_dim)
        fraction(dropout=dropout, attention_dropout=attention_dropout, stochastic_depth=stochastic_depth)
        one_of(("input", "normalized"), skip=skip)
        self.heads, self.key_dim, self.qkv_bias, self.mlp_dim = heads, key_dim, qkv_bias, mlp_dim
        self.activation = kernels.activation(activation)
        self.dropout, self.attention_dropout = dropout, attention_dropout
        self.stochastic_depth, self.activate_output = stochastic_depth, activate_output
        self.skip, self.epsilon = skip, epsilon
        part = {"dtype": self.dtype_policy}
        self.attention_norm = kernels.LayerNormalization(epsilon=epsilon, name="attention_norm", **part)
        self.attention = SelfAttention(heads, key_dim, attention_dropout, qkv_bias, name="attention", **part)
        self.mlp_norm = kernels.LayerNormalization(epsilon=epsilon, name="mlp_norm", **part)
        self.mlp = MLP(mlp_dim, self.activation, dropout, dropout, activate_output, name="mlp", **part)
        self.attention_drop = StochasticDepth(stochastic_depth, name="attention_drop", **part)
        self.mlp_drop = StochasticDepth(stochastic_depth, name="mlp_drop", **part)

    def build(self, input_shape):
        for part in (self.attention_norm, self.attention, self.mlp_norm, self.mlp):
            part.build(input_shape)

    def call(self, x, training=None):
        mixed = self.attention(self.attention_norm(x), training=training)
        x = x + self.attention_drop(mixed, training=training)
        normalized = self.mlp_norm(x)
        mixed = self.mlp_drop(self.mlp(normalized, training=training), training=training)
        return mixed + (normalized if self.skip == "normalized" else x)

    def attention_weights(self, x):
        """The attention weights (N, heads, tokens, tokens) for the block's input."""
        return self.attention.weights_for(self.attention_norm(x))

    def multiply_adds(self, input_shape):
        return self.mlp.multiply_adds(input_shape) | {"space": self.attention.multiply_adds(input_shape)["space"]}


@keras.saving.register_keras_serializable("patchlib")
class SequencePooling(Block):
    """A weighted mean over tokens, the weights learned from each token's vector (Hassani et al., 2021, eqs. 4 to 6).

    Input: float (N, tokens, dim). Output: (N, dim).
    """

    mixes_space = ("score",)

    def build(self, input_shape):
        self.score = keras.layers.Dense(1, name="score", dtype=self.dtype_policy)
        self.score.build(input_shape)

    def weights_for(self, x):
        """The weight of each token (N, tokens); they sum to 1."""
        return ops.softmax(self.score(x)[..., 0])

    def call(self, x):
        return ops.einsum("np,npc->nc", self.weights_for(x), x)

    def compute_output_shape(self, input_shape):
        return input_shape[0], input_shape[2]

    def multiply_adds(self, input_shape):
        _, tokens, dim = input_shape
        return {"space": 2 * tokens * dim, "channels": 0}
