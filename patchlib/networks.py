"""Trained networks as files: a Keras model with its run card inside.

A ``.keras`` file is a zip archive of which Keras reads its own members and leaves others alone. So the card, with the
names of the classes, travels with the weights, and ``keras.saving.load_model`` still loads what lies here.
"""

import json
import os
import zipfile
from pathlib import Path

import numpy as np

from patchlib import layers  # noqa: F401, registers the layers with Keras
from patchlib.backend import keras
from patchlib.cards import CARD, MODEL
from patchlib.data import Data
from patchlib.files import user_path
from patchlib.parameters import shown

PUBLISHED = Path(__file__).parents[1] / "results" / "weights"


def save(model: keras.Model, card: dict, path: str | os.PathLike) -> None:
    """Save a model, uncompiled, and its run card into a ``.keras`` file."""
    bare = keras.Model(model.inputs, model.outputs, name=model.name)  # compiled, loading would need the schedule
    bare.save(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(CARD, json.dumps(card))


def load_model(source: str | os.PathLike) -> keras.Model:
    """A trained model: a published one by its name, a run's by its folder, or any in a ``.keras`` file.

    Args:
        source: a name of ``published()`` such as "cct-cifar10", a folder, or a file.

    Returns:
        The model, from images 0 to 255 to logits, uncompiled. ``model.card`` is its run card, with the names of the
        classes under ``["dataset"]["classes"]``, or None if the file has none.

    Raises:
        ValueError: there is no such network, or the file isn't a Keras model.
    """
    path = user_path(source)
    if str(source) in published():
        path = PUBLISHED / f"{source}.keras"
    elif path.is_dir():
        path = path / MODEL
    if not path.exists():
        names = f"a trained network ({', '.join(published())}), " if published() else ""
        raise ValueError(f"no model: received {shown(str(source))}, accepted: {names}a run's folder or a .keras file.")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} isn't a Keras model: no zip archive.")
    model = keras.saving.load_model(path, compile=False)
    with zipfile.ZipFile(path) as archive:
        model.card = json.loads(archive.read(CARD)) if CARD in archive.namelist() else None
    return model


def start_from(model: keras.Model, source: str | os.PathLike, data: Data) -> None:
    """Give a model the weights of a trained one, as ``load_model`` takes it, before it's trained further.

    Where the classes are others, the head is new. It starts as a linear probe, a logistic regression from what the
    trained network makes of the training images to their classes: a random one would at first spoil what the network
    knows (Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", 2022,
    section 3.4).

    Raises:
        ValueError: there's no such network, or it has other layers or sizes than the model.
    """
    known, head = load_model(source), model.get_layer("head")
    same = known.card is not None and known.card["dataset"].get("classes") == list(data.classes)
    pairs = [_sizes(model, same), _sizes(known, same)]
    if changed := [path for path in pairs[0] | pairs[1] if pairs[0].get(path) != pairs[1].get(path)]:
        there, here = (sizes.get(changed[0], "missing") for sizes in reversed(pairs))
        raise ValueError(
            f"init_from: {source} doesn't fit the model, {changed[0]} is {there} there and {here} here; accepted: a "
            "network of the same architecture, sizes and image_size."
        )
    for layer in model.layers:
        if same or layer is not head:
            layer.set_weights(known.get_layer(layer.name).get_weights())
    if not same:
        _probe(keras.Model(model.inputs, head.input), head, data.train)


def _sizes(model, with_head):
    return {w.path: w.shape for w in model.weights if with_head or not w.path.startswith("head/")}


def _probe(features, head, train):
    from sklearn.linear_model import LogisticRegression  # here, because scikit-learn takes a second to import

    probe = LogisticRegression(max_iter=1000).fit(features.predict(train.images, verbose=0), train.labels)
    kernel, bias = (np.zeros(weight.shape) for weight in head.get_weights())
    # Of two classes scikit-learn has the second one's numbers alone.
    kernel[:, probe.classes_[-len(probe.coef_) :]] = probe.coef_.T
    bias[probe.classes_[-len(probe.coef_) :]] = probe.intercept_
    head.set_weights([kernel, bias])


def published() -> list[str]:
    """The names of the trained networks that come with the project's checkout."""
    return sorted(path.stem for path in PUBLISHED.glob("*.keras"))
