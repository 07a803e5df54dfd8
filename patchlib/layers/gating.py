"""gMLP's gate and block (Liu et al., "Pay Attention to MLPs", 2021)."""

from patchlib.backend import keras, ops
from patchlib.layers import kernels
from patchlib.layers.base import Block, fraction, one_of, positive


@keras.saving.register_keras_serializable("patchlib")
class SpatialGatingUnit(Block):
    """Multiply one half of the channels by a linear mixture, over tokens, of the other half. Source: the paper's eq. 4.

    Args:
        gate_stddev: standard deviation of the gate's initial weights. The paper wants them near zero (timm: 1e-6), so
            that the gate, whose bias starts at 1, starts as the identity; 0 is the Keras example's glorot uniform.
        epsilon: of the LayerNorm on the gating half.

    Input: float (N, tokens, 2 c). Output: (N, tokens, c).

    Raises:
        ValueError: the number of channels is odd.
    """

    def __init__(self, gate_stddev=0.0, epsilon=1e-6, **kwargs):
        super().__init__(**kwargs)
        self.gate_stddev, self.epsilon = gate_stddev, epsilon
        part = {"dtype": self.dtype_policy}
        self.norm = kernels.LayerNormalization(epsilon=epsilon, name="norm", **part)

    def build(self, input_shape):
        count, tokens, channels = input_shape
        if channels % 2:
            raise ValueError(f"The number of channels must be even. Received: input of shape {tuple(input_shape)}")
        start = keras.initializers.RandomNormal(stddev=self.gate_stddev) if self.gate_stddev else "glorot_uniform"
        self.gate = kernels.TokenDense(
            tokens, kernel_initializer=start, bias_initializer="ones", name="gate", dtype=self.dtype_policy
        )
        self.norm.build((count, tokens, channels // 2))
        self.gate.build((count, tokens, channels // 2))

    def call(self, x):
        kept, gating = ops.split(x, 2, axis=-1)
        return kept * self.gate(self.norm(gating))

    def compute_output_shape(self, input_shape):
        return *input_shape[:2], input_shape[2] // 2

    def multiply_adds(self, input_shape):
        _, tokens, channels = input_shape
        return {"space": tokens**2 * channels // 2, "channels": 0}


@keras.saving.register_keras_serializable("patchlib")
class GMLPBlock(Block):
    """A channel MLP with a spatial gate in its middle, after a LayerNorm and inside a residual (fig. 1).

    Args:
        hidden_dim: channels before the gate halves them; the paper takes six times the block's.
        activation: name or function of the activation before the gate.
        dropout: rate after the activation.
        skip: what the output is added to: "input", as in the paper, or "normalized", as in the Keras example.
        gate_stddev: see ``SpatialGatingUnit``.
        gate_epsilon: of the gate's LayerNorm; timm's is 1e-5.
        epsilon: of the block's LayerNorm.

    Input and output: float (N, tokens, dim).

    Raises:
        ValueError: ``hidden_dim`` isn't an even positive integer, ``dropout`` isn't at least 0 and less than 1, or
            ``skip`` is another word.
    """

    mixes_space = ("spatial",)
    fixed_positions = True

    def __init__(
        self,
        hidden_dim,
        activation="gelu",
        dropout=0.0,
        skip="input",
        gate_stddev=0.0,
        gate_epsilon=1e-6,
        epsilon=1e-6,
        **kwargs,
    ):
        super().__init__(**kwargs)
        positive(hidden_dim=hidden_dim)
        fraction(dropout=dropout)
        one_of(("input", "normalized"), skip=skip)
        self.hidden_dim = hidden_dim
        self.activation = kernels.activation(activation)
        self.dropout, self.skip, self.gate_stddev = dropout, skip, gate_stddev
        self.gate_epsilon, self.epsilon = gate_epsilon, epsilon
        part = {"dtype": self.dtype_policy}
        self.norm = kernels.LayerNormalization(epsilon=epsilon, name="norm", **part)
        self.expand = kernels.Dense(hidden_dim, name="expand", **part)
        self.drop = keras.layers.Dropout(dropout, name="drop", **part)
        self.spatial = SpatialGatingUnit(gate_stddev, gate_epsilon, name="spatial", **part)

    def build(self, input_shape):
        count, tokens, dim = input_shape
        self.norm.build(input_shape)
        self.expand.build(input_shape)
        self.spatial.build((count, tokens, self.hidden_dim))
        self.project = kernels.Dense(dim, name="project", dtype=self.dtype_policy)
        self.project.build((count, tokens, self.hidden_dim // 2))

    def call(self, x, training=None):
        normalized = self.norm(x)
        hidden = self.drop(self.activation(self.expand(normalized)), training=training)
        mixed = self.project(self.spatial(hidden))
        return mixed + (normalized if self.skip == "normalized" else x)

    def multiply_adds(self, input_shape):
        _, tokens, dim = input_shape
        gate = self.spatial.multiply_adds((None, tokens, self.hidden_dim))
        return {"space": gate["space"], "channels": tokens * dim * self.hidden_dim * 3 // 2}
