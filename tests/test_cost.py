"""What the architectures cost, against what is published."""

import keras
import numpy as np
import pytest

from patchlib import cost, models
from patchlib.parameters import ARCHITECTURES

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
        (models.vit, {}, 546_186, None),  # of this project's own size
        # "An Image is Worth 16x16 Words", table 1, and its small relatives.
        (models.vit, VIT_16 | {"dim": 192, "heads": 3, "mlp_dim": 768}, 5_717_416, None),
        (models.vit, VIT_16 | {"dim": 384, "heads": 6, "mlp_dim": 1536}, 22_050_664, None),
        (models.vit, VIT_16 | {"dim": 768, "heads": 12, "mlp_dim": 3072}, 86_567_656, 17.58),
    ],
)
def test_published_sizes(build, arguments, count, billions):
    with keras.StatelessScope(initialize_variables=False):  # none of them is needed
        model = build(**arguments)
    counted = cost.of(model)
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == count
    assert sum(counted["parameters"].values()) == count
    assert billions is None or abs(sum(counted["multiply_adds"].values()) / 1e9 / billions - 1) < 0.01
    keras.utils.clear_session()


def test_what_mixes_space_and_what_mixes_channels_by_hand():
    convolution, norm, positions = 25 * 256 + 256, 2 * 256, 16 * 16
    assert cost.of(models.convmixer()) == {
        "parameters": {"space": 8 * (convolution + norm), "channels": 594_186 - 8 * (convolution + norm)},
        "multiply_adds": {
            "space": 8 * positions * 25 * 256,
            "channels": positions * 2 * 2 * 3 * 256 + 8 * positions * 256**2 + 256 * 10,
        },
    }


def test_total_parameters_of_the_published_convmixer():
    assert models.convmixer().count_params() == 602_890


def test_the_table_and_the_audit_say_what_was_counted():
    lines = cost.table("cct").splitlines()
    assert lines[0].startswith("|  | mixes space |") and len(lines) == 2 + len(ARCHITECTURES) + 2
    assert lines[-1].startswith("*Trainable parameters") and lines[-1].endswith("in the rest.*")
    (row,) = [line for line in lines if "**" in line]
    counted = cost.of(models.cct())
    numbers = [f"{counted[what][mixes]:,}" for what in counted for mixes in ("space", "channels")]
    assert row == f"| **cct** | attention, convolutions in the tokenizer | MLP | {' | '.join(numbers)} |"
    assert cost.audit(models.cct, {"as it is": {}, "no positions": {"position": False}}).splitlines()[2:] == [
        "| as it is | 416,331 |  |",
        "| no positions | 408,139 | -8,192 |",
    ]
