"""The optimiser does what the recipe says, and what is read back from it is what it does."""

import keras
import numpy as np
import pytest
from test_training import changed, small_model, tiny

from patchlib import models, optimizers, training
from patchlib.parameters import Recipe

pytestmark = pytest.mark.usefixtures("eagerly")


def rates(recipe, steps_per_epoch=10):
    schedule = optimizers.learning_rate(recipe, steps_per_epoch)
    steps = np.arange(recipe.epochs * steps_per_epoch)
    return np.array([float(schedule(step)) if callable(schedule) else schedule for step in steps])


def test_schedules():
    assert (rates(Recipe(epochs=4, learning_rate=0.1)) == 0.1).all()
    cycle = rates(Recipe(epochs=10, learning_rate=0.5, schedule="one_cycle"))
    np.testing.assert_allclose(cycle, np.interp(np.arange(100), [0, 40, 80, 100], [0, 0.5, 0.025, 0]), atol=1e-6)
    cosine = rates(Recipe(epochs=10, learning_rate=0.5, schedule="cosine"))
    np.testing.assert_allclose(cosine, 0.25 * (1 + np.cos(np.pi * np.arange(100) / 100)), atol=1e-6)
    warm = rates(Recipe(epochs=10, learning_rate=0.5, schedule="cosine", warmup_epochs=2.0))
    np.testing.assert_allclose(warm[:21], np.linspace(0, 0.5, 21), atol=1e-6)
    np.testing.assert_allclose(warm[20:], 0.25 * (1 + np.cos(np.pi * np.arange(80) / 80)), atol=1e-6)
    short = optimizers.learning_rate(Recipe(epochs=5, schedule="cosine", warmup_epochs=4.6, learning_rate=0.5), 1)
    assert [float(short(step)) for step in range(5)] == pytest.approx([0, 0.125, 0.25, 0.375, 0.5])


def test_plateau_and_patience_do_what_keras_callbacks_do():
    losses = [*np.linspace(2, 1, 4), *[1.0] * 6, 0.9, *[0.95] * 12]
    model = keras.Sequential([keras.layers.Dense(1)])
    model.build((None, 1))
    model.compile(keras.optimizers.SGD(0.8))
    callback = keras.callbacks.ReduceLROnPlateau(factor=0.5, patience=5, verbose=0)
    stopping = keras.callbacks.EarlyStopping(patience=10)
    for each in (callback, stopping):
        each.set_model(model)
        each.on_train_begin()
    stopped = []
    for epoch, loss in enumerate(losses):
        for each in (callback, stopping):
            each.on_epoch_end(epoch, {"val_loss": loss})
        assert optimizers.plateau_factor(losses[: epoch + 1]) * 0.8 == pytest.approx(
            float(model.optimizer.learning_rate)
        )
        stopped.append(stopping.stopped_epoch > 0)
        assert training.out_of_patience(losses[: epoch + 1], 10) == stopped[-1]
        if stopped[-1]:
            break
    assert stopped == [False] * 20 + [True]
    assert not training.out_of_patience([1.0] * 50, 0)


def decays(model):
    """What share of each weight a step takes while its gradient is zero, by the weight's path."""
    for weight in model.trainable_weights:
        weight.assign(keras.ops.ones(weight.shape))
    model.optimizer.apply([keras.ops.zeros(w.shape) for w in model.trainable_weights], model.trainable_weights)
    return {w.path: 1 - float(keras.ops.mean(w)) for w in model.trainable_weights}


KERNELS = ("kernel", "table")


