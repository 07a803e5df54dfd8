"""Trained networks for other programs: ONNX, LiteRT and TensorFlow's SavedModel, by Keras' ``Model.export``.

They take images as float32 (N, height, width, channels), 0 to 255, red first, any number at a time, and give logits
(N, classes). ONNX' metadata, and elsewhere ``metadata.json``, say what a program has to know besides.
"""

import importlib.util
import json
import os
import tempfile
import textwrap
import zipfile
from pathlib import Path

import numpy as np

from patchlib import networks, pictures, surgery
from patchlib.backend import keras, quiet
from patchlib.files import settle, user_path
from patchlib.layers import kernels
from patchlib.schema import shown

TOLERANCE = 1e-4  # of a logit
_EXTRA = "ai-edge-litert 'backports-strenum<1.3' onnx onnxruntime tensorflow tf2onnx"  # that of the name export


class ExportError(RuntimeError):
    """A network couldn't be converted, or the file gives other logits."""


def export(model: keras.Model, to: str, path: str | os.PathLike) -> float:
    """Write a network in another format, if the file's logits are those of ``model.predict``.

    Both classify crops of two photographs, by ones and by threes. A network that computes in bfloat16 or float16 is
    brought to float32 first.

    Args:
        model: from images 0 to 255 to logits, such as ``load_model`` gives.
        to: "onnx", run by ONNX Runtime; "litert", by LiteRT's interpreter; or "saved_model", a folder, by TensorFlow.
        path: of the new file or folder.

    Returns:
        The largest difference between a logit of the file and of the network, at most ``TOLERANCE``.

    Raises:
        ValueError: there is no such format, something has this path, or Keras' backend isn't TensorFlow.
        ModuleNotFoundError: what writes or runs the format isn't installed.
        OSError: the file can't be written.
        ExportError: the conversion failed, or a logit differs by more; there is no file then.
    """
    path = user_path(path)
    if to not in _FORMATS:
        raise ValueError(f"format: received {shown(to)}, accepted: {', '.join(_FORMATS)}.")
    if keras.backend.backend() != "tensorflow":
        raise ValueError(f"Keras computes by {keras.backend.backend()}: to export, set KERAS_BACKEND=tensorflow.")
    if path.exists():
        raise ValueError(f"{path} is there already.")
    keras_format, needed, opened = _FORMATS[to]
    for name in needed:
        if not importlib.util.find_spec(name):
            raise ModuleNotFoundError(f"{name} isn't installed: pip install {_EXTRA}", name=name)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
        file = Path(folder, "network.tflite")  # an ending that Keras insists on for LiteRT; other formats take any
        try:
            apart = _convert(model, keras_format, opened, file)
        except Exception as error:  # converters raise nearly anything
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
            raise ExportError(f"{model.name} can't be converted ({reason}).") from error
        if not apart <= TOLERANCE:  # nor if it's no number
            raise ExportError(f"{model.name}'s logits differ by {apart:.2g} after conversion, accepted: {TOLERANCE}.")
        settle(file, path)
    return apart


def _convert(model, keras_format, opened, file):
    """Write the file; return the largest difference between a logit of it and of the network."""
    with surgery.exactly(model) as network, quiet():
        images = _crops(*model.input_shape[1:])
        expected = network.predict(images, verbose=0)
        inputs = keras.Input(images.shape[1:], name="images")
        with kernels.plain():
            outputs = network(inputs, training=False)  # not left out, or Resizing would switch dropout on
            keras.Model(inputs, outputs).export(file, keras_format, verbose=False, input_signature=[inputs])
        notes = {"image_shape": images.shape[1:], "image_range": (0, 255), "classes": networks.classes(model)}
        run = opened(file, notes | {"temperature": networks.temperature(model)})
        logits = np.concatenate([run(batch) for batch in np.split(images, (1, 2, 3))])
    return float(np.abs(logits - expected).max())


def _crops(height, width, channels):
    """Three parts of each of two photographs: float32 (6, height, width, channels)."""
    side = max(height, width)
    starts, photographs = (0, side // 2, side), pictures.photographs(2 * side)
    crops = [photo[at : at + height, at : at + width] for photo in photographs for at in starts]
    return np.stack(crops)[..., np.arange(channels) % 3].astype("float32")


def _onnx(file, notes):
    import onnx
    import onnxruntime

    network = onnx.load(file)
    onnx.helper.set_model_props(network, {name: json.dumps(note) for name, note in notes.items()})
    onnx.save(network, file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def _litert(file, notes):
    from ai_edge_litert.interpreter import Interpreter

    with zipfile.ZipFile(file, "a") as archive:  # at the end of the file, LiteRT's place for others
        archive.writestr("metadata.json", json.dumps(notes))
    run = Interpreter(model_content=file.read_bytes()).get_signature_runner()
    return lambda images: run(images=images)["output_0"]


def _saved_model(folder, notes):
    import tensorflow as tf

    (folder / "metadata.json").write_text(json.dumps(notes))
    network = tf.saved_model.load(folder)
    return lambda images: network.serve(images).numpy()


# {name: (Keras' name, what has to be installed, what adds the notes and returns the function that runs the file)}
_FORMATS = {
    "onnx": ("onnx", ("onnx", "onnxruntime", "tf2onnx"), _onnx),
    "litert": ("litert", ("ai_edge_litert",), _litert),
    "saved_model": ("tf_saved_model", (), _saved_model),
}
