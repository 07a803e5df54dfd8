"""Exported networks: what runs them gives the network's logits, and what is refused leaves nothing behind."""

import json
import sys
import zipfile

import keras
import numpy as np
import pytest

import patchlib
from patchlib import exporting, models, reference, surgery
from patchlib.layers.kernels import common
from patchlib.parameters import ARCHITECTURES

EXTRA = "it comes with the export extra"
CARD = {"dataset": {"classes": ["cat", "dog"]}, "calibration": {"temperature": 1.5}}
NOTES = {"image_range": [0, 255], "classes": ["cat", "dog"], "temperature": 1.5}
SHAPE = (16, 24, 3)


def small(name, shape=SHAPE, dtype="float32"):
    arguments = {"dim": 8, "depth": 1, "dtype": dtype} | ({"conv_dim": 4} if name == "cct" else {})
    model = getattr(models, name)(shape, 2, **arguments)
    reference.randomize(model)
    model.card = CARD
    return model


def agree(model, run, shape=SHAPE):
    images = np.random.default_rng(0).integers(0, 256, (8, *shape)).astype("float32")
    found = np.concatenate([run(batch) for batch in np.split(images, (1, 6))])  # 1, 5 and 2 at a time
    np.testing.assert_allclose(found, model.predict(images, verbose=0), atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_onnx_runtime_gives_the_networks_logits(tmp_path, name):
    for needed in ("onnx", "tf2onnx"):
        pytest.importorskip(needed, reason=EXTRA)
    onnxruntime, model = pytest.importorskip("onnxruntime", reason=EXTRA), small(name)
    assert patchlib.export(model, "onnx", tmp_path / "network.onnx") <= exporting.TOLERANCE
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx")
    agree(model, lambda images: session.run(None, {"images": images})[0])
    notes = session.get_modelmeta().custom_metadata_map
    assert {key: json.loads(note) for key, note in notes.items()} == NOTES | {"image_shape": [*SHAPE]}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_litert_gives_the_networks_logits(tmp_path, name):
    interpreter, model = pytest.importorskip("ai_edge_litert.interpreter", reason=EXTRA), small(name)
    assert patchlib.export(model, "litert", tmp_path / "network.tflite") <= exporting.TOLERANCE
    run = interpreter.Interpreter(str(tmp_path / "network.tflite")).get_signature_runner()
    agree(model, lambda images: run(images=images)["output_0"])
    with zipfile.ZipFile(tmp_path / "network.tflite") as archive:
        assert json.loads(archive.read("metadata.json"))["classes"] == ["cat", "dog"]


@pytest.mark.parametrize("shape", [SHAPE, (16, 24, 1)])
def test_a_saved_model_gives_the_networks_logits_without_compiled_functions(tmp_path, shape):
    import tensorflow as tf

    model = small("convmixer", shape)
    assert patchlib.export(model, "saved_model", tmp_path / "network") <= exporting.TOLERANCE
    network = tf.saved_model.load(tmp_path / "network")
    agree(model, network.serve, shape)
    assert b"XlaMustCompile" not in (tmp_path / "network" / "saved_model.pb").read_bytes()
    assert json.loads((tmp_path / "network" / "metadata.json").read_text())["image_shape"] == [*shape]


def test_what_was_trained_in_bfloat16_is_exported_in_float32(tmp_path):
    import tensorflow as tf

    model, exact = small("vit", dtype="mixed_bfloat16"), small("vit")
    patchlib.export(model, "saved_model", tmp_path / "network")
    network = tf.saved_model.load(tmp_path / "network")
    agree(exact, network.serve)
    assert model.get_layer("block_0").compute_dtype == "bfloat16"


@pytest.mark.parametrize("factor", [1.1, np.nan])
def test_other_logits_are_refused_with_the_difference_and_leave_nothing(tmp_path, monkeypatch, factor):
    fourier = common.fourier
    monkeypatch.setattr(common, "fourier", lambda x: factor * fourier(x))
    with pytest.raises(exporting.ExportError, match=r"fnet's logits differ by (0\.0\d+|nan) .* accepted: 0\.0001"):
        patchlib.export(small("fnet"), "saved_model", tmp_path / "network")
    assert not list(tmp_path.iterdir())


def test_a_converter_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def export(model, file, form, **options):
        file.write_bytes(b"half")
        raise NotImplementedError("no such operation")

    monkeypatch.setattr(keras.Model, "export", export)
    with pytest.raises(exporting.ExportError, match=r"cct can't be converted \(NotImplementedError: no such operation"):
        patchlib.export(small("cct"), "saved_model", tmp_path / "network")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(surgery, "exactly", None)
    path, model = tmp_path / "network", small("cct")
    with pytest.raises(ValueError, match="format: received 'tflite', accepted: onnx, litert, saved_model"):
        patchlib.export(model, "tflite", path)
    with pytest.raises(FileNotFoundError):
        patchlib.export(model, "saved_model", tmp_path / "nowhere" / "network")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModuleNotFoundError, match=r"^onnx\w* isn't installed: pip install ai-edge-litert '"):
        patchlib.export(model, "onnx", path)
    path.mkdir()
    with pytest.raises(ValueError, match="network is there already"):
        patchlib.export(model, "saved_model", path)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ValueError, match="set KERAS_BACKEND=tensorflow"):
        patchlib.export(model, "saved_model", path)
    assert [*tmp_path.iterdir()] == [path] and not list(path.iterdir())
