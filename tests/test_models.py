import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

from patchlib import models


def trainable(model):
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights)


def test_the_default_is_the_published_example():
    model = models.convmixer()
    assert (model.count_params(), trainable(model)) == (602_890, 594_186)


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        # The papers' own: "Patches Are All You Need?", tables 1 and 3; the authors' code gives the last digits.
        ({"dim": 256, "depth": 8, "kernel_size": 9, "patch_size": 1, "num_classes": 10}, 706_570),
        ({"dim": 1536, "depth": 20, "kernel_size": 9, "patch_size": 7, "input_shape": (224, 224, 3)}, 51_625_960),
        ({"dim": 768, "depth": 32, "kernel_size": 7, "patch_size": 7, "input_shape": (224, 224, 3)}, 21_110_248),
        ({"dim": 1024, "depth": 20, "kernel_size": 9, "patch_size": 14, "input_shape": (224, 224, 3)}, 24_383_464),
    ],
)
def test_published_sizes(arguments, count):
    assert trainable(models.convmixer(**{"num_classes": 1000} | arguments)) == count


def test_batchnorm_and_layer_names_are_as_asked():
    model = models.convmixer(dim=4, depth=2, batchnorm_momentum=0.9, batchnorm_epsilon=1e-5)
    assert [layer.name for layer in model.layers[1:]] == ["rescale", "stem", "block_0", "block_1", "pool", "head"]
    for norm in (model.get_layer("stem").norm, model.get_layer("block_1").depthwise_norm):
        assert (norm.momentum, norm.epsilon) == (0.9, 1e-5)
    out = models.intermediates(model)(np.zeros((1, 32, 32, 3)))
    assert out["block_1"].shape == (1, 16, 16, 4) and out["head"].shape == (1, 10)


def test_pixels_enter_as_asked():
    pixels = np.full((1, 4, 4, 3), [0, 51, 255])
    for mean, std, expected in [(0.0, 255.0, [0, 0.2, 1]), ([0, 51, 0], (1, 2, 255), [0, 0, 1])]:
        model = models.convmixer((4, 4, 3), dim=2, depth=1, mean=mean, std=std)
        rescaled = keras.ops.convert_to_numpy(models.intermediates(model)(pixels)["rescale"])
        np.testing.assert_allclose(rescaled[0, 0, 0], expected, atol=1e-6)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="`patch_size` must divide.*patch_size=5.*32 x 32"):
        models.convmixer(patch_size=5)
    with pytest.raises(ValueError, match="Received: dim=0"):
        models.convmixer(dim=0)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_a_saved_model_classifies_a_picture_in_a_fresh_python(tmp_path, dtype):
    keras.utils.set_random_seed(0)
    model = models.convmixer(dim=8, depth=1, dtype=dtype)
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype="uint8")
    Image.fromarray(picture).save(tmp_path / "picture.png")
    model.save(tmp_path / "model.keras")
    program = (
        "import keras, numpy as np, patchlib; from PIL import Image\n"
        "model = keras.saving.load_model('model.keras')\n"
        "np.save('logits.npy', model.predict(np.asarray(Image.open('picture.png'))[None], verbose=0))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, env=os.environ)
    logits = np.load(tmp_path / "logits.npy")
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, model.predict(picture[None], verbose=0), atol=1e-6)