@pytest.mark.parametrize("decay_on", ["kernels", "all"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_decay_takes_what_the_update_has_of_a_rate_and_of_what_it_should(optimizer, decay_on):
    keras.utils.set_random_seed(0)
    model = models.vit((6, 6, 3), 3, dim=8, depth=1, heads=2, mlp_dim=8, patch_size=2, pool="mean")
    recipe = Recipe(optimizer=optimizer, learning_rate=0.1, weight_decay=0.5, adamw_ratio=0.3, decay_on=decay_on)
    optimizers.compile_model(model, recipe, 1)
    told = {path: (row["rule"], row["decay"]) for row in optimizers.updates(model) for path in row["weights"]}
    for path, share in decays(model).items():
        matrix = path.startswith("block_0") and path.endswith("kernel")
        rate = 0.1 if optimizer == "adamw" or matrix else 0.03
        expected = rate * 0.5 if decay_on == "all" or path.endswith(KERNELS) else 0.0
        assert share == pytest.approx(expected, abs=1e-6), path
        assert told[path] == ("muon" if optimizer == "muon" and matrix else "adamw", pytest.approx(10 * expected))


@pytest.mark.parametrize("schedule", ["constant", "one_cycle", "cosine", "plateau"])
def test_the_rates_told_are_the_optimisers(schedule):
    model, recipe = small_model(dtype="mixed_float16"), changed(schedule=schedule, precision="mixed_float16")
    optimizers.compile_model(model, recipe, steps_per_epoch=10)
    told = optimizers.rates(model, [0, 7, 29])
    assert len(set(told.values())) == (1 if schedule in ("constant", "plateau") else 3)
    for step, rate in told.items():
        model.optimizer.inner_optimizer.iterations.assign(step)
        assert rate == pytest.approx(float(model.optimizer.learning_rate))


def test_the_policy_is_that_of_most_layers_whatever_the_model():
    assert optimizers.dtype_policy(keras.Sequential([keras.layers.Dense(3)])) == "float32"
    for policy in ("float32", "mixed_bfloat16", "mixed_float16"):
        assert optimizers.dtype_policy(small_model(dtype=policy)) == policy


def idle_model():
    """Logits that no weight can change, so that a step only decays."""
    x = images = keras.Input((6, 6, 3))
    x = keras.layers.Flatten()(keras.layers.Rescaling(0.0)(x))
    return keras.Model(images, keras.layers.Dense(3, kernel_initializer="ones", use_bias=False, name="head")(x))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("fixed", [False, True])
def test_the_plateau_lowers_the_rate_and_fixed_decay_stays_what_it_was(fixed):
    rate, decay = 0.1, 0.5
    recipe = Recipe(
        epochs=9, batch_size=12, learning_rate=rate, schedule="plateau", weight_decay=decay, fixed_decay=fixed
    )
    model, left = idle_model(), []
    progress = training.Progress()
    for _ in training.epochs(model, tiny(), recipe, progress):
        left.append(float(keras.ops.mean(model.get_layer("head").kernel)))
    assert progress.history["learning_rate"] == pytest.approx([rate] * 6 + [rate / 2] * 3)
    steps = 4
    lost = 1 - (np.array(left) / np.array([1, *left[:-1]])) ** (1 / steps)
    np.testing.assert_allclose(lost, [rate * decay] * 6 + [rate * decay * (1 if fixed else 0.5)] * 3, rtol=1e-3)
    assert optimizers.rates(model, [0]) == {0: pytest.approx(rate)}  # as compiled
    assert optimizers.updates(model)[0]["decay"] == decay


@pytest.mark.parametrize("ratio", [0.2, 1.0])
def test_muon_moves_matrices_in_all_directions_alike_and_the_head_as_adamw_does(ratio):
    model, rate = small_model(), 0.01
    recipe = changed(optimizer="muon", adamw_ratio=ratio, learning_rate=rate, weight_decay=0.0)
    optimizers.compile_model(model, recipe, 1)
    before = [keras.ops.convert_to_numpy(w) for w in model.trainable_weights]
    rng = np.random.default_rng(0)
    gradients = [keras.ops.convert_to_tensor(rng.normal(size=w.shape).astype("float32")) for w in before]
    model.optimizer.apply(gradients, model.trainable_weights)
    moved = {w.path: keras.ops.convert_to_numpy(w) - b for w, b in zip(model.trainable_weights, before, strict=True)}
    pointwise = moved.pop("block_0/pointwise/kernel") / (rate * 0.2 * np.sqrt(8))
    singular = np.linalg.svd(pointwise, compute_uv=False)
    assert len(singular) == 8 and 0.6 < singular.min() <= singular.max() < 1.3
    for path, step in moved.items():  # Adam's first step is the rate, against the gradient's sign
        np.testing.assert_allclose(np.abs(step), rate * ratio, rtol=1e-3, err_msg=path)


@pytest.mark.parametrize("shape", [(8, 20), (20, 8)])
def test_muon_in_bfloat16_steps_where_muon_does(shape):
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    exact, rounded = (kind().zeropower_via_newtonschulz5(x, 5) for kind in (keras.optimizers.Muon, optimizers.Muon))
    np.testing.assert_allclose(rounded, exact, atol=0.1 * np.abs(exact).max())
    assert np.abs(rounded - exact).mean() < 0.1 * np.abs(exact).mean()
    for dtype, kind in (("float32", keras.optimizers.Muon), ("mixed_bfloat16", optimizers.Muon)):
        model = small_model(dtype=dtype)
        optimizers.compile_model(model, changed(optimizer="muon"), 1)
        assert type(model.optimizer) is kind


def test_label_smoothing_is_in_the_loss():
    model, data = small_model(), tiny()
    optimizers.compile_model(model, Recipe(label_smoothing=0.3), 1)
    logits = model.predict(data.validation.images, verbose=0).astype("float64")
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    wanted = 0.7 * np.eye(3)[data.validation.labels] + 0.1
    expected = -(wanted * log_p).sum(axis=1).mean()
    np.testing.assert_allclose(training.evaluate(model, data.validation)["loss"], expected, rtol=1e-5)


def test_small_float16_gradients_are_scaled_whatever_the_recipe_says():
    model = small_model(dtype="mixed_float16")
    optimizers.compile_model(model, changed(precision="float32"), 1)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
