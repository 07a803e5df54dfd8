"""What all layers share: checked arguments, and a configuration made of them."""

import inspect

from patchlib.backend import keras
from patchlib.layers import kernels


class Block(keras.layers.Layer):
    """A layer that keeps each constructor argument as an attribute of the same name, and so knows its configuration."""

    fixed_positions = False  # whether it has weights for each position, and so takes no other number of tokens

    def __init__(self, **kwargs):  # for layers without arguments of their own
        super().__init__(**kwargs)

    def get_config(self):
        arguments = set(inspect.signature(type(self).__init__).parameters) - {"self", "kwargs"}
        return super().get_config() | {name: _plain(getattr(self, name)) for name in sorted(arguments)}

    def compute_output_shape(self, input_shape):
        return input_shape

    def multiply_adds(self, input_shape):
        """Multiply-adds for one image, of what mixes space and of the rest; none unless a layer says so."""
        return {"space": 0, "channels": 0}


def _plain(value):
    if isinstance(value, keras.initializers.Initializer):
        return keras.initializers.serialize(value)
    if value is kernels.gelu:
        return "gelu"
    return keras.activations.serialize(value) if callable(value) else value


def positive(**values: int) -> None:
    """Refuse anything but positive integers."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")


def fraction(**values: float) -> None:
    """Refuse anything but rates from 0 up to, not including, 1."""
    for name, value in values.items():
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise ValueError(f"`{name}` must be at least 0 and less than 1. Received: {name}={value!r}")


def one_of(accepted: tuple, **values) -> None:
    """Refuse anything but the given words."""
    for name, value in values.items():
        if value not in accepted:
            raise ValueError(f"`{name}` must be one of {', '.join(map(repr, accepted))}. Received: {name}={value!r}")


def tiles(patch_size: int, height: int, width: int) -> None:
    """Refuse patches that don't tile the image."""
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"`patch_size` must divide the image. Received: patch_size={patch_size}, image of {height} x {width} pixels"
        )
