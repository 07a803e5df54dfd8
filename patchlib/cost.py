"""What the architectures cost: parameters and multiply-adds, of what mixes space and of what mixes channels."""

import numpy as np

from patchlib import markdown, models
from patchlib.backend import keras
from patchlib.parameters import ARCHITECTURES


def of(model: keras.Model) -> dict[str, dict[str, int]]:
    """Trainable parameters, and multiply-adds for one image, of what mixes "space" and of the rest, "channels".

    A part that lets positions talk to each other counts as mixing space with all it has: attention with projections, a
    convolution whose windows overlap, a Fourier transform. Norms, activations and resizing count no multiply-adds.
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


_KEY = (
    "*Trainable parameters, and multiply-adds for one image. Space has whatever lets positions meet, with all of its "
    "weights and its norm, so attention with its projections; position embeddings and class token are in the rest.*"
)


def table(highlight: str) -> str:
    """All architectures at their defaults as a Markdown table, with a key: who mixes space and channels, at what cost.

    Raises:
        KeyError: there's no architecture of the name to highlight.
    """
    rows = {}
    for name, schema in ARCHITECTURES.items():
        counted = of(getattr(models, name)())
        numbers = [f"{counted[what][mixes]:,}" for what in counted for mixes in ("space", "channels")]
        rows[name] = [name, *schema.mixers, *numbers]
    rows[highlight][0] = f"**{highlight}**"
    numbers = ["parameters: space", "the rest", "multiply-adds: space", "the rest"]
    table = markdown.table(["", "mixes space", "mixes channels", *numbers], list(rows.values()))
    return f"{table}\n\n{_KEY}"


def audit(build, steps: dict[str, dict]) -> str:
    """Trainable parameters as a Markdown table, one changed argument after the other.

    Args:
        build: a builder of ``patchlib.models``.
        steps: words for each step, and the arguments that it changes; they add up.
    """
    arguments: dict = {}
    rows, before = [], None
    for words, changes in steps.items():
        arguments |= changes
        count = sum(of(build(**arguments))["parameters"].values())
        rows.append([words, f"{count:,}", "" if before is None else f"{count - before:+,}"])
        before = count
    return markdown.table(["", "parameters", "difference"], rows)
