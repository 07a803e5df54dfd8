"""Patch layers and mixing blocks: registered, so that a saved model loads without ``custom_objects``.

Every layer builds its parts with its own dtype policy, returns its whole configuration from ``get_config``, and counts
its multiply-adds for one image, apart for the mixing of space and of channels.
"""

from patchlib.layers.attention import SelfAttention, SequencePooling, TransformerBlock
from patchlib.layers.convolution import ConvMixerBlock, ConvStem
from patchlib.layers.fourier import FNetBlock, FourierMixing
from patchlib.layers.gating import GMLPBlock, SpatialGatingUnit
from patchlib.layers.kernels import gelu_tanh
from patchlib.layers.mlp import MLP, MixerBlock
from patchlib.layers.patches import ClassToken, ConvTokenizer, PatchEmbedding, PositionEmbedding, TokenPooling
from patchlib.layers.regularization import StochasticDepth

__all__ = [
    "MLP",
    "ClassToken",
    "ConvMixerBlock",
    "ConvStem",
    "ConvTokenizer",
    "FNetBlock",
    "FourierMixing",
    "GMLPBlock",
    "MixerBlock",
    "PatchEmbedding",
    "PositionEmbedding",
    "SelfAttention",
    "SequencePooling",
    "SpatialGatingUnit",
    "StochasticDepth",
    "TokenPooling",
    "TransformerBlock",
    "gelu_tanh",
]
