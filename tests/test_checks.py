from contextlib import contextmanager

import keras
import numpy as np
import pytest

from patchlib import augment, checks, models, optimizers
from patchlib.data import Data, Split, load_data
from patchlib.parameters import Recipe


def test_a_layer_that_is_not_its_definition_is_named():
    dense, x = keras.layers.Dense(3), np.ones((2, 4), "float32")
    right = lambda x, weights: x @ weights["kernel"] + weights["bias"]  # noqa: E731
    checks.layer(dense, x, right)
    with pytest.raises(AssertionError, match="Dense differs from its definition by up to 0.5"):
        checks.layer(keras.layers.Dense(3), x, lambda x, weights: right(x, weights) + 0.5)
    with pytest.raises(AssertionError, match=r"Dense gives \(2, 3\), its definition \(1, 3\)"):
        checks.layer(keras.layers.Dense(3), x, lambda x, weights: right(x, weights)[:1])
    with pytest.raises(AssertionError, match="nan"):
        checks.layer(keras.layers.Dense(3), x, lambda x, weights: right(x, weights) * np.nan)


def test_a_layer_is_compared_on_the_processor_where_products_are_exact(monkeypatch):
    """NVIDIA's accelerators round what goes into a float32 product to 10 bits, more than the comparison allows."""
    here, seen = ["cuda:0"], []

    @contextmanager
    def device(name):
        here.append(name)
        yield
        here.pop()

    class Noticing(keras.layers.Dense):
        def build(self, shape):
            seen.append(here[-1])
            super().build(shape)

        def call(self, x):
            seen.append(here[-1])
            return super().call(x)

    monkeypatch.setattr(keras, "device", device)
    checks.layer(Noticing(3), np.ones((2, 4), "float32"), lambda x, weights: x @ weights["kernel"] + weights["bias"])
    assert set(seen) == {"cpu"}


def picture(kind, height=12, width=20):
    """An image of one colour, its own mirror image, or noise."""
    shape = {"black": (1, 1, 3), "striped": (height, 1, 3), "noise": (height, width, 3)}[kind]
    drawn = np.random.default_rng(0).integers(0, 256, shape, dtype="uint8")
    return np.broadcast_to(drawn * (kind != "black"), (height, width, 3))


def data_of(count, classes, contrast=255):
    images = np.random.default_rng(1).integers(0, contrast + 1, (count, 8, 12, 3), dtype="uint8")
    split = Split(images, np.arange(count) % classes)
    return Data("noise", split, split, split, tuple(map(str, range(classes))), "")


def card_of(accuracy):
    history = {
        "loss": [1.0, 1.0],
        "val_accuracy": [1.0, accuracy],
        "side": [4, 8],
    }  # the first, of small images, can't win
    metrics = {"val_accuracy": accuracy}
    return {"history": history, "metrics": metrics, "parameters": {"select_by": "val_accuracy"}}


def network(data, **arguments):
    keras.utils.set_random_seed(0)
    return models.convmixer(data.input_shape, data.num_classes, dim=8, depth=1, patch_size=4, **arguments)


@pytest.mark.parametrize("pad", [1, 4, 8, 15])
@pytest.mark.parametrize("kind", ["black", "striped", "noise"])
def test_augmenting_any_image_by_any_pad_passes(kind, pad):
    checks.augmented(picture(kind), pad)


