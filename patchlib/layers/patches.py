"""From an image to a sequence of vectors, and where each of them came from."""

import math

import numpy as np

from patchlib.backend import keras, ops
from patchlib.layers import kernels
from patchlib.layers.base import Block, one_of, positive, tiles


@keras.saving.register_keras_serializable("patchlib")
class PatchEmbedding(Block):
    """Cut an image into patches and map each linearly to a vector: ViT, MLP-Mixer, FNet, gMLP.

    A convolution whose stride is its kernel size; patches run row by row. Source: Dosovitskiy et al., "An Image is
    Worth 16x16 Words" (2021), eq. 1. It starts as the linear layer on flat patches that it is, glorot uniform over
    patch_size² C inputs and dim outputs: a convolution's usual start counts each output once per pixel of the patch,
    and so would make the embeddings several times too small.

    Args:
        dim: width of the embedding.
        patch_size: pixels a side.

    Input: float (N, H, W, C). Output: (N, H / patch_size * W / patch_size, dim).

    Raises:
        ValueError: ``dim`` or ``patch_size`` isn't a positive integer, or the patches don't tile the image.
    """

    def __init__(self, dim, patch_size, **kwargs):
        super().__init__(**kwargs)
        positive(dim=dim, patch_size=patch_size)
        self.dim, self.patch_size = dim, patch_size
        start = keras.initializers.GlorotUniform(input_axes=(0, 1, 2), output_axes=(3,))
        self.embed = kernels.Conv2D(
            dim, patch_size, strides=patch_size, kernel_initializer=start, name="embed", dtype=self.dtype_policy
        )

    @property
    def first(self):
        """The convolution that sees the pixels."""
        return self.embed

    def build(self, input_shape):
        tiles(self.patch_size, *input_shape[1:3])
        self.embed.build(input_shape)

    def call(self, images):
        x = self.embed(images)
        return ops.reshape(x, (-1, x.shape[1] * x.shape[2], self.dim))

    def compute_output_shape(self, input_shape):
        count, height, width, _ = input_shape
        return count, height // self.patch_size * (width // self.patch_size), self.dim

    def multiply_adds(self, input_shape):
        return {"space": 0, "channels": math.prod(input_shape[1:]) * self.dim}


