"""The classifiers: functional Keras models from raw images (0 to 255) to logits.

Layers carry names to ask for: ``rescale``, ``stem``, ``block_0`` ... , ``pool``, ``head``.
"""

import keras
import numpy as np

from patchlib import layers


def convmixer(
    input_shape=(32, 32, 3),
    num_classes=10,
    *,
    dim=256,
    depth=8,
    kernel_size=5,
    patch_size=2,
    activation="gelu",
    batchnorm_momentum=0.99,
    batchnorm_epsilon=1e-3,
    mean=0.0,
    std=255.0,
    dtype="float32",
    name="convmixer",
):
    """ConvMixer-dim/depth (Trockman and Kolter, "Patches Are All You Need?", 2022, fig. 2).

    The defaults are the Keras example's ConvMixer-256/8: 602,890 parameters, 594,186 of them trainable. The paper's
    CIFAR-10 row has patch_size 1 and kernel_size 9; its ImageNet models are 1536/20 (kernel 9, patch 7), 768/32
    (kernel 7, patch 7) and 1024/20 (kernel 9, patch 14). PyTorch's BatchNorm has momentum 0.9 and epsilon 1e-5.

    Args:
        input_shape: (height, width, channels) of the images, in pixels.
        num_classes: number of logits.
        dim: channels of the patch embedding, the paper's h.
        depth: number of blocks, the paper's d.
        kernel_size: of the depthwise convolutions, in patches, the paper's k.
        patch_size: pixels a side, the paper's p; must divide height and width.
        activation: name or function of the activation.
        batchnorm_momentum: of the moving averages.
        batchnorm_epsilon: added to the variances.
        mean, std: pixels enter as ``(pixel - mean) / std``; a number, or one per channel, in units of 0 to 255.
        dtype: dtype policy, such as "mixed_bfloat16"; the logits stay float32.
        name: of the model.

    Returns:
        A ``keras.Model`` from (N, height, width, channels) of any real dtype to float32 logits (N, num_classes).

    Raises:
        ValueError: a size isn't a positive integer, or the patches don't tile the image.
    """
    norm = {"activation": activation, "momentum": batchnorm_momentum, "epsilon": batchnorm_epsilon, "dtype": dtype}
    images = keras.Input(input_shape, name="images")
    x = _rescale(mean, std, dtype)(images)
    x = layers.ConvStem(dim, patch_size, name="stem", **norm)(x)
    for i in range(depth):
        x = layers.ConvMixerBlock(dim, kernel_size, name=f"block_{i}", **norm)(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool", dtype=dtype)(x)
    logits = keras.layers.Dense(num_classes, name="head", dtype="float32")(x)
    return keras.Model(images, logits, name=name)


def intermediates(model: keras.Model) -> keras.Model:
    """A model that shares ``model``'s weights and returns every layer's output by name: ``out["block_3"]``."""
    return keras.Model(model.input, {layer.name: layer.output for layer in model.layers})


def _rescale(mean, std, dtype):
    """The layer that computes ``(pixel - mean) / std``."""
    mean, std = np.broadcast_arrays(np.asarray(mean, float), np.asarray(std, float))
    return keras.layers.Rescaling((1 / std).tolist(), (-mean / std).tolist(), name="rescale", dtype=dtype)