CROP, FLIP = "random_pad_crop", "random_flip"
FAULTS = {
    "no crop": (CROP, lambda images, rng, pad: images),
    "rolled round": (CROP, lambda images, rng, pad: np.roll(images, rng.integers(-pad, pad + 1), axis=1)),
    "one crop for all": (CROP, lambda images, rng, pad: np.pad(images[:, pad:], ((0, 0), (0, pad), (0, 0), (0, 0)))),
    "no flip": (FLIP, lambda images, rng: images),
    "upside down": (FLIP, lambda images, rng: images[:, ::-1]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_augmentation_is_found(fault, monkeypatch):
    monkeypatch.setattr(augment, *FAULTS[fault])
    with pytest.raises(AssertionError, match="shift|pictures of one"):
        checks.augmented(picture("noise"), pad=4)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(("count", "classes", "contrast"), [(1, 2, 255), (3, 500, 255), (40, 3, 5)])
def test_any_untrained_model_on_any_data_passes(count, classes, contrast, dtype, capsys):
    data = data_of(count, classes, contrast)
    checks.untrained(network(data, mean=data.mean, std=data.std, dtype=dtype), data, data.mean, data.std)
    assert capsys.readouterr().out.endswith("yes\n")


def test_pixels_on_another_scale_are_found():
    data = data_of(4, 2)
    with pytest.raises(AssertionError):
        checks.untrained(network(data, std=128.0), data)


def test_a_model_that_is_not_its_cards_is_found():
    data = data_of(12, 3)
    model = network(data)
    model.get_layer("head").bias.assign([9, 0, 0])  # so that every answer is the first class, right for a third
    checks.trained(model, data, card_of(1 / 3))
    with pytest.raises(AssertionError, match="validation accuracy is 0.3333, its card's 0.4167"):
        checks.trained(model, data, card_of(5 / 12))


def test_a_tie_may_go_either_way():
    data = data_of(12, 3)
    model = network(data)
    head = model.get_layer("head")
    head.set_weights([np.zeros(head.kernel.shape), np.array([1, 1, 0])])
    for accuracy in (0, 1 / 3, 1):
        checks.trained(model, data, card_of(accuracy))


def test_a_file_with_other_weights_is_found(tmp_path):
    data = data_of(4, 2)
    model = network(data)
    model.save(tmp_path / "model.keras")
    checks.saved(model, data, tmp_path / "model.keras")
    model.get_layer("head").bias.assign([0.001, 0])
    with pytest.raises(AssertionError):
        checks.saved(model, data, tmp_path / "model.keras")


def test_a_wrong_number_of_parameters_is_named():
    model = network(data_of(4, 2))
    count = model.count_params()
    with pytest.raises(AssertionError, match=f"the model has {count:,} parameters, the formula counts {count + 1:,}"):
        checks.parameters(model, count + 1)


def test_a_recipe_is_read_back_from_what_was_compiled_not_from_what_was_asked(capsys):
    keras.utils.set_random_seed(0)
    model = models.cct(
        (8, 8, 3), 3, dim=8, depth=2, key_dim=4, mlp_dim=8, conv_dim=4, dropout=0.3, stochastic_depth=0.2
    )
    data = load_data("digits", limit=50)
    asked = Recipe(epochs=4, batch_size=10, erasing=0.5, mixup=0.7)
    compiled = {"optimizer": "muon", "adamw_ratio": 0.5, "weight_decay": 0.02, "schedule": "one_cycle"}
    optimizers.compile_model(model, Recipe(epochs=4, learning_rate=0.5, label_smoothing=0.1, **compiled), 5)
    checks.recipe(model, data, asked)
    told = capsys.readouterr().out
    for words in (
        "muon at 1 of the rate, decay 0.02, for 12 weights:\n    block_0/attention/query/kernel",
        "adamw at 0.5 of the rate, decay 0.01, for 5 weights:\n    stem/conv_0/kernel",
        "adamw at 0.5 of the rate, no decay, for 24 weights",
        "steps 0: 0, 4: 0.25, 9: 0.441, 14: 0.144, 19: 0.00625\n",
        "an epoch: 5 steps of 10 images",
        "CategoricalCrossentropy, label smoothing 0.1",
        "block_1/mlp/output_drop 0.3, block_1/attention_drop 0.2, block_1/mlp_drop 0.2",
        "erasing=0.5",
        "mixup=0.7",
    ):
        assert words in told, told
    assert "mirrored" not in told and "pixels" not in told and "whitened" not in told
    checks.recipe(model, data, Recipe(epochs=3, start_size=16, alternate=True, whiten=True, batch_size=10))
    told = capsys.readouterr().out
    assert "flip=False" in told and "mirrored in every second epoch" in told and "whitened patches" in told
    assert "pixels a side, epoch by epoch: 16 24 32\n" in told
