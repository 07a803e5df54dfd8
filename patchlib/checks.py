"""Checks that every notebook makes of its own run. Each raises ``AssertionError`` with the numbers that disagree.

They hold for every recipe and all data that the library accepts; what depends on luck is printed instead, as yes or no.
"""

import textwrap

import numpy as np

from patchlib import networks, optimizers, reference, surgery, training
from patchlib.backend import keras
from patchlib.data import Data, Split
from patchlib.parameters import Recipe


def layer(layer: keras.layers.Layer, x: np.ndarray, definition, *arguments, tolerance: float = 1e-5) -> None:
    """A layer equals its definition of ``patchlib.reference``, for random weights: ``definition(x, weights, ...)``."""
    with keras.device("cpu"):  # an accelerator would round what goes into matrix products
        layer.build(x.shape)
        expected = definition(x.astype("float64"), reference.randomize(layer), *arguments)
        found, name = keras.ops.convert_to_numpy(layer(x)), type(layer).__name__
    assert found.shape == expected.shape, f"{name} gives {found.shape}, its definition {expected.shape}"
    apart = np.abs(found - expected).max()
    assert np.allclose(found, expected, tolerance, tolerance), (
        f"{name} differs from its definition by up to {apart:.3g}"
    )
    print(f"{name}: {x.shape} -> {expected.shape}, equal to its definition within {tolerance}")


def parameters(model: keras.Model, formula: int) -> None:
    """The model has as many parameters as a formula counts."""
    counted = model.count_params()
    assert counted == formula, f"the model has {counted:,} parameters, the formula counts {formula:,}"
    print(f"{counted:,} parameters, as the formula counts them")


def augmented(image: np.ndarray, pad: int) -> None:
    """Training's crop moves an image by every number of pixels up to ``pad`` each way, and its flip mirrors it.

    Args:
        image: uint8 (H, W, 3); a batch as training sees it is made of copies of it.
        pad: pixels, above 0.
    """
    (height, width, _), ways = image.shape, range(2 * pad + 1)
    canvas = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    windows = {hash(canvas[y : y + height, x : x + width].tobytes()): (y, x) for y in ways for x in ways}
    moves = {windows.get(hash(drawn.tobytes())) for drawn in _drawn(image, 32 * len(ways), pad=pad, flip=False)}
    assert None not in moves, f"some crops of an image padded by {pad} pixels aren't the image at any shift"
    for axis, name in enumerate(("vertical", "horizontal")):
        found, wanted = ({move[axis] for move in some if move} for some in (moves, windows.values()))
        assert found == wanted, f"{len(found)} of {len(wanted)} {name} shifts of up to {pad} pixels occur"
    both = {image.tobytes(), image[:, ::-1].tobytes()}
    flipped = {drawn.tobytes() for drawn in _drawn(image, 64, pad=0, flip=True)}
    assert flipped == both, f"flipping makes {len(flipped)} pictures of one, not just itself and its mirror image"
    print(f"every shift of up to {pad} pixels occurs, and so do an image and its mirror image")


def _drawn(image, count, **recipe):
    """The images of an epoch of batches, made of so many copies of one."""
    copies = Split(np.broadcast_to(image, (count, *image.shape)), np.zeros(count, int))
    for images, _ in training.Batches(copies, 1, Recipe(batch_size=32, **recipe), epoch=0):
        yield from images


def untrained(model: keras.Model, data: Data, mean=0.0, std=255.0) -> None:
    """Pixels enter as (pixel - mean) / std. Says whether an untrained model's loss is that of guessing, ln(classes).

    The loss is averaged over all classes as the answer, so that a few images' labels don't decide.
    """
    images, mean, std = data.train.images[:256], np.array(mean), np.array(std)
    seen = keras.ops.convert_to_numpy(surgery.intermediates(model)(images[:16])["rescale"]).astype("float32")
    tolerance = (1e-6 if model.get_layer("rescale").compute_dtype == "float32" else 0.02) * (255 / std).max()
    np.testing.assert_allclose(seen, (images[:16] - mean) / std, atol=tolerance)
    # Said outright, for Keras' Resizing would switch dropout on in the layers after it.
    shares = keras.ops.convert_to_numpy(keras.ops.log_softmax(model(images, training=False)))
    loss, guessing = -shares.mean(), np.log(data.num_classes)
    assert np.isfinite(loss), f"the untrained loss is {loss}"
    print(f"the untrained loss is within 1 of guessing's, {guessing:.2f}:", "yes" if loss < guessing + 1 else "no")


