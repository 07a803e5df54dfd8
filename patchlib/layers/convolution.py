"""ConvMixer's layers (Trockman and Kolter, "Patches Are All You Need?", 2022)."""

from patchlib.backend import keras
from patchlib.layers import kernels
from patchlib.layers.base import Block, positive, tiles


@keras.saving.register_keras_serializable("patchlib")
class ConvStem(Block):
    """Cut an image into patches and embed each: a convolution whose stride is its kernel size, activation, BatchNorm.

    Source: the paper's eq. 1.

    Args:
        dim: width of the embedding, the paper's h.
        patch_size: pixels a side, the paper's p.
        activation: name or function of the activation.
        momentum: of the BatchNorm's moving averages.
        epsilon: added to the BatchNorm's variance.

    Input: float (N, H, W, C), H and W multiples of ``patch_size``. Output: (N, H / patch_size, W / patch_size, dim).

    Raises:
        ValueError: ``dim`` or ``patch_size`` isn't a positive integer, or the patches don't tile the image.
    """

    def __init__(self, dim, patch_size, activation="gelu", momentum=0.99, epsilon=1e-3, **kwargs):
        super().__init__(**kwargs)
        positive(dim=dim, patch_size=patch_size)
        self.dim, self.patch_size, self.momentum, self.epsilon = dim, patch_size, momentum, epsilon
        self.activation = kernels.activation(activation)
        part = {"dtype": self.dtype_policy}
        self.embed = kernels.Conv2D(dim, patch_size, strides=patch_size, name="embed", **part)
        self.norm = kernels.BatchNormalization(momentum=momentum, epsilon=epsilon, name="norm", **part)

    @property
    def first(self):
        """The convolution that sees the pixels."""
        return self.embed

    def build(self, input_shape):
        tiles(self.patch_size, *input_shape[1:3])
        self.embed.build(input_shape)
        self.norm.build(self.embed.compute_output_shape(input_shape))

    def call(self, images, training=None):
        return self.norm(self.activation(self.embed(images)), training=training)

    def compute_output_shape(self, input_shape):
        return self.embed.compute_output_shape(input_shape)

    def multiply_adds(self, input_shape):
        _, height, width, channels = input_shape
        return {"space": 0, "channels": height * width * channels * self.dim}


@keras.saving.register_keras_serializable("patchlib")
class ConvMixerBlock(Block):
    """Mix space, then channels: a depthwise convolution with a residual around it, then a pointwise convolution.

    Both convolutions are followed by the activation and then BatchNorm; there is no residual around the pointwise half.
    Source: the paper's eqs. 2 and 3.

    Args:
        dim: channels, the paper's h.
        kernel_size: patches a side that the depthwise convolution sees, the paper's k.
        activation: name or function of the activation.
        momentum: of the BatchNorms' moving averages.
        epsilon: added to the BatchNorms' variances.

    Input and output: float (N, H, W, dim), H and W in patches.

    Raises:
        ValueError: ``dim`` or ``kernel_size`` isn't a positive integer, or the input has another number of channels.
    """

    mixes_space = ("depthwise", "depthwise_norm")

    def __init__(self, dim, kernel_size, activation="gelu", momentum=0.99, epsilon=1e-3, **kwargs):
        super().__init__(**kwargs)
        positive(dim=dim, kernel_size=kernel_size)
        self.dim, self.kernel_size = dim, kernel_size
        self.activation = kernels.activation(activation)
        self.momentum, self.epsilon = momentum, epsilon
        part = {"dtype": self.dtype_policy}
        norm = {"momentum": momentum, "epsilon": epsilon, **part}
        self.depthwise = kernels.DepthwiseConv2D(kernel_size, padding="same", name="depthwise", **part)
        self.depthwise_norm = kernels.BatchNormalization(name="depthwise_norm", **norm)
        self.pointwise = kernels.Dense(dim, name="pointwise", **part)
        self.pointwise_norm = kernels.BatchNormalization(name="pointwise_norm", **norm)

    def build(self, input_shape):
        if input_shape[-1] != self.dim:
            raise ValueError(
                f"`dim` must equal the input's channels. Received: dim={self.dim}, input of shape {tuple(input_shape)}"
            )
        for part in (self.depthwise, self.depthwise_norm, self.pointwise, self.pointwise_norm):
            part.build(input_shape)

    def call(self, x, training=None):
        x = x + self.depthwise_norm(self.activation(self.depthwise(x)), training=training)
        return self.pointwise_norm(self.activation(self.pointwise(x)), training=training)

    def multiply_adds(self, input_shape):
        _, height, width, _ = input_shape
        tokens = height * width
        return {"space": tokens * self.kernel_size**2 * self.dim, "channels": tokens * self.dim**2}