@keras.saving.register_keras_serializable("patchlib")
class ConvTokenizer(Block):
    """CCT's tokenizer: convolutions without bias, ReLU and max pooling, instead of cutting along patch borders.

    Source: Hassani et al., "Escaping the Big Data Paradigm with Compact Transformers" (2021), eq. 3.

    Args:
        channels: output channels of each convolution; the last is the width of the tokens.
        kernel_size: of the convolutions.
        stride: of the convolutions.
        pool_size: of the max pooling after each convolution.
        pool_stride: of the max pooling.
        padding: "after_activation", as in the Keras example: a valid convolution, then a rim of kernel_size // 2
            zeros. "same": TensorFlow's. "symmetric": as in the authors' code, kernel_size // 2 and pool_size // 2 zeros
            on both sides.

    Input: float (N, H, W, C). Output: (N, tokens, channels[-1]), tokens row by row.

    Raises:
        ValueError: a size isn't a positive integer, or ``padding`` is another word.
    """

    mixes_space = ("conv",)

    def __init__(
        self, channels, kernel_size=3, stride=1, pool_size=3, pool_stride=2, padding="after_activation", **kwargs
    ):
        super().__init__(**kwargs)
        for c in channels:
            positive(channels=c)
        positive(kernel_size=kernel_size, stride=stride, pool_size=pool_size, pool_stride=pool_stride)
        one_of(("after_activation", "same", "symmetric"), padding=padding)
        self.channels = tuple(channels)
        self.kernel_size, self.stride, self.pool_size = kernel_size, stride, pool_size
        self.pool_stride, self.padding = pool_stride, padding
        part = {"dtype": self.dtype_policy}
        like = {"activation": "relu", "use_bias": False, "kernel_initializer": "he_normal", **part}
        same_or_valid = "same" if padding == "same" else "valid"
        self.stages = []
        for i, c in enumerate(channels):
            conv = kernels.Conv2D(c, kernel_size, stride, same_or_valid, name=f"conv_{i}", **like)
            rim = keras.layers.ZeroPadding2D(kernel_size // 2, name=f"rim_{i}", **part)
            pool_rim = keras.layers.ZeroPadding2D(pool_size // 2, name=f"pool_rim_{i}", **part)
            pool = keras.layers.MaxPooling2D(
                pool_size, pool_stride, "valid" if padding == "symmetric" else "same", name=f"pool_{i}", **part
            )
            # After ReLU nothing is below zero, so zeros around the pooling are as good as minus infinity.
            self.stages += {
                "after_activation": [conv, rim, pool],
                "same": [conv, pool],
                "symmetric": [rim, conv, pool_rim, pool],
            }[padding]

    @property
    def first(self):
        """The convolution that sees the pixels."""
        return next(layer for layer in self.stages if isinstance(layer, keras.layers.Conv2D))

    def build(self, input_shape):
        for layer in self.stages:
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)

    def call(self, images):
        x = images
        for layer in self.stages:
            x = layer(x)
        return ops.reshape(x, (-1, x.shape[1] * x.shape[2], x.shape[3]))

    def compute_output_shape(self, input_shape):
        count, height, width, channels = self._shapes(input_shape)[-1]
        return count, height * width, channels

    def grid(self, image_shape):
        """Rows and columns of tokens for an image of shape (H, W, C)."""
        return self._shapes((None, *image_shape))[-1][1:3]

    def _shapes(self, shape):
        shapes = [tuple(shape)]
        for layer in self.stages:
            shapes.append(tuple(layer.compute_output_shape(shapes[-1])))
        return shapes

    def multiply_adds(self, input_shape):
        shapes = self._shapes(input_shape)
        steps = zip(self.stages, shapes, shapes[1:], strict=False)
        total = sum(
            math.prod(after[1:]) * self.kernel_size**2 * before[-1]
            for layer, before, after in steps
            if isinstance(layer, keras.layers.Conv2D)
        )
        return {"space": total, "channels": 0}


@keras.saving.register_keras_serializable("patchlib")
class PositionEmbedding(Block):
    """Add a learned vector to each position of a sequence (Dosovitskiy et al., 2021, eq. 1).

    Args:
        initializer: of the table; the Keras examples use "glorot_uniform" (FNet) and "uniform" (CCT).

    Input and output: float (N, tokens, dim). The table has as many rows as there are tokens when the layer is built.
    For another number the table of a square image is interpolated bilinearly, but for a class token's row (section 3.2
    of the same paper).

    Raises:
        ValueError: another number of tokens, and not that of a square image.
    """

    def __init__(self, initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        self.initializer = keras.initializers.get(initializer)

    def build(self, input_shape):
        self.table = self.add_weight(name="table", shape=input_shape[1:], initializer=self.initializer)

    def call(self, x):
        return x + ops.cast(self._rows(x.shape[1]), x.dtype)

    def _rows(self, tokens):
        """The table for a sequence of another length."""
        there = self.table.shape[0]
        if tokens == there:
            return self.table
        before, after = math.isqrt(there), math.isqrt(tokens)
        first = there - before**2
        if first > 1 or tokens - after**2 != first:
            raise ValueError(f"positions can't be interpolated. Received: {tokens} tokens for a table of {there}")
        at = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
        shares = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(before))).astype("float32")
        table = ops.convert_to_tensor(self.table)
        grid = ops.reshape(table[first:], (before, before, -1))
        grid = ops.einsum("ir,jc,rcd->ijd", shares, shares, grid)
        return ops.concatenate([table[:first], ops.reshape(grid, (after**2, -1))])


@keras.saving.register_keras_serializable("patchlib")
class ClassToken(Block):
    """Put a learned vector in front of each sequence: ViT's class token (Dosovitskiy et al., 2021, eq. 1).

    Input: float (N, tokens, dim). Output: (N, 1 + tokens, dim).
    """

    def build(self, input_shape):
        self.token = self.add_weight(name="token", shape=(1, 1, input_shape[-1]), initializer="zeros")

    def call(self, x):
        token = ops.broadcast_to(ops.cast(self.token, x.dtype), (ops.shape(x)[0], 1, x.shape[-1]))
        return ops.concatenate([token, x], axis=1)

    def compute_output_shape(self, input_shape):
        return input_shape[0], input_shape[1] + 1, input_shape[2]


@keras.saving.register_keras_serializable("patchlib")
class TokenPooling(Block):
    """Represent a sequence by its first token, the class token (Dosovitskiy et al., 2021, eq. 4).

    Input: float (N, tokens, dim). Output: (N, dim).
    """

    def call(self, x):
        return x[:, 0]

    def compute_output_shape(self, input_shape):
        return input_shape[0], input_shape[2]
