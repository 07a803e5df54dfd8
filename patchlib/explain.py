"""What a trained network's blocks do with their patches."""

import numpy as np

from patchlib.backend import keras


def influence(model: keras.Model, images, block: str = "block_0", directions: int = 8, seed: int = 0) -> np.ndarray:
    """Who hears whom: how much a block's output at each position changes with its input at each other one.

    Entry [n, i, j] is the root of the mean, over random unit directions u of position j's vector, of
    ‖∂ output_i / ∂ input_j · u‖²: the Frobenius norm of that Jacobian over the root of the vectors' width. Derivatives
    are central differences with a step of a hundredth of the input's deviation, for which the block should compute in
    float32.

    Args:
        model: with a layer named ``block`` from positions to as many positions.
        images: (N, height, width, channels), 0 to 255.
        block: name of the layer.
        directions: how many random ones to average over.
        seed: of the directions.

    Returns:
        float32 (N, positions, positions), positions row by row, a class token first if there's one.
    """
    layer = model.get_layer(block)
    inputs = keras.ops.convert_to_numpy(keras.Model(model.input, layer.input)(images)).astype("float32")
    *_, width = shape = inputs.shape[1:]
    positions = int(np.prod(shape[:-1]))
    rng = np.random.default_rng(seed)
    found = np.zeros((len(inputs), positions, positions), "float32")
    for n, tokens in enumerate(inputs.reshape(len(inputs), positions, width)):
        step = 0.01 * tokens.std()
        for _ in range(directions):
            unit = rng.normal(size=width).astype("float32")
            unit /= np.linalg.norm(unit)
            changes = step * np.eye(positions, dtype="float32")[:, :, None] * unit  # at one position each
            up, down = (
                keras.ops.convert_to_numpy(layer((tokens + sign * changes).reshape(-1, *shape), training=False))
                for sign in (1, -1)
            )
            answers = (up - down).reshape(positions, positions, -1).astype("float32") / (2 * step)
            found[n] += (answers**2).sum(axis=-1).T
    return np.sqrt(found / directions)
