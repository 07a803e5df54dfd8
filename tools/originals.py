"""The five Keras examples' models, assembled, fed and fitted as the examples do it: what patchlib is measured against.

Same layers in the same order, from Keras alone: unfused attention and BatchNorm, a mask of random numbers in each
dropout, augmentation inside the model or in tf.data, two crops that change nothing. Weights start, and decay, as in the
Keras and TensorFlow that each example was written for. Left out: top-5 accuracies and callbacks. Only the text is ours.
"""

import keras
import numpy as np
from keras import layers, ops

IMAGE = (32, 32, 3)


def convmixer(num_classes):
    def activated(x):
        return layers.BatchNormalization()(layers.Activation("gelu")(x))

    images = keras.Input(IMAGE)
    x = activated(layers.Conv2D(256, 2, strides=2)(layers.Rescaling(1 / 255)(images)))
    for _ in range(8):
        x = layers.Add()([activated(layers.DepthwiseConv2D(5, padding="same")(x)), x])
        x = activated(layers.Conv2D(256, 1)(x))
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(images, layers.Dense(num_classes, activation="softmax")(x))
    return _compiled(model, "sparse_categorical_crossentropy", 1e-3)


class StochasticDepth(layers.Layer):
    """A branch left out of the residual sum, image by image."""

    def __init__(self, rate):
        super().__init__()
        self.rate, self.seed = rate, keras.random.SeedGenerator()

    def call(self, x, training=None):
        if not training:
            return x
        draws = keras.random.uniform((ops.shape(x)[0], 1, 1), seed=self.seed)
        return x / (1 - self.rate) * ops.floor(1 - self.rate + draws)


def cct(num_classes, dim=128):
    def feed_forward(x):
        for _ in range(2):
            x = layers.Dropout(0.1)(layers.Dense(dim, activation="gelu")(x))
        return x

    images = keras.Input(IMAGE)
    x = layers.Rescaling(1 / 255)(images)
    x = layers.RandomFlip("horizontal")(layers.RandomCrop(32, 32)(x))
    for channels in (64, dim):
        x = layers.Conv2D(channels, 3, use_bias=False, activation="relu", kernel_initializer="he_normal")(x)
        x = layers.MaxPooling2D(3, 2, "same")(layers.ZeroPadding2D(1)(x))
    x = layers.Reshape((-1, dim))(x)
    x = x + Position("uniform")(x)
    # Keras 2 took the three axes of attention's kernels for a convolution's.
    start = keras.initializers.GlorotUniform(input_axes=(0, 1), output_axes=(0, 2))
    for rate in (0.0, 0.1):
        y = layers.LayerNormalization(epsilon=1e-5)(x)
        y = layers.MultiHeadAttention(2, dim, dropout=0.1, kernel_initializer=start)(y, y)
        x = layers.Add()([StochasticDepth(rate)(y), x])
        y = feed_forward(layers.LayerNormalization(epsilon=1e-5)(x))
        x = layers.Add()([StochasticDepth(rate)(y), x])
    x = layers.LayerNormalization(epsilon=1e-5)(x)
    weights = layers.Softmax(axis=1)(layers.Dense(1)(x))
    x = layers.Flatten()(layers.Dot(axes=1)([weights, x]))
    model = keras.Model(images, layers.Dense(num_classes)(x))
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    # TensorFlow Addons' AdamW took 1e-4 of each weight a step; Keras' takes the rate times this.
    return _compiled(model, loss, 1e-3, weight_decay=0.1)


class Patches(layers.Layer):
    """Patches of 8 x 8 pixels, as vectors."""

    def call(self, x):
        patches = ops.image.extract_patches(x, 8)
        return ops.reshape(patches, (-1, patches.shape[1] * patches.shape[2], patches.shape[3]))


class Position(layers.Layer):
    """A learned vector for each patch, broadcast over the batch."""

    def __init__(self, initializer="glorot_uniform"):
        super().__init__()
        self.initializer = initializer

    def build(self, shape):
        self.embedding = self.add_weight(shape=shape[1:], initializer=self.initializer)

    def call(self, x):
        return ops.broadcast_to(ops.convert_to_tensor(self.embedding), ops.shape(x))


