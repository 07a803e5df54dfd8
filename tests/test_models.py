import itertools
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

from patchlib import models
from patchlib.parameters import Recipe
from patchlib.training import compile_model

IMAGENET = {"input_shape": (224, 224, 3), "num_classes": 1000}
CCT_AUTHORS = {
    "key_dim": 64,
    "padding": "symmetric",
    "qkv_bias": False,
    "activate_output": False,
    "skip": "normalized",
    "dropout": 0.0,
}
CCT_7 = CCT_AUTHORS | {"dim": 256, "depth": 7, "heads": 4, "mlp_dim": 512, "conv_layers": 1}
MIXER_PAPER = {"shared_norm": False, "final_norm": True}
MIXER_16 = IMAGENET | MIXER_PAPER | {"resize": 0, "patch_size": 16}
GMLP_16 = IMAGENET | {
    "resize": 0,
    "patch_size": 16,
    "skip": "input",
    "gate_stddev": 1e-6,
    "gate_epsilon": 1e-5,
    "final_norm": True,
}
VIT_16 = IMAGENET | {"patch_size": 16, "depth": 12}


@pytest.mark.parametrize(
    "build", [models.convmixer, models.cct, models.mlp_mixer, models.fnet, models.gmlp, models.vit]
)
def test_no_two_weights_start_alike(build):
    """Keras' initialisers repeat themselves if layers share one."""
    values = [keras.ops.convert_to_numpy(w).ravel() for w in build(depth=2).trainable_weights]
    drawn = [value for value in values if value.std()]
    for a, b in itertools.combinations(drawn, 2):
        assert a.size != b.size or not np.array_equal(a, b)


@pytest.mark.parametrize(
    ("build", "arguments", "count", "billions"),
    [  # trainable parameters, and billions of multiply-adds where timm's benchmark tables give them
        # The Keras examples.
        (models.convmixer, {}, 594_186, None),
        (models.cct, {}, 416_331, None),
        (models.mlp_mixer, {}, 242_788, None),
        (models.fnet, {}, 621_924, None),
        (models.gmlp, {}, 885_348, None),
        # "Patches Are All You Need?", tables 1 and 3.
        (models.convmixer, {"kernel_size": 9, "patch_size": 1}, 706_570, None),
        (models.convmixer, IMAGENET | {"dim": 1536, "depth": 20, "kernel_size": 9, "patch_size": 7}, 51_625_960, None),
        (models.convmixer, IMAGENET | {"dim": 768, "depth": 32, "kernel_size": 7, "patch_size": 7}, 21_110_248, None),
        (models.convmixer, IMAGENET | {"dim": 1024, "depth": 20, "kernel_size": 9, "patch_size": 14}, 24_383_464, None),
        # "Escaping the Big Data Paradigm", the authors' code.
        (models.cct, {"key_dim": 64}, 284_491, None),
        (models.cct, CCT_AUTHORS, 283_723, None),
        (models.cct, CCT_7, 3_760_139, None),
        # "MLP-Mixer", table 1; the paper's ratios at the example's size.
        (models.mlp_mixer, MIXER_PAPER | {"tokens_dim": 128, "channels_dim": 1024}, 2_248_292, None),
        (
            models.mlp_mixer,
            MIXER_16 | {"dim": 512, "depth": 8, "tokens_dim": 256, "channels_dim": 2048},
            18_528_264,
            3.79,
        ),
        (
            models.mlp_mixer,
            MIXER_16 | {"dim": 768, "depth": 12, "tokens_dim": 384, "channels_dim": 3072},
            59_880_472,
            None,
        ),
        # "Pay Attention to MLPs", table 1.
        (models.gmlp, GMLP_16 | {"dim": 128, "depth": 30, "hidden_dim": 768}, 5_867_328, None),
        (models.gmlp, GMLP_16 | {"dim": 256, "depth": 30, "hidden_dim": 1536}, 19_422_656, 4.42),
        (models.gmlp, GMLP_16 | {"dim": 512, "depth": 30, "hidden_dim": 3072}, 73_075_392, None),
        # "An Image is Worth 16x16 Words", table 1, and its small relatives.
        (models.vit, VIT_16 | {"dim": 192, "heads": 3, "mlp_dim": 768}, 5_717_416, None),
        (models.vit, VIT_16 | {"dim": 384, "heads": 6, "mlp_dim": 1536}, 22_050_664, None),
        (models.vit, VIT_16 | {"dim": 768, "heads": 12, "mlp_dim": 3072}, 86_567_656, 17.58),
    ],
)
def test_published_sizes(build, arguments, count, billions):
    model = build(**arguments)
    counted = models.cost(model)
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == count
    assert sum(counted["parameters"].values()) == count
    assert billions is None or abs(sum(counted["multiply_adds"].values()) / 1e9 / billions - 1) < 0.01
    keras.utils.clear_session()


def test_total_parameters_of_the_published_convmixer():
    assert models.convmixer().count_params() == 602_890


CALM = {"dropout": 0.0, "head_dropout": 0.0, "resize": 16}  # so that a dozen steps surely help
SMALL = {
    models.convmixer: {"dim": 4, "depth": 1},
    models.cct: {
        "dim": 8,
        "key_dim": 4,
        "mlp_dim": 8,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "stochastic_depth": 0.0,
    },
    models.mlp_mixer: {"dim": 8, "depth": 1, **CALM},
    models.fnet: {"dim": 8, "depth": 1, **CALM},
    models.gmlp: {"dim": 8, "depth": 1, "hidden_dim": 8, **CALM},
    models.vit: {"dim": 8, "depth": 1, "heads": 2, "mlp_dim": 8, "patch_size": 8, "dropout": 0.0},
}


@pytest.mark.parametrize("build", SMALL, ids=lambda build: build.__name__)
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_every_model_trains_and_comes_back_from_disk(build, dtype, tmp_path):
    keras.utils.set_random_seed(0)
    model = build(num_classes=3, dtype=dtype, **SMALL[build])
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype="uint8")
    compile_model(model, Recipe(learning_rate=2e-3), steps_per_epoch=1)
    losses = [model.train_on_batch(images, np.eye(3, dtype="float32")[[0, 1, 2, 0]])[0] for _ in range(12)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    logits = loaded.predict(images, verbose=0)
    assert logits.shape == (4, 3) and logits.dtype == np.float32
    np.testing.assert_allclose(logits, model.predict(images, verbose=0), atol=1e-6)


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
    for wrong in ({"dim": 0}, {"depth": 0}, {"depth": -1}):
        with pytest.raises(ValueError, match=f"Received: {next(iter(wrong))}="):
            models.convmixer(**wrong)
    with pytest.raises(ValueError, match="Received: conv_layers=0"):
        models.cct(conv_layers=0)
    with pytest.raises(ValueError, match="`std` must be above zero"):
        models.convmixer(std=[1, 0, 1])
    with pytest.raises(ValueError, match="`heads` must divide `dim`. Received: heads=3, dim=128"):
        models.vit(heads=3)
    with pytest.raises(ValueError, match="'token' or 'mean'. Received: pool='max'"):
        models.vit(pool="max")


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
