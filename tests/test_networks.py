"""Trained networks as files: what comes back, with its card, and what is refused; and the published ones."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

from patchlib import cards, models, networks

CARD = {"dataset": {"classes": ["cat", "dog"]}, "history": {"loss": [2.0, 1.0]}}


def small():
    keras.utils.set_random_seed(0)
    return models.convmixer(dim=8, depth=1, dtype="mixed_bfloat16")


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


@pytest.mark.jax
@pytest.mark.parametrize("load", ["patchlib.load_model", "patchlib.layers and keras.saving.load_model"])
def test_a_saved_model_classifies_a_picture_in_a_fresh_python(tmp_path, load):
    model = small()
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype="uint8")
    Image.fromarray(picture).save(tmp_path / "picture.png")
    networks.save(model, CARD, tmp_path / "model.keras")
    program = (
        "import keras, numpy as np, patchlib; from PIL import Image\n"
        f"model = ({load})('model.keras')\n"
        "np.save('logits.npy', model.predict(np.asarray(Image.open('picture.png'))[None], verbose=0))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, env=os.environ)
    logits = np.load(tmp_path / "logits.npy")
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, model.predict(picture[None], verbose=0), atol=1e-6)


@pytest.mark.parametrize("content", [None, b"", b"no model"])
def test_what_is_no_saved_model_is_refused(tmp_path, content):
    path = tmp_path / "model.keras"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"model\.keras.*accepted: " if content is None else r"model\.keras isn't a Kera"
    ):
        networks.load_model(path)


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
