import keras
import numpy as np
import pytest

from patchlib import models, training
from patchlib.data import Data, Split
from patchlib.parameters import Recipe


def tiny(count=48, seed=0, test_labels=None):
    """Three easy classes: which third of the picture is bright."""
    rng = np.random.default_rng(seed)

    def split(n):
        labels = np.arange(n) % 3
        images = rng.integers(0, 80, (n, 6, 6, 3), dtype="uint8")
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 2] += 150
        return Split(images, labels)

    train, validation, test = split(count), split(12), split(12)
    if test_labels is not None:
        test = Split(test.images, test_labels)
    return Data("tiny", train, validation, test, ("a", "b", "c"), f"tiny-{seed}")


def small_model(seed=0, **arguments):
    keras.utils.set_random_seed(seed)
    return models.convmixer(
        (6, 6, 3), 3, **{"dim": 8, "depth": 1, "kernel_size": 3, "batchnorm_momentum": 0.8} | arguments
    )


def run(recipe, data=None, model=None):
    model = model or small_model(recipe.seed)
    *_, progress = training.epochs(model, data or tiny(), recipe, training.Progress())
    return model, progress.history, progress


RECIPE = Recipe(epochs=3, batch_size=12, learning_rate=0.02, flip=True, pad=1)


def changed(**changes):
    return Recipe(**RECIPE.model_dump() | changes)


@pytest.mark.parametrize("more", [{}, {"trivial_augment": True, "erasing": 0.5, "mixup": 0.5, "cutmix": 1.0}])
def test_batches_depend_on_seed_epoch_and_step_alone(more):
    data, recipe = tiny(), changed(**more)
    batches = training.Batches(data.train, 3, recipe, epoch=1)
    forwards = [batches[i] for i in range(len(batches))]
    backwards = [training.Batches(data.train, 3, recipe, epoch=1)[i] for i in reversed(range(len(batches)))]
    assert all((labels.max(1) < 1).any() == bool(more) for _, labels in forwards)
    for (images, labels), (again, relabelled) in zip(forwards, reversed(backwards), strict=True):
        np.testing.assert_array_equal(images, again)
        np.testing.assert_array_equal(labels, relabelled)
    others = (
        training.Batches(data.train, 3, recipe, 2),
        training.Batches(data.train, 3, changed(seed=1, **more), 1),
    )
    assert all((other[0][0] != forwards[0][0]).any() for other in others)


def test_an_epoch_sees_every_image_once_with_its_own_label():
    data, recipe = tiny(), changed(flip=False, pad=0)
    batches = training.Batches(data.train, 3, recipe, epoch=0)
    images, labels = (np.concatenate(part) for part in zip(*[batches[i] for i in range(len(batches))], strict=True))
    assert labels.dtype == np.float32 and images.dtype == np.uint8
    assert len(np.unique(images, axis=0)) == len(data.train)
    where = [int((data.train.images == image).all((1, 2, 3)).argmax()) for image in images]
    np.testing.assert_array_equal(labels.argmax(axis=1), data.train.labels[where])
    assert len(training.Batches(data.train, 3, Recipe(batch_size=500), 0)) == 1


def rates(recipe, steps_per_epoch=10):
    schedule = training.learning_rate(recipe, steps_per_epoch)
    steps = np.arange(recipe.epochs * steps_per_epoch)
    return np.array([float(schedule(step)) if callable(schedule) else schedule for step in steps])


def test_the_first_epoch_and_a_first_evaluation_see_every_image_once():
    keras.utils.set_random_seed(0)
    train, recipe = tiny(120).train, Recipe(epochs=1, batch_size=4, flip=False)
    model = models.mlp_mixer((6, 6, 3), 3, patch_size=2, dim=8, depth=1, dropout=0, head_dropout=0)
    labels, cross_entropy = training.one_hot(train.labels, 3), keras.losses.CategoricalCrossentropy(from_logits=True)
    expected = float(cross_entropy(labels, model(train.images.astype("float32"))))
    for measure in (
        lambda: model.fit(training.Batches(train, 3, recipe, 0), shuffle=False, verbose=0).history["loss"][0],
        lambda: training.evaluate(model, train, batch_size=4)["loss"],
    ):
        model.compile(keras.optimizers.SGD(0.0), cross_entropy, metrics=["accuracy"])
        assert measure() == pytest.approx(expected, rel=1e-5)


def test_schedules():
    assert (rates(Recipe(epochs=4, learning_rate=0.1)) == 0.1).all()
    cycle = rates(Recipe(epochs=10, learning_rate=0.5, schedule="one_cycle"))
    np.testing.assert_allclose(cycle, np.interp(np.arange(100), [0, 40, 80, 100], [0, 0.5, 0.025, 0]), atol=1e-6)
    cosine = rates(Recipe(epochs=10, learning_rate=0.5, schedule="cosine"))
    np.testing.assert_allclose(cosine, 0.25 * (1 + np.cos(np.pi * np.arange(100) / 100)), atol=1e-6)
    warm = rates(Recipe(epochs=10, learning_rate=0.5, schedule="cosine", warmup_epochs=2.0))
    np.testing.assert_allclose(warm[:21], np.linspace(0, 0.5, 21), atol=1e-6)
    np.testing.assert_allclose(warm[20:], 0.25 * (1 + np.cos(np.pi * np.arange(80) / 80)), atol=1e-6)


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
        assert training.plateau_factor(losses[: epoch + 1]) * 0.8 == pytest.approx(float(model.optimizer.learning_rate))
        stopped.append(stopping.stopped_epoch > 0)
        assert training.out_of_patience(losses[: epoch + 1], 10) == stopped[-1]
        if stopped[-1]:
            break
    assert stopped == [False] * 20 + [True]
    assert not training.out_of_patience([1.0] * 50, 0)


