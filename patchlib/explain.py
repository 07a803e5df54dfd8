"""What a trained network's blocks do with their patches, and what it's worth without some of them."""

import numpy as np

from patchlib import markdown, surgery, training
from patchlib.backend import keras
from patchlib.data import Split

# For each kind of block the weights without which its positions no longer meet, or else it loses its MLP.
_MEETING = {
    "ConvMixerBlock": ("depthwise_norm/gamma", "depthwise_norm/beta"),
    "TransformerBlock": ("attention/output",),
    "MixerBlock": ("tokens/project",),
    "GMLPBlock": ("spatial/gate/kernel",),
}


def influence(model: keras.Model, images, block: str = "block_0", directions: int = 8, seed: int = 0) -> np.ndarray:
    """Who hears whom: how much a block's output at each position changes with its input at each other one.

    Entry [n, i, j] is the root of the mean, over random unit directions u of position j's vector, of
    ‖∂ output_i / ∂ input_j · u‖²: the Frobenius norm of that Jacobian over the root of the vectors' width. Derivatives
    are central differences with a step of a hundredth of the input's deviation, computed in float32.

    Args:
        model: with a layer named ``block`` from positions to as many positions.
        images: (N, height, width, channels), 0 to 255.
        block: name of the layer.
        directions: how many random ones to average over, the same for every position and image.
        seed: of the directions.

    Returns:
        float32 (N, positions, positions), positions row by row, without a class token.
    """
    with surgery.exactly(model) as model:
        layer, token = model.get_layer(block), int("token" in {part.name for part in model.layers})
        inputs = keras.ops.convert_to_numpy(keras.Model(model.inputs[0], layer.input)(images)).astype("float32")
        *_, width = shape = inputs.shape[1:]
        count = int(np.prod(shape[:-1]))
        units = np.random.default_rng(seed).normal(size=(directions, width)).astype("float32")
        units /= np.linalg.norm(units, axis=1, keepdims=True)
        found = np.zeros((len(inputs), count, count), "float32")
        parts = np.array_split(np.arange(count), max(1, count // 64))  # so that memory doesn't grow with both
        for n, tokens in enumerate(inputs.reshape(len(inputs), count, width)):
            step = 0.01 * tokens.std()
            for unit in units:
                for part in parts:
                    changes = np.zeros((len(part), count, width), "float32")  # at one position each
                    changes[np.arange(len(part)), part] = step * unit
                    up, down = (
                        keras.ops.convert_to_numpy(layer((tokens + sign * changes).reshape(-1, *shape), training=False))
                        for sign in (1, -1)
                    )
                    answers = (up - down).reshape(len(part), count, -1).astype("float32") / (2 * step)
                    found[n][:, part] += (answers**2).sum(axis=-1).T
    return np.sqrt(found / directions)[:, token:, token:]


def reach(model: keras.Model, image, step: float = 1.0) -> dict[str, np.ndarray]:
    """How far a change of the middle patch's pixels has come after the stem and after each block, in float32.

    Args:
        model: one of ``patchlib.models`` whose blocks keep a grid (rows, columns) of positions.
        image: (height, width, channels), 0 to 255.
        step: by how much the pixels of the middle patch change.

    Returns:
        {layer's name: float32 (rows, columns), the length of the change of each position's vector}. Where it can't have
        come it's 0, or as small as rounding is.
    """
    names = ["stem", *_blocks(model)]
    changed = np.array(image, "float32")
    changed[_middle(model, changed.shape)] += step
    with surgery.exactly(model) as model:
        # One by one: two images of a batch may be rounded differently where they are the same.
        before, after = (surgery.intermediates(model)(pixels[None]) for pixels in (np.array(image, "float32"), changed))
    return {name: np.linalg.norm(_array(after[name] - before[name])[0], axis=-1) for name in names}


def reached(model: keras.Model, image) -> dict[str, np.ndarray]:
    """Which positions the middle patch can reach by the stem and by each block, however small its part in them.

    Layer by layer, the input of every position that was reached by then is changed by a hundred times its deviation. An
    output is reached if it changes by more than a hundred thousandth of the longest one, some hundred roundings: one
    change alone, followed through all layers, would be lost in them.

    Args:
        model: one of ``patchlib.models`` whose blocks keep a grid (rows, columns) of positions.
        image: (height, width, channels), 0 to 255.

    Returns:
        {layer's name: bool (rows, columns)}.
    """
    found, rng = {}, np.random.default_rng(0)
    with surgery.exactly(model) as model:
        inputs = {name: model.get_layer(name).input for name in ["stem", *_blocks(model)]}
        there = np.zeros(model.input_shape[1:3], bool)
        there[_middle(model, there.shape)] = True
        for name, x in keras.Model(model.inputs[0], inputs)(np.array(image, "float32")[None]).items():
            x, layer = _array(x), model.get_layer(name)
            change = 100 * (x.std() or 1) * rng.normal(size=x.shape) * there[..., None]
            before, after = (_array(layer(pixels.astype("float32"), training=False))[0] for pixels in (x, x + change))
            lengths = np.linalg.norm(before, axis=-1)
            found[name] = there = np.linalg.norm(after - before, axis=-1) > 1e-5 * lengths.max()
    return found


def _blocks(model):
    return [layer.name for layer in model.layers if layer.name.startswith("block_")]


def _middle(model, shape):
    """The pixels of the middle patch, of images of this shape."""
    size = model.get_layer("stem").patch_size
    return tuple(slice(side // 2 // size * size, (side // 2 // size + 1) * size) for side in shape[:2])


def _array(x):
    return keras.ops.convert_to_numpy(x).astype("float32")


def lesions(model: keras.Model) -> dict[str, tuple[str, ...]]:
    """What a model of ``patchlib.models`` can be tried without, by name: the weights to set to zero, for ``lesion``.

    In each block, and in all at once, that's what lets positions meet; of FNet, whose transform has no weights, each
    block's MLP. Then the position embedding and the vote of sequence pooling, where there are such.
    """
    blocks = [model.get_layer(name) for name in _blocks(model)]
    parts = [
        tuple(f"{block.name}/{path}" for path in _MEETING.get(type(block).__name__, ("mlp/",))) for block in blocks
    ]
    what = "mixing of space" if type(blocks[0]).__name__ in _MEETING else "MLP"
    found = {f"{block.name}: {what}": part for block, part in zip(blocks, parts, strict=True)}
    found[f"all blocks: {what}"] = sum(parts, ())
    weights = {weight.path for weight in model.weights}
    if "position/table" in weights:
        found["position embedding"] = ("position/table",)
    if any(path.startswith("pool/score") for path in weights):
        found["vote, for the mean"] = ("pool/score",)
    return found


def lesion(model: keras.Model, split: Split) -> list[dict]:
    """Accuracy without each of ``lesions``; nothing is trained again, so it says what the rest relied on.

    Returns:
        Rows with ``without``, ``accuracy`` (both of the whole network first), ``difference`` from it, and its
        ``standard_error``: about how far it would move with other images.
    """
    whole = _right(model, split)
    rows = [{"without": "nothing", "accuracy": whole.mean(), "difference": 0.0, "standard_error": 0.0}]
    for name, paths in lesions(model).items():
        with surgery.without(model, *paths):
            left = _right(model, split)
        change = left - whole
        error = change.std() / len(split) ** 0.5
        rows.append({"without": name, "accuracy": left.mean(), "difference": change.mean(), "standard_error": error})
    return [{key: value if key == "without" else float(value) for key, value in row.items()} for row in rows]


def _right(model, split):
    return (training.logits(model, split).argmax(axis=1) == split.labels).astype(float)


def lesion_table(found: dict[str, list[dict]]) -> str:
    """The rows of ``lesion`` of one or several networks, by name, as Markdown."""
    names = dict.fromkeys(row["without"] for rows in sorted(found.values(), key=len, reverse=True) for row in rows)
    cells = {
        (name, row["without"]): f"{row['accuracy']:.3f} ({row['difference']:.3f} ± {row['standard_error']:.3f})"
        for name, rows in found.items()
        for row in rows
    }
    rows = [[without, *(cells.get((name, without), "") for name in found)] for without in names]
    return markdown.table(["left out", *(f"{name}: accuracy (difference)" for name in found)], rows)
