"""Trained networks as files: what comes back, with its card, and what is refused; and the published ones."""

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from test_cards import card

from patchlib import cards, models, networks, surgery
from patchlib.data import Data, Split
from patchlib.files import PathError

CARD = card()


def small():
    keras.utils.set_random_seed(0)
    return models.convmixer(dim=8, depth=1, dtype="mixed_bfloat16")


@pytest.mark.bfloat16
@pytest.mark.jax
def test_a_model_comes_back_with_its_card(tmp_path, monkeypatch):
    model = small()
    model.compile("sgd", "mse")
    networks.save(model, CARD, tmp_path / "model.keras")
    (tmp_path / "names").mkdir()
    os.link(tmp_path / "model.keras", tmp_path / "names" / "mine-digits.keras")
    monkeypatch.setattr(networks, "PUBLISHED", tmp_path / "names")
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype="uint8")
    for source in (tmp_path, str(tmp_path / "model.keras"), "mine-digits"):
        loaded = networks.load_model(source)
        assert loaded.card == CARD and not loaded.compiled
        np.testing.assert_allclose(loaded.predict(images, verbose=0), model.predict(images, verbose=0), atol=1e-6)
    loaded.save(tmp_path / "again.keras")
    assert networks.load_model(tmp_path / "again.keras").card is None


@pytest.mark.bfloat16
@pytest.mark.jax
def test_a_saved_model_classifies_a_picture_in_a_fresh_python(tmp_path):
    model = small()
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype="uint8")
    Image.fromarray(picture).save(tmp_path / "picture.png")
    networks.save(model, CARD, tmp_path / "model.keras")
    program = (  # as Keras loads it, which only has to know the layers, and as this project does
        "import keras, numpy as np, patchlib; from PIL import Image\n"
        "for load in (patchlib.layers and keras.saving.load_model, patchlib.load_model):\n"
        "    logits = load('model.keras').predict(np.asarray(Image.open('picture.png'))[None], verbose=0)\n"
        "    np.save(load.__module__.partition('.')[0], logits)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, env=os.environ)
    for name in ("keras.npy", "patchlib.npy"):
        logits = np.load(tmp_path / name)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, model.predict(picture[None], verbose=0), atol=1e-6)


