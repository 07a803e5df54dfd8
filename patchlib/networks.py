"""Trained networks as files: a Keras model with its run card inside.

A ``.keras`` file is a zip archive of which Keras reads its own members and leaves others alone. So the card, with the
names of the classes, travels with the weights, and ``keras.saving.load_model`` still loads what lies here.
"""

import json
import math
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from patchlib import cards
from patchlib.cards import CARD, MODEL
from patchlib.data import Data
from patchlib.files import MOST_BYTES, user_path
from patchlib.schema import brief, nearest, printable, shown
from patchlib.sources import refuse_more_than_memory

if TYPE_CHECKING:  # else a command would wait for Keras before it says that there's no such model
    from patchlib.backend import keras

# Where notebooks, run cards and trained networks are: in the wheel inside the package, in a checkout beside it.
PROJECT = next(path for path in (Path(__file__).with_name("_project"), Path(__file__).parents[1]) if path.exists())
RESULTS = PROJECT / "results"
PUBLISHED = RESULTS / "weights"


class ModelError(ValueError):
    """A model is unknown, missing or broken."""


def save(model: "keras.Model", card: dict, path: str | os.PathLike) -> None:
    """Save a model, uncompiled, and its run card into a ``.keras`` file."""
    from patchlib.backend import keras

    bare = keras.Model(model.inputs, model.outputs, name=model.name)  # compiled, loading would need the schedule
    bare.save(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(CARD, json.dumps(card))


def load_model(source: str | os.PathLike) -> "keras.Model":
    """A trained model: a published one by its name, a run's by its folder, or any in a ``.keras`` file.

    Args:
        source: see ``locate``.

    Returns:
        The model, from images 0 to 255 to logits, uncompiled. ``model.card`` is its run card, with the names of the
        classes under ``["dataset"]["classes"]``, or None if the file has none.

    Raises:
        ModelError: there is no such network, or the file isn't a Keras model of one size of images and one row of
            logits: broken, larger than the machine's memory, with code in it, or with a card that is none.
    """
    path = locate(source)
    from patchlib import layers  # noqa: F401, registers the layers with Keras
    from patchlib.backend import keras

    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {member.filename: member.file_size for member in archive.infolist()}
            refuse_more_than_memory("it unpacks to", sum(sizes.values()))
            if (texts := sum(size for name, size in sizes.items() if name.endswith(".json"))) > MOST_BYTES:
                raise ValueError(f"its JSON unpacks to {texts:,} bytes, accepted are {MOST_BYTES:,}")
            card = cards.checked(json.loads(archive.read(CARD)), CARD) if CARD in sizes else None
            with ThreadPoolExecutor(1) as apart:  # a thread has Keras' registers of its own, which end with it
                refuse_more_than_memory("its weights take", apart.submit(_bytes, archive.read("config.json")).result())
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
        takes, gives = model.input_shape, model.output_shape
        if [list(map(type, takes[1:])), list(map(type, gives[1:]))] != [[int] * 3, [int]]:
            raise ValueError(f"it takes {takes} and gives {gives}, accepted: images of one size and their logits")
        if (names := card and card["dataset"].get("classes")) and len(names) != gives[1]:
            raise ValueError(f"there are {len(names)} classes in {CARD} and {gives[1]} logits")
    except Exception as error:  # broken bytes make decoders raise nearly anything
        raise ModelError(f"{shown(str(path))} isn't a Keras model ({brief(error)}).") from error
    model.card = card
    return model


def _bytes(configuration: bytes) -> int:
    """How many bytes the weights take that a model's configuration asks for, counted without making them."""
    from patchlib.backend import keras

    with keras.StatelessScope(initialize_variables=False):
        model = keras.saving.deserialize_keras_object(json.loads(configuration) | {"compile_config": None})
        return 4 * sum(math.prod(weight.shape) for weight in model.weights)


def locate(source: str | os.PathLike) -> Path:
    """The file of a trained model, found without Keras.

    Args:
        source: a name of ``published()`` such as "cct-cifar10", a run's folder, or a ``.keras`` file.

    Raises:
        ModelError: there is no such network, or the file is no zip archive, which a Keras model is.
    """
    path = user_path(source)
    if str(source) in published():
        path = PUBLISHED / f"{source}.keras"
    elif path.is_dir():
        path = path / MODEL
    if not path.is_file():
        known, meant, name = published(), "", str(source)
        if known and not {"/", "."} & set(name):
            meant = f" did you mean {nearest(name, known)!r}?"
        names = f"a trained network ({', '.join(known)}), " if known else ""
        raise ModelError(f"no model: received {shown(name)},{meant} accepted: {names}a run's folder or a .keras file.")
    if not zipfile.is_zipfile(path):
        raise ModelError(f"{shown(str(path))} isn't a Keras model (it's no zip archive).")
    return path


def classes(model: "keras.Model") -> list[str]:
    """The names of a model's classes by its card; their numbers, if it has none."""
    card = getattr(model, "card", None) or {}
    names = card.get("dataset", {}).get("classes") or range(model.output_shape[-1])
    return [printable(str(name)) for name in names]


def temperature(model: "keras.Model") -> float:
    """What a model's logits are divided by for probabilities, by its card; 1, if it has none."""
    return (getattr(model, "card", None) or {}).get("calibration", {}).get("temperature", 1.0)


def start_from(model: "keras.Model", source: str | os.PathLike, data: Data) -> None:
    """Give a model the weights of a trained one, as ``load_model`` takes it, before it's trained further.

    Where the classes are others, the head is new. It starts as a linear probe, a logistic regression from what the
    trained network makes of the training images to their classes: a random one would at first spoil what the network
    knows (Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", 2022,
    section 3.4).

    Raises:
        ModelError: there's no such network, or it has other layers than the model, of other sizes, or that compute
            something else.
    """
    from patchlib.backend import keras

    known, head = load_model(source), model.get_layer("head")
    same = known.card is not None and known.card["dataset"].get("classes") == list(data.classes)
    pairs = [_described(model, same), _described(known, same)]
    if changed := [what for what in pairs[0] | pairs[1] if pairs[0].get(what) != pairs[1].get(what)]:
        there, here = (described.get(changed[0], "missing") for described in reversed(pairs))
        raise ModelError(
            f"init_from: {source} doesn't fit the model, {changed[0]} is {there} there and {here} here; accepted: a "
            "network of the same architecture, arguments and image_size."
        )
    for layer in model.layers:
        if same or layer is not head:
            layer.set_weights(known.get_layer(layer.name).get_weights())
    if not same:
        _probe(keras.Model(model.inputs, head.input), head, data.train)


# Arguments of layers that matter in training or at its start alone, or for the last digits.
_APART = {"attention_dropout", "dropout", "rate", "seed", "stochastic_depth", "gate_stddev", "initializer", "momentum"}
_APART |= {"dtype", "epsilon", "gate_epsilon", "name", "trainable"}


def _described(model, with_head):
    """The shapes of a model's weights, and what its layers compute with them: their plain arguments."""
    shapes = {w.path: w.shape for w in model.weights if with_head or not w.path.startswith("head/")}
    arguments = {
        f"{layer.name}'s {name}": value
        for layer in model.layers
        if layer.name not in ("images", "rescale", "head")  # the pixels and the classes may be others
        for name, value in layer.get_config().items()
        if name not in _APART and not isinstance(value, dict)
    }
    return shapes | arguments


def _probe(features, head, train):
    from sklearn.linear_model import LogisticRegression  # here, because scikit-learn takes a second to import

    probe = LogisticRegression(max_iter=1000).fit(features.predict(train.images, verbose=0), train.labels)
    kernel, bias = (np.zeros(weight.shape) for weight in head.get_weights())
    # Of two classes scikit-learn has the second one's numbers alone.
    kernel[:, probe.classes_[-len(probe.coef_) :]] = probe.coef_.T
    bias[probe.classes_[-len(probe.coef_) :]] = probe.intercept_
    head.set_weights([kernel, bias])


def published() -> list[str]:
    """The names of the trained networks that come with this package."""
    return sorted(path.stem for path in PUBLISHED.glob("*.keras"))