class Mixer(layers.Layer):
    """MLP-Mixer's block with one shared norm and both MLPs as wide as there are patches."""

    def build(self, shape):
        _, patches, dim = shape
        self.norm = layers.LayerNormalization(epsilon=1e-6)
        self.tokens, self.channels = (
            keras.Sequential([layers.Dense(patches, activation="gelu"), layers.Dense(width), layers.Dropout(0.2)])
            for width in (patches, dim)
        )

    def call(self, x):
        mixed = self.tokens(ops.transpose(self.norm(x), (0, 2, 1)))
        x = ops.transpose(mixed, (0, 2, 1)) + x
        return x + self.channels(self.norm(x))


class Fourier(layers.Layer):
    """FNet's block: the whole complex transform, of which the real part is kept."""

    def build(self, shape):
        dim = shape[-1]
        self.fourier_norm = layers.LayerNormalization(epsilon=1e-6)
        self.mlp = keras.Sequential([layers.Dense(dim, activation="gelu"), layers.Dropout(0.2), layers.Dense(dim)])
        self.mlp_norm = layers.LayerNormalization(epsilon=1e-6)

    def call(self, x):
        x = self.fourier_norm(ops.fft2((x, ops.zeros_like(x)))[0] + x)
        return self.mlp_norm(x + self.mlp(x))


class Gating(layers.Layer):
    """gMLP's block; its skip adds the normalised input."""

    def build(self, shape):
        _, patches, dim = shape
        self.norm = layers.LayerNormalization(epsilon=1e-6)
        self.into = keras.Sequential([layers.Dense(2 * dim, activation="gelu"), layers.Dropout(0.2)])
        self.gate_norm = layers.LayerNormalization(epsilon=1e-6)
        self.spatial = layers.Dense(patches, bias_initializer="ones")
        self.out = layers.Dense(dim)

    def call(self, x):
        x = self.norm(x)
        u, v = ops.split(self.into(x), 2, axis=2)
        v = self.spatial(ops.transpose(self.gate_norm(v), (0, 2, 1)))
        return x + self.out(u * ops.transpose(v, (0, 2, 1)))


def _mlp(block, learning_rate, position=False):
    def build(num_classes):
        images = keras.Input(IMAGE)
        x = layers.Normalization(mean=(127.0,) * 3, variance=(64.0**2,) * 3)(images)
        x = layers.RandomFlip("horizontal")(layers.Resizing(64, 64)(x))
        x = layers.RandomZoom(height_factor=0.2, width_factor=0.2)(x)
        x = layers.Dense(256)(Patches()(x))
        if position:
            x = x + Position()(x)
        x = keras.Sequential([block() for _ in range(4)])(x)
        x = layers.Dropout(0.2)(layers.GlobalAveragePooling1D()(x))
        model = keras.Model(images, layers.Dense(num_classes)(x))
        return _compiled(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), learning_rate)

    return build


mlp_mixer, fnet, gmlp = _mlp(Mixer, 5e-3), _mlp(Fourier, 1e-3, position=True), _mlp(Gating, 3e-3)


def _compiled(model, loss, learning_rate, weight_decay=1e-4):
    optimizer = keras.optimizers.AdamW(learning_rate, weight_decay=weight_decay)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


def batches(architecture: str, images: np.ndarray, labels: np.ndarray, num_classes: int) -> dict:
    """Arguments for ``fit``: tf.data with augmentation for ConvMixer, arrays for the others, one-hot for CCT."""
    if architecture == "convmixer":
        import tensorflow as tf

        augmentation = [layers.RandomCrop(32, 32), layers.RandomFlip("horizontal")]

        def augment(images, labels):
            for layer in augmentation:
                images = layer(images, training=True)
            return images, labels

        data = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(1280).batch(128)
        return {"x": data.map(augment, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)}
    labels = keras.utils.to_categorical(labels, num_classes) if architecture == "cct" else labels
    return {"x": images, "y": labels, "batch_size": 128}