@pytest.mark.parametrize("content", [None, b"", b"no model"])
def test_what_is_no_saved_model_is_refused(tmp_path, content):
    path = tmp_path / "model.keras"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"model\.keras.*accepted: " if content is None else r"model\.keras' isn't a Kera"
    ):
        networks.load_model(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The members of a file with a model and its card."""
    path = tmp_path_factory.mktemp("whole") / "model.keras"
    networks.save(small(), CARD, path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def without_classes(card):
    return json.dumps(card | {"dataset": card["dataset"] | {"classes": 5}}).encode()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config.json": None}, "no item named 'config.json'"),
        ({"config.json": b"{"}, "Expecting property name"),
        ({"config.json": b"[" * 100_000}, "recursion"),
        ({"config.json": b" " * (2**26 + 1)}, r"its JSON unpacks to 67,1\d\d,\d\d\d bytes, accepted are 67,108,864"),
        ({"config.json": b'{"module": "os", "class_name": "system", "config": {}}'}, "'system'"),
        ({"model.weights.h5": b"none"}, "signature"),
        ({"model.weights.h5": None}, "model.weights.h5"),
        ({"run.json": b"\xff\xfe"}, "Expecting value"),
        ({"run.json": b"[" * 100_000}, "recursion"),
        ({"run.json": b"[]"}, "run.json isn't a run card of schema 1"),
        ({"run.json": without_classes(CARD)}, "run.json: dataset.classes is 5, accepted: a valid list"),
    ],
)
def test_a_hostile_file_is_refused_in_a_sentence(tmp_path, whole, changes, words):
    with zipfile.ZipFile(tmp_path / "model.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (whole | changes).items():
            if content is not None:
                archive.writestr(name, content)
    with pytest.raises(ValueError, match=rf"model\.keras' isn't a Keras model \(.*{words}.*\)\.$"):
        networks.load_model(tmp_path)


def layered(*layers):
    inputs = keras.Input((8, 8, 3))
    outputs = inputs
    for layer in layers:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


def two_inputs():
    inputs = [keras.Input((8, 8, 3)), keras.Input((8, 8, 3))]
    return keras.Model(inputs, keras.layers.Flatten()(inputs[0] + inputs[1]))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: layered(keras.layers.Conv2D(3, 1)), r"takes \(None, 8, 8, 3\) and gives \(None, 8, 8, 3\)"),
        (lambda: keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)]), r"takes \(None, 5\)"),
        (lambda: keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalMaxPool2D()]), "None, None, 3"),
        (two_inputs, r"takes \[\(None, 8"),
    ],
)
def test_a_network_that_classifies_no_images_is_refused(tmp_path, build, words):
    build().save(tmp_path / "model.keras")
    with pytest.raises(networks.ModelError, match=rf"{words}.*accepted: images of one size and their logits"):
        networks.load_model(tmp_path)


def test_a_card_with_other_classes_than_the_network_is_refused(tmp_path):
    model = layered(keras.layers.GlobalMaxPool2D(), keras.layers.Dense(3))
    networks.save(model, CARD | {"dataset": CARD["dataset"] | {"classes": ["a", "b"]}}, tmp_path / "model.keras")
    with pytest.raises(networks.ModelError, match=r"2 classes in run.json and 3 logits"):
        networks.load_model(tmp_path)


@pytest.mark.jax
def test_a_network_larger_than_memory_is_refused_before_it_is_made(tmp_path, monkeypatch):
    layered(keras.layers.Flatten(), keras.layers.Dense(50)).save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["config.json"] = members["config.json"].replace(b'"units": 50', b'"units": 10000000000')
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    monkeypatch.setattr(keras.initializers.GlorotUniform, "__call__", lambda *a, **k: pytest.fail("weights are made"))
    with pytest.raises(networks.ModelError, match=r"its weights take 7,\d\d\d\.\d GB, and this machine has"):
        networks.load_model(tmp_path)


def test_weights_that_unpack_to_more_than_memory_are_refused(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: 10**3)
    with zipfile.ZipFile(tmp_path / "model.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (whole | {"model.weights.h5": bytes(2 * 10**6)}).items():
            archive.writestr(name, content)
    with pytest.raises(networks.ModelError, match=r"it unpacks to 0\.0 GB, and this machine has 0\.0 GB"):
        networks.load_model(tmp_path)


@pytest.mark.parametrize("source", [5, None, b"model"])
def test_what_is_no_path_is_refused(source):
    with pytest.raises(PathError, match="isn't a path"):
        networks.load_model(source)


@pytest.mark.parametrize("kept", [slice(-200), slice(40, None)])
def test_a_file_of_which_a_part_is_lost_is_refused(tmp_path, kept):
    networks.save(small(), CARD, tmp_path / "whole.keras")
    (tmp_path / "model.keras").write_bytes((tmp_path / "whole.keras").read_bytes()[kept])
    with pytest.raises(ValueError, match=r"model\.keras' isn't a Keras model \("):
        networks.load_model(tmp_path)


def test_a_pipe_is_no_model(tmp_path):
    os.mkfifo(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="accepted: .*a .keras file"):
        networks.load_model(tmp_path)


@pytest.mark.jax
@pytest.mark.parametrize("name", networks.published())
def test_a_published_network_answers_as_it_did(name):
    model = networks.load_model(name)
    with np.load(networks.PUBLISHED / "logits.npz") as stored:
        expected = stored[name]
    noise = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), "uint8")
    assert expected.shape == (4, len(model.card["dataset"]["classes"])) and expected.std() > 0.1
    np.testing.assert_allclose(model.predict(noise, verbose=0), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", networks.published())
def test_a_published_network_has_the_card_of_a_run(name):
    card = networks.load_model(name).card
    assert card in cards.load_cards(networks.PUBLISHED.parent)
    text = (networks.PUBLISHED / f"{name}.md").read_text()
    assert text.startswith("---\nlicense: mit\n") and f"{100 * card['metrics']['test_accuracy']:.2f}%" in text


def test_a_file_that_carries_code_is_refused(tmp_path):
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Lambda(lambda x: x + 1)])
    model.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="arbitrary code execution"):
        networks.load_model(tmp_path)


def other_classes(names=("even", "odd")):
    """Images whose class is how bright they are, as ``small`` takes them."""
    images = np.random.default_rng(1).integers(0, 100, (40, 32, 32, 3), dtype="uint8")
    labels = np.arange(40) % len(names)
    images += (60 * labels).astype("uint8")[:, None, None, None]
    split = Split(images, labels)
    return Data("bright", split, split, split, names, "bright")


def start(tmp_path):
    """A saved network of cats and dogs, and the path that it has."""
    keras.utils.set_random_seed(1)
    known = models.convmixer(num_classes=2, dim=8, depth=1)
    networks.save(known, CARD | {"dataset": CARD["dataset"] | {"classes": ["cat", "dog"]}}, tmp_path / "known.keras")
    return known, tmp_path / "known.keras"


def test_with_the_same_classes_a_model_starts_as_the_trained_one(tmp_path):
    data = other_classes(("cat", "dog"))
    known, path = start(tmp_path)
    model = models.convmixer(num_classes=2, dim=8, depth=1)
    networks.start_from(model, path, data)
    for before, after in zip(known.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("names", [("even", "odd"), ("dark", "grey", "bright")])
def test_with_other_classes_the_head_starts_as_a_linear_probe(tmp_path, names):
    data = other_classes(names)
    known, path = start(tmp_path)
    model = models.convmixer(num_classes=len(names), dim=8, depth=1)
    networks.start_from(model, path, data)
    for layer in model.layers[:-1]:
        for before, after in zip(known.get_layer(layer.name).get_weights(), layer.get_weights(), strict=True):
            np.testing.assert_array_equal(before, after)
    features = keras.Model(model.inputs, model.get_layer("head").input).predict(data.train.images, verbose=0)
    probe = LogisticRegression(max_iter=1000).fit(features, data.train.labels)
    shares = keras.ops.softmax(model.predict(data.train.images, verbose=0))
    np.testing.assert_allclose(shares, probe.predict_proba(features), atol=1e-3)


def test_a_class_without_training_images_keeps_a_head_of_zeros(tmp_path):
    model = models.convmixer(num_classes=3, dim=8, depth=1)
    data = other_classes(("even", "odd"))
    networks.start_from(model, start(tmp_path)[1], replace(data, classes=("even", "odd", "none")))
    kernel, bias = model.get_layer("head").get_weights()
    assert not kernel[:, 2].any() and not bias[2] and kernel[:, :2].any()


def test_a_network_of_other_sizes_is_refused_in_a_sentence(tmp_path):
    path = start(tmp_path)[1]
    for arguments, words in (
        ({"dim": 16, "depth": 1}, r"stem/embed/kernel is \(2, 2, 3, 8\) there and \(2, 2, 3, 16\) here"),
        ({"dim": 8, "depth": 2}, "block_1/depthwise/kernel is missing there"),
    ):
        with pytest.raises(ValueError, match=f"init_from: .*known.keras doesn't fit the model, {words}"):
            networks.start_from(models.convmixer(num_classes=2, **arguments), path, other_classes())


@pytest.mark.parametrize(
    ("architecture", "there", "here", "words"),
    [
        ("vit", {"heads": 2}, {"heads": 4}, "block_0's heads is 2 there and 4 here"),
        ("fnet", {"norm": "ortho"}, {"norm": "backward"}, "block_0's norm is ortho there and backward here"),
        ("cct", {"padding": "same"}, {"padding": "after_activation"}, "stem's padding is same there"),
    ],
)
def test_a_network_that_computes_something_else_is_refused_in_a_sentence(tmp_path, architecture, there, here, words):
    build = getattr(models, architecture)
    networks.save(build(num_classes=2, dim=16, depth=1, **there), CARD, tmp_path / "known.keras")
    with pytest.raises(ValueError, match=f"init_from: .*known.keras doesn't fit the model, {words}"):
        networks.start_from(build(num_classes=2, dim=16, depth=1, **here), tmp_path / "known.keras", other_classes())


def test_a_network_trained_with_another_dropout_is_taken(tmp_path):
    networks.save(models.vit(num_classes=2, dim=16, depth=1), CARD, tmp_path / "known.keras")
    model = models.vit(num_classes=2, dim=16, depth=1, dropout=0.3, stochastic_depth=0.1)
    networks.start_from(model, tmp_path / "known.keras", other_classes())


def test_a_loaded_network_can_be_had_at_another_size(tmp_path):
    network = networks.load_model(start(tmp_path)[1])
    assert surgery.at_size(network, 24)(np.zeros((1, 24, 24, 3))).shape == (1, 2)