def test_a_run_out_of_patience_ends_early():
    _, history, progress = run(changed(epochs=30, learning_rate=0.5, patience=2, select_by="val_loss"))
    assert len(history["loss"]) == progress.best_epoch + 3 < 30


def test_weight_decay_takes_learning_rate_times_decay_of_each_weight():
    model = small_model()
    training.compile_model(model, Recipe(learning_rate=0.01, weight_decay=0.5), 1)
    before = keras.ops.convert_to_numpy(model.get_layer("head").kernel)
    zeros = [keras.ops.zeros(w.shape) for w in model.trainable_weights]
    model.optimizer.apply(zeros, model.trainable_weights)
    after = keras.ops.convert_to_numpy(model.get_layer("head").kernel)
    np.testing.assert_allclose(after, before * (1 - 0.01 * 0.5), rtol=1e-5)


@pytest.mark.parametrize("ratio", [0.2, 1.0])
def test_muon_moves_matrices_in_all_directions_alike_and_the_head_as_adamw_does(ratio):
    model, rate = small_model(), 0.01
    recipe = changed(optimizer="muon", adamw_ratio=ratio, learning_rate=rate, weight_decay=0.0)
    training.compile_model(model, recipe, 1)
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


def test_label_smoothing_is_in_the_loss():
    model, data = small_model(), tiny()
    training.compile_model(model, Recipe(label_smoothing=0.3), 1)
    logits = model.predict(data.validation.images, verbose=0).astype("float64")
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    wanted = 0.7 * np.eye(3)[data.validation.labels] + 0.1
    expected = -(wanted * log_p).sum(axis=1).mean()
    np.testing.assert_allclose(training.evaluate(model, data.validation)["loss"], expected, rtol=1e-5)


def test_it_learns():
    _, history, _ = run(changed(epochs=12, pad=0))
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    assert max(history["val_accuracy"]) == 1


def test_the_same_seed_gives_the_same_history_and_another_another():
    histories = [{k: v for k, v in run(changed(seed=s))[1].items() if k != "seconds"} for s in (0, 0, 1)]
    assert histories[0] == histories[1] != histories[2]


@pytest.mark.parametrize("select_by", ["val_accuracy", "val_loss"])
def test_the_best_epoch_by_validation_is_kept(select_by):
    model, history, progress = run(changed(epochs=6, learning_rate=0.2, select_by=select_by))
    reached = training.evaluate(model, tiny().validation)
    best = max(history["val_accuracy"]) if select_by == "val_accuracy" else min(history["val_loss"])
    np.testing.assert_allclose(reached[select_by.removeprefix("val_")], best, rtol=1e-5)
    assert history[select_by][progress.best_epoch] == best
    assert best not in history[select_by][: progress.best_epoch]


def test_the_test_images_decide_nothing():
    (one, first, _), (two, second, _) = (run(RECIPE, tiny(test_labels=np.full(12, label))) for label in (0, 1))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_ema_keeps_averaged_weights():
    recipe, data, averages = changed(epochs=1, ema=0.5), tiny(), []
    plain = small_model()
    training.compile_model(plain, recipe, steps_per_epoch=4)
    for step in range(4):
        plain.train_on_batch(*training.Batches(data.train, 3, recipe, 0)[step])
        weights = keras.ops.convert_to_numpy(plain.get_layer("head").kernel)
        averages.append((averages[-1] + weights) / 2 if averages else weights)
    model, _, _ = run(recipe, data)
    kept = keras.ops.convert_to_numpy(model.get_layer("head").kernel)
    np.testing.assert_allclose(kept, averages[-1], rtol=1e-4, atol=1e-6)
    assert np.abs(kept - weights).max() > 1e-4


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains(precision):
    _, history, _ = run(changed(precision=precision), model=small_model(dtype=precision))
    assert np.isfinite(history["loss"]).all() and history["loss"][-1] < history["loss"][0]


def test_small_float16_gradients_are_scaled():
    model = small_model(dtype="mixed_float16")
    training.compile_model(model, changed(precision="mixed_float16"), 1)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)


def test_a_validation_loss_of_nan_is_no_best_epoch(monkeypatch):
    evaluate = training.evaluate
    monkeypatch.setattr(training, "evaluate", lambda *a: evaluate(*a) | {"loss": float("nan")})
    with pytest.raises(FloatingPointError, match="loss is nan in epoch 1"):
        run(changed(select_by="val_loss"))


def test_divergence_is_said_in_a_sentence():
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) in epoch 1 at a learning rate of 1e\+30"):
        run(changed(learning_rate=1e30))