def recipe(model: keras.Model, data: Data, parameters: Recipe) -> None:
    """Print the recipe as it was compiled: read back from the model, its optimiser and its batches."""
    batches = training.Batches(data.train, data.num_classes, parameters, epoch=0)
    for row in optimizers.updates(model):
        decay = f"decay {row['decay']:g}" if row["decay"] else "no decay"
        print(f"{row['rule']} at {row['rate']:g} of the rate, {decay}, for {len(row['weights'])} weights:")
        print("   ", textwrap.shorten(", ".join(row["weights"]), 100, placeholder=" ..."))
    total = parameters.epochs * len(batches)
    rates = optimizers.rates(model, [share * (total - 1) // 4 for share in range(5)])
    print("learning rate at steps", ", ".join(f"{step}: {rate:.3g}" for step, rate in rates.items()))
    print(f"an epoch: {len(batches)} steps of {batches.batch_size} images")
    print(f"loss: {type(model.loss).__name__}, label smoothing {model.loss.label_smoothing}")
    dropped = [words for layer in model.layers for words in _dropouts(layer, layer.name)]
    print("dropped in training:", ", ".join(dropped) or "nothing")
    print("each image:", batches.augment)
    if batches.mirrored_first is not None:
        print("mirrored in every second epoch")
    if parameters.start_size:
        print("pixels a side, epoch by epoch:", *training.sides(data.train, parameters))
    if parameters.init_from:
        print("the weights start from", parameters.init_from)
    elif parameters.whiten:
        print("the first layer starts from whitened patches")
    print("each batch:", batches.mix)


def _dropouts(layer, path):
    """The path and rate of each layer in this one that drops something, in words."""
    own = [f"{path} {layer.rate:g}"] if getattr(layer, "rate", 0) else []
    return own + [words for part in layer._layers for words in _dropouts(part, f"{path}/{part.name}")]


def trained(model: keras.Model, data: Data, card: dict) -> None:
    """The model at hand is the one that its card speaks of, chosen by validation. Says whether the run learned."""
    history, metrics = card["history"], card["metrics"]
    learned = history["loss"][-1] < np.log(data.num_classes) / 2
    print("the training loss fell below half of guessing's:", "yes" if learned else "no")
    logits = model.predict(data.validation.images, verbose=0)
    counted = (logits.argmax(axis=1) == data.validation.labels).mean()
    second, first = np.sort(logits)[:, -2:].T
    undecided = (first - second < _tolerance(model, logits)).mean()  # in other batches, other classes may win there
    assert abs(counted - metrics["val_accuracy"]) <= undecided + 1e-6, (
        f"the model's validation accuracy is {counted:.4f}, its card's {metrics['val_accuracy']:.4f}"
    )
    if card["parameters"]["select_by"] == "val_accuracy":
        whole = zip(history["val_accuracy"], history["side"], strict=True)
        best = max(accuracy for accuracy, side in whole if side == history["side"][-1])
        assert metrics["val_accuracy"] == best, f"the card's accuracy is {metrics['val_accuracy']}, the best {best}"
    print("the model at hand has the card's validation accuracy")


def saved(model: keras.Model, data: Data, path) -> None:
    """The saved model gives the same logits."""
    loaded, images = networks.load_model(path), data.test.images[:16]
    logits = model.predict(images, verbose=0)
    np.testing.assert_allclose(loaded.predict(images, verbose=0), logits, atol=_tolerance(model, logits))
    print("the saved model gives the same logits")


def _tolerance(model, logits):
    """How far logits may lie apart that were computed in another order: a thousand roundings of the largest, or ten."""
    exact = model.get_layer("rescale").compute_dtype == "float32"
    return (1e-4 if exact else 0.04) * max(1, np.abs(logits).max())
