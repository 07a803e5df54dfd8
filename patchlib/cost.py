"""What the architectures cost: parameters and multiply-adds, of what mixes space and of what mixes channels."""

import numpy as np

from patchlib import markdown, models
from patchlib.backend import keras

# Who mixes space and who mixes channels, in words.
_MIXERS = {
    models.convmixer: ("depthwise convolution", "pointwise convolution"),
    models.cct: ("attention, convolutions in the tokenizer", "MLP"),
    models.mlp_mixer: ("MLP over positions, the same for every image", "MLP"),
    models.fnet: ("Fourier transform, no weights", "the same transform, MLP"),
    models.gmlp: ("one matrix over positions, as a gate", "linear layers around the gate"),
    models.vit: ("attention", "MLP"),
}


def of(model: keras.Model) -> dict[str, dict[str, int]]:
    """Trainable parameters, and multiply-adds for one image, of what mixes "space" and of the rest, "channels".

    A part that lets positions talk to each other counts as mixing space with all it has: attention with projections, a
    convolution larger than 1 x 1, a Fourier transform. Norms, activations and resizing count no multiply-adds.
    """
    parameters, multiply_adds = {"space": 0, "channels": 0}, {"space": 0, "channels": 0}
    for layer in model.layers:
        spatial = getattr(layer, "mixes_space", ())
        for weight in layer.trainable_weights:
            part = weight.path.split(f"{layer.name}/", 1)[-1]
            mixes = "space" if part.startswith(spatial) else "channels"
            parameters[mixes] += int(np.prod(weight.shape))
        if hasattr(layer, "multiply_adds"):
            for mixes, count in layer.multiply_adds(layer.input.shape).items():
                multiply_adds[mixes] += count
        elif isinstance(layer, keras.layers.Dense):
            multiply_adds["channels"] += int(np.prod(layer.kernel.shape))
    return {"parameters": parameters, "multiply_adds": multiply_adds}


def table(highlight: str = "") -> str:
    """All six at their defaults as a Markdown table: who mixes space, who mixes channels, and at what cost."""
    rows = []
    for build, mixers in _MIXERS.items():
        counted, mark = of(build()), "**" if build.__name__ == highlight else ""
        numbers = [f"{counted[what][mixes]:,}" for what in counted for mixes in ("space", "channels")]
        rows.append([f"{mark}{build.__name__}{mark}", *mixers, *numbers])
    numbers = ["parameters: space", "channels", "multiply-adds: space", "channels"]
    return markdown.table(["", "mixes space", "mixes channels", *numbers], rows)


def audit(build, steps: dict[str, dict]) -> str:
    """Trainable parameters as a Markdown table, one changed argument after the other.

    Args:
        build: a builder of ``patchlib.models``.
        steps: words for each step, and the arguments that it changes; they add up.
    """
    arguments, rows, before = {}, [], None
    for words, changes in steps.items():
        arguments |= changes
        count = sum(of(build(**arguments))["parameters"].values())
        rows.append([words, f"{count:,}", "" if before is None else f"{count - before:+,}"])
        before = count
    return markdown.table(["", "parameters", "difference"], rows)
