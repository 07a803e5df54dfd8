"""Checks that every notebook makes of its own run. Each raises ``AssertionError`` with the numbers that disagree."""

import textwrap

import keras
import numpy as np

from patchlib import models, reference, training
from patchlib.data import Data
from patchlib.parameters import Recipe


def layer(layer: keras.layers.Layer, x: np.ndarray, definition, *arguments, tolerance: float = 1e-5) -> None:
    """A layer equals its definition of ``patchlib.reference``, for random weights: ``definition(x, weights, ...)``."""
    layer.build(x.shape)
    expected = definition(x.astype("float64"), reference.randomize(layer), *arguments)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer(x)), expected, rtol=tolerance, atol=tolerance)
    print(f"{type(layer).__name__}: {x.shape} -> {expected.shape}, equal to its definition within {tolerance}")


def untrained(model: keras.Model, data: Data, mean=0.0, std=255.0) -> None:
    """Pixels enter as (pixel - mean) / std, and an untrained model's loss is within 1 of guessing's, ln(classes)."""
    images, labels = data.train.images[:256], data.train.labels[:256]
    seen = keras.ops.convert_to_numpy(models.intermediates(model)(images[:16])["rescale"]).astype("float32")
    tolerance = 1e-5 if model.get_layer("rescale").compute_dtype == "float32" else 0.05
    np.testing.assert_allclose(seen, (images[:16] - np.array(mean)) / np.array(std), atol=tolerance)
    logits = keras.ops.convert_to_numpy(model(images))
    loss = float(keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, logits))
    guessing = np.log(data.num_classes)
    assert abs(loss - guessing) < 1, f"the untrained loss is {loss:.2f}, guessing gives {guessing:.2f}"
    print(f"the untrained loss is near that of guessing, {guessing:.2f}")


def recipe(model: keras.Model, data: Data, parameters: Recipe) -> None:
    """Print the recipe as it was compiled: read back from the model, its optimiser and its batches."""
    batches = training.Batches(data.train, data.num_classes, parameters, epoch=0)
    for row in training.updates(model):
        decay = f"decay {row['decay']:g}" if row["decay"] else "no decay"
        print(f"{row['rule']} at {row['rate']:g} of the rate, {decay}, for {len(row['weights'])} weights:")
        print("   ", textwrap.shorten(", ".join(row["weights"]), 100, placeholder=" ..."))
    total = parameters.epochs * len(batches)
    rates = training.rates(model, [share * (total - 1) // 4 for share in range(5)])
    print("learning rate at steps", ", ".join(f"{step}: {rate:.4g}" for step, rate in rates.items()))
    print(f"an epoch: {len(batches)} steps of {batches.batch_size} images")
    print(f"loss: {type(model.loss).__name__}, label smoothing {model.loss.label_smoothing}")
    dropped = [words for layer in model.layers for words in _dropouts(layer, layer.name)]
    print("dropped in training:", ", ".join(dropped) or "nothing")
    print("each image:", batches.augment)
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
    tolerance = 1e-6 if card["parameters"]["precision"] == "float32" else 0.01
    np.testing.assert_allclose(counted, metrics["val_accuracy"], atol=tolerance)
    if card["parameters"]["select_by"] == "val_accuracy":
        assert metrics["val_accuracy"] == max(history["val_accuracy"])
    print("the model at hand has the card's validation accuracy")


def saved(model: keras.Model, data: Data, path) -> None:
    """The saved model gives the same logits."""
    loaded, images = keras.saving.load_model(path), data.test.images[:16]
    np.testing.assert_allclose(loaded.predict(images, verbose=0), model.predict(images, verbose=0), atol=1e-5)
    print("the saved model gives the same logits")
