"""The operations of ``patchlib.layers.kernels`` beside Keras' own, one after the other, at the tuned tiers' sizes.

Speaks as ``contender.py`` does: each line names an operation, each answer is the seconds of its value and gradient.
"""

import json
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from patchlib.layers import kernels


def _times(dtype):
    """For each operation, Keras' form and ours, as layers, and the shape of an input at a batch of 128."""
    policy = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[dtype]
    grid, tokens, hidden = (128, 16, 16, 256), (128, 64, 256), (128, 64, 528)
    layers = keras.layers

    def activation(function):
        return layers.Activation(function, dtype=policy)

    def pair(name, *arguments, **keywords):
        return [getattr(module, name)(*arguments, **keywords, dtype=policy) for module in (layers, kernels)]

    def exact(x):
        return keras.activations.gelu(x, approximate=False)

    def whole_fourier(x):
        return keras.ops.fft2((x, keras.ops.zeros_like(x)))[0]

    over_tokens = keras.Sequential([layers.Permute((2, 1)), *pair("Dense", 64)[:1], layers.Permute((2, 1))])
    return {
        "GELU, ConvMixer": ([activation(exact), activation(kernels.gelu)], grid),
        "GELU, gMLP": ([activation(exact), activation(kernels.gelu)], hidden),
        "depthwise convolution, ConvMixer": (pair("DepthwiseConv2D", 5, padding="same"), grid),
        "BatchNorm, ConvMixer": (pair("BatchNormalization"), grid),
        "LayerNorm, gMLP": (pair("LayerNormalization"), tokens),
        "dense over tokens, MLP-Mixer": ([over_tokens, kernels.TokenDense(64, dtype=policy)], tokens),
        "dense, ConvMixer": (pair("Dense", 256), grid),
        "dense, gMLP": (pair("Dense", 528), tokens),
        "Fourier, FNet": ([layers.Lambda(f, dtype="float32") for f in (whole_fourier, kernels.fourier)], tokens),
    }


class Operations:
    """The pairs, compiled."""

    def __init__(self, dtype):
        self.found = {}
        for name, (pair, shape) in _times(dtype).items():
            kind = dtype if name != "Fourier, FNet" else "float32"
            x = tf.cast(np.random.default_rng(0).normal(size=shape), kind)
            for layer in pair:
                layer.build(shape)
            self.found[name] = {"Keras": (_step(pair[0]), x), "patchlib": (_step(pair[1]), x)}

    def names(self):
        return list(self.found)

    def __call__(self, name):
        """Seconds of each, the mean of three."""
        return {whose: _seconds(step, x) for whose, (step, x) in self.found[name].items()}


def _step(layer):
    @tf.function(autograph=False)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True) if isinstance(layer, keras.layers.BatchNormalization) else layer(x)
            # A gradient that's no constant, as it is in a network.
            loss = tf.reduce_sum(y * tf.stop_gradient(y))
        return tape.gradient(loss, [x, *layer.trainable_variables])

    return step


def _seconds(step, x):
    step(x)
    start = time.perf_counter()
    for _ in range(3):
        np.asarray(step(x)[0][0])
    return (time.perf_counter() - start) / 3


if __name__ == "__main__":
    out, sys.stdout = sys.stdout, sys.stderr
    operations = Operations(**json.loads(sys.argv[1]))
    for line in sys.stdin:
        task = line.strip()
        print(json.dumps(operations.names() if task == "names" else operations(task)), file=out, flush=True)
