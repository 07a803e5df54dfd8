"""The classifiers: functional Keras models from raw images (0 to 255) to logits.

Layers carry names to ask for: ``rescale``, ``stem``, ``block_0`` ..., ``pool``, ``head``, and where there is one
``resize``, ``position``, ``norm``. The defaults are the Keras examples'; each docstring names the papers' values.

Arguments that all of them take:

- input_shape: (height, width, channels) of the images, in pixels; num_classes: number of logits.
- dim: width of a patch's vector; depth: number of blocks.
- activation: name or function; "gelu" is the exact one, by the error function,
  ``layers.gelu_tanh`` its approximation.
- mean, std: pixels enter as ``(pixel - mean) / std``; a number, or one per channel, in units of 0 to 255.
- dtype: dtype policy, such as "mixed_bfloat16"; the logits stay float32.
- name: of the model.

Arguments of several:

- patch_size: pixels a side.
- resize: pixels a side to which images are brought first, bilinearly; 0 leaves them.
- dropout: in the blocks' MLPs; attention_dropout: on the attention weights; head_dropout: before the head.
- stochastic_depth: rate in the last block, growing linearly from 0 in the first.
- final_norm: a LayerNorm before pooling.
- epsilon: of the LayerNorms.

All return a ``keras.Model`` from (N, height, width, channels) of any real dtype to float32 logits (N, num_classes), and
raise ``ValueError`` for a size that isn't a positive integer, a rate out of range, or patches that don't tile the
image.
"""

import numpy as np

from patchlib import layers
from patchlib.backend import keras
from patchlib.data import Data
from patchlib.layers import kernels
from patchlib.layers.base import one_of, positive
from patchlib.parameters import ARCHITECTURES, RunParameters


def build(parameters: RunParameters, data: Data, dtype=None) -> keras.Model:
    """The model that a run of these parameters trains on this data: its first weights are drawn by the run's seed.

    That's ``convmixer`` for the parameters of ConvMixer, and so on, with the pixels' mean and deviation in the training
    images where the architecture takes them.
    """
    (name,) = [name for name, kind in ARCHITECTURES.items() if isinstance(parameters, kind)]
    function = globals()[name]
    pixels = {"mean": data.mean, "std": data.std} if parameters.standardize else {}
    keras.utils.set_random_seed(parameters.seed)
    return function(data.input_shape, data.num_classes, dtype=dtype, **parameters.arguments(function), **pixels)


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
    (kernel 7, patch 7, in timm with ReLU) and 1024/20 (kernel 9, patch 14). PyTorch's BatchNorm has momentum 0.9 and
    epsilon 1e-5.

    Args:
        dim, depth: the paper's h and d.
        kernel_size: of the depthwise convolutions, in patches, the paper's k.
        patch_size: the paper's p.
        batchnorm_momentum: of the moving averages.
        batchnorm_epsilon: added to the variances.
    """
    norm = {"activation": activation, "momentum": batchnorm_momentum, "epsilon": batchnorm_epsilon, "dtype": dtype}
    images, x = _images(input_shape, mean, std, 0, depth, dtype)
    x = layers.ConvStem(dim, patch_size, name="stem", **norm)(x)
    for i in range(depth):
        x = layers.ConvMixerBlock(dim, kernel_size, name=f"block_{i}", **norm)(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool", dtype=dtype)(x)
    return _model(images, x, num_classes, 0.0, name)


def cct(
    input_shape=(32, 32, 3),
    num_classes=10,
    *,
    dim=128,
    depth=2,
    heads=2,
    key_dim=128,
    mlp_dim=128,
    conv_layers=2,
    conv_dim=64,
    kernel_size=3,
    stride=1,
    padding="after_activation",
    position=True,
    dropout=0.1,
    attention_dropout=0.1,
    stochastic_depth=0.1,
    qkv_bias=True,
    activate_output=True,
    skip="input",
    activation="gelu",
    epsilon=1e-5,
    mean=0.0,
    std=255.0,
    dtype="float32",
    name="cct",
):
    """Compact Convolutional Transformer (Hassani et al., "Escaping the Big Data Paradigm", 2021, fig. 2).

    The defaults are the Keras example's: 416,331 parameters. CCT-2/3x2 as the authors' code has it, 283,723 parameters:
    key_dim 64 (dim / heads), padding "symmetric", qkv_bias False, activate_output False, skip "normalized", dropout 0.
    CCT-7/3x1 differs from that in dim 256, depth 7, heads 4, mlp_dim 512, conv_layers 1. Kernels of 7 go with stride 2.

    Args:
        heads, key_dim: number and width of the attention heads.
        mlp_dim: width of the blocks' MLPs.
        conv_layers, conv_dim: number of convolutions in the tokenizer, and the channels of all but the last.
        kernel_size, stride, padding: of those convolutions, see ``layers.ConvTokenizer``.
        position: add a learned position embedding.
        qkv_bias, activate_output, skip: see ``layers.TransformerBlock``.
    """
    images, x = _images(input_shape, mean, std, 0, depth, dtype)
    positive(conv_layers=conv_layers)
    channels = (conv_dim,) * (conv_layers - 1) + (dim,)
    x = layers.ConvTokenizer(channels, kernel_size, stride, padding=padding, name="stem", dtype=dtype)(x)
    if position:
        x = layers.PositionEmbedding("uniform", name="position", dtype=dtype)(x)
    rates = {"dropout": dropout, "attention_dropout": attention_dropout}
    as_published = {"qkv_bias": qkv_bias, "activate_output": activate_output, "skip": skip}
    block = {"activation": activation, "epsilon": epsilon, "dtype": dtype, **rates, **as_published}
    for i, rate in enumerate(np.linspace(0, stochastic_depth, depth).tolist()):
        x = layers.TransformerBlock(heads, key_dim, mlp_dim, stochastic_depth=rate, name=f"block_{i}", **block)(x)
    x = kernels.LayerNormalization(epsilon=epsilon, name="norm", dtype=dtype)(x)
    x = layers.SequencePooling(name="pool", dtype=dtype)(x)
    return _model(images, x, num_classes, 0.0, name)


def mlp_mixer(
    input_shape=(32, 32, 3),
    num_classes=100,
    *,
    resize=64,
    patch_size=8,
    dim=256,
    depth=4,
    tokens_dim=64,
    channels_dim=64,
    shared_norm=True,
    final_norm=False,
    dropout=0.2,
    head_dropout=0.2,
    activation="gelu",
    epsilon=1e-6,
    mean=0.0,
    std=255.0,
    dtype="float32",
    name="mlp_mixer",
):
    """MLP-Mixer (Tolstikhin et al., "MLP-Mixer: An all-MLP Architecture for Vision", 2021, fig. 1).

    The defaults are the Keras example's: 242,788 parameters. The paper has tokens_dim = dim / 2, channels_dim = 4 dim,
    shared_norm False and final_norm True: 2,248,292 parameters at this size. Its Mixer-S/16 is (224, 224, 3), resize 0,
    patch 16, dim 512, depth 8, tokens_dim 256, channels_dim 2048.

    Args:
        tokens_dim, channels_dim: widths of the blocks' two MLPs, the paper's D_S and D_C.
        shared_norm: see ``layers.MixerBlock``.
    """
    images, x = _images(input_shape, mean, std, resize, depth, dtype)
    x = layers.PatchEmbedding(dim, patch_size, name="stem", dtype=dtype)(x)
    block = {"activation": activation, "dropout": dropout, "shared_norm": shared_norm, "epsilon": epsilon}
    for i in range(depth):
        x = layers.MixerBlock(tokens_dim, channels_dim, name=f"block_{i}", dtype=dtype, **block)(x)
    return _model(images, _mean_pool(x, final_norm, epsilon, dtype), num_classes, head_dropout, name)


def fnet(
    input_shape=(32, 32, 3),
    num_classes=100,
    *,
    resize=64,
    patch_size=8,
    dim=256,
    depth=4,
    hidden_dim=256,
    norm="backward",
    position=True,
    dropout=0.2,
    head_dropout=0.2,
    activation="gelu",
    epsilon=1e-6,
    mean=0.0,
    std=255.0,
    dtype="float32",
    name="fnet",
):
    """FNet on patches (Lee-Thorp et al., "FNet: Mixing Tokens with Fourier Transforms", 2022, fig. 1).

    The defaults are the Keras example's: 621,924 parameters. The paper has hidden_dim = 4 dim and epsilon 1e-12.

    Args:
        hidden_dim: width of the blocks' MLPs.
        norm: of the Fourier transform, see ``layers.FourierMixing``.
        position: add a learned position embedding.
    """
    images, x = _images(input_shape, mean, std, resize, depth, dtype)
    x = layers.PatchEmbedding(dim, patch_size, name="stem", dtype=dtype)(x)
    if position:
        x = layers.PositionEmbedding(name="position", dtype=dtype)(x)
    for i in range(depth):
        x = layers.FNetBlock(hidden_dim, activation, dropout, epsilon, norm, name=f"block_{i}", dtype=dtype)(x)
    return _model(images, _mean_pool(x, False, epsilon, dtype), num_classes, head_dropout, name)


def gmlp(
    input_shape=(32, 32, 3),
    num_classes=100,
    *,
    resize=64,
    patch_size=8,
    dim=256,
    depth=4,
    hidden_dim=512,
    skip="normalized",
    gate_stddev=0.0,
    gate_epsilon=1e-6,
    final_norm=False,
    dropout=0.2,
    head_dropout=0.2,
    activation="gelu",
    epsilon=1e-6,
    mean=0.0,
    std=255.0,
    dtype="float32",
    name="gmlp",
):
    """gMLP (Liu et al., "Pay Attention to MLPs", 2021, fig. 1).

    The defaults are the Keras example's: 885,348 parameters. The paper has hidden_dim = 6 dim, skip "input", a gate
    that starts near zero (in timm gate_stddev 1e-6, gate_epsilon 1e-5) and final_norm True. Its gMLP-S/16, 19,422,656
    parameters, is (224, 224, 3), resize 0, patch 16, dim 256, depth 30, hidden_dim 1536, 1000 classes.

    Args:
        hidden_dim: width of the blocks before the gate halves it.
        skip, gate_stddev, gate_epsilon: see ``layers.GMLPBlock``.
    """
    images, x = _images(input_shape, mean, std, resize, depth, dtype)
    x = layers.PatchEmbedding(dim, patch_size, name="stem", dtype=dtype)(x)
    for i in range(depth):
        x = layers.GMLPBlock(
            hidden_dim, activation, dropout, skip, gate_stddev, gate_epsilon, epsilon, name=f"block_{i}", dtype=dtype
        )(x)
    return _model(images, _mean_pool(x, final_norm, epsilon, dtype), num_classes, head_dropout, name)


def vit(
    input_shape=(32, 32, 3),
    num_classes=10,
    *,
    patch_size=4,
    dim=128,
    depth=4,
    heads=4,
    mlp_dim=256,
    pool="token",
    dropout=0.1,
    attention_dropout=0.0,
    stochastic_depth=0.0,
    activation="gelu",
    epsilon=1e-6,
    mean=0.0,
    std=255.0,
    dtype="float32",
    name="vit",
):
    """Vision Transformer (Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021, fig. 1).

    The defaults are of this project's other models' size; the head starts near zero, as in timm. The paper has
    mlp_dim = 4 dim; ViT-B/16, 86,567,656 parameters with a head for 1000 classes, is (224, 224, 3), patch 16, dim 768,
    depth 12, heads 12, mlp_dim 3072.

    Args:
        heads: number of attention heads; must divide dim.
        mlp_dim: width of the blocks' MLPs.
        pool: "token", the class token's output, as in the paper; or "mean", the mean over normalised
            tokens, without the token (timm's fc_norm=False).
        dropout: after the position embedding, too.
    """
    if not isinstance(heads, int) or heads < 1 or dim % heads:
        raise ValueError(f"`heads` must divide `dim`. Received: heads={heads!r}, dim={dim!r}")
    one_of(("token", "mean"), pool=pool)
    images, x = _images(input_shape, mean, std, 0, depth, dtype)
    x = layers.PatchEmbedding(dim, patch_size, name="stem", dtype=dtype)(x)
    if pool == "token":
        x = layers.ClassToken(name="token", dtype=dtype)(x)
    x = layers.PositionEmbedding("uniform", name="position", dtype=dtype)(x)
    x = keras.layers.Dropout(dropout, name="drop", dtype=dtype)(x)
    block = {"activation": activation, "dropout": dropout, "attention_dropout": attention_dropout, "epsilon": epsilon}
    for i, rate in enumerate(np.linspace(0, stochastic_depth, depth).tolist()):
        block |= {"stochastic_depth": rate, "name": f"block_{i}", "dtype": dtype}
        x = layers.TransformerBlock(heads, dim // heads, mlp_dim, **block)(x)
    if pool == "mean":
        x = _mean_pool(x, True, epsilon, dtype)
    else:
        x = kernels.LayerNormalization(epsilon=epsilon, name="norm", dtype=dtype)(x)
        x = layers.TokenPooling(name="pool", dtype=dtype)(x)
    return _model(images, x, num_classes, 0.0, name, keras.initializers.TruncatedNormal(stddev=0.02))


def _images(input_shape, mean, std, resize, depth, dtype):
    """The input, and the images as the first layer sees them."""
    positive(depth=depth)
    images = keras.Input(input_shape, name="images")
    mean, std = np.broadcast_arrays(np.asarray(mean, float), np.asarray(std, float))
    if not (std > 0).all():
        raise ValueError(f"`std` must be above zero. Received: std={std.tolist()}")
    x = keras.layers.Rescaling((1 / std).tolist(), (-mean / std).tolist(), name="rescale", dtype=dtype)(images)
    if resize:
        x = keras.layers.Resizing(resize, resize, name="resize", dtype=dtype)(x)
    return images, x


def _mean_pool(x, norm, epsilon, dtype):
    """The mean over tokens, after a LayerNorm if wanted."""
    if norm:
        x = kernels.LayerNormalization(epsilon=epsilon, name="norm", dtype=dtype)(x)
    return keras.layers.GlobalAveragePooling1D(name="pool", dtype=dtype)(x)


def _model(images, x, num_classes, dropout, name, head_initializer="glorot_uniform"):
    """The model that ends in a linear head."""
    if dropout:
        x = keras.layers.Dropout(dropout, name="head_drop")(x)
    head = keras.layers.Dense(num_classes, kernel_initializer=head_initializer, name="head", dtype="float32")
    logits = head(x)
    return keras.Model(images, logits, name=name)
