import io
import itertools
import re
import sys

import keras
import numpy as np
import pytest

from patchlib import models, optimizers, parameters, surgery, training
from patchlib.augment import shrink
from patchlib.data import Data, Split, load_data
from patchlib.parameters import Recipe

pytestmark = pytest.mark.usefixtures("eagerly")


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
def test_batches_do_not_depend_on_who_asks_for_them_and_when(more):
    data, recipe = tiny(), changed(**more)
    batches = training.Batches(data.train, 3, recipe, epoch=1)
    forwards = [batches[i] for i in range(len(batches))]
    backwards = [training.Batches(data.train, 3, recipe, epoch=1)[i] for i in reversed(range(len(batches)))]
    assert all((labels.max(1) < 1).any() == bool(more) for _, labels in forwards)
    for (images, labels), (again, relabelled) in zip(forwards, reversed(backwards), strict=True):
        np.testing.assert_array_equal(images, again)
        np.testing.assert_array_equal(labels, relabelled)


def test_order_and_augmentation_each_change_with_seed_and_epoch():
    numbered, alike = tiny().train, tiny().train
    alike.images[:] = alike.images[:1]  # so that only the augmentation makes a difference

    def batch(split, seed=0, epoch=0, step=0, **changes):
        return training.Batches(split, 3, changed(seed=seed, **changes), epoch)[step][0]

    plain = {"flip": False, "pad": 0}
    for split, changes, keys in (
        (numbered, plain, ("seed", "epoch")),
        (alike, {}, ("seed", "epoch", "step")),
        (alike, {**plain, "erasing": 1.0}, ("seed", "epoch", "step")),
    ):
        first = batch(split, **changes)
        for key in keys:
            for value in (1, 2):
                assert (batch(split, **{key: value}, **changes) != first).any(), (key, value, changes)


def test_each_epoch_of_a_run_has_batches_of_its_own(monkeypatch):
    asked = []

    class Spy(training.Batches):
        def __init__(self, split, num_classes, recipe, epoch):
            asked.append((split, recipe.seed, epoch))
            super().__init__(split, num_classes, recipe, epoch)

    data, recipe = tiny(), changed(seed=5)
    monkeypatch.setattr(training, "Batches", Spy)
    run(recipe, data)
    assert asked == [(data.train, 5, 0), (data.train, 5, 1), (data.train, 5, 2)]


def test_an_epoch_sees_every_image_once_with_its_own_label():
    data, recipe = tiny(), changed(flip=False, pad=0)
    batches = training.Batches(data.train, 3, recipe, epoch=0)
    images, labels = (np.concatenate(part) for part in zip(*[batches[i] for i in range(len(batches))], strict=True))
    assert labels.dtype == np.float32 and images.dtype == np.uint8
    assert len(np.unique(images, axis=0)) == len(data.train)
    where = [int((data.train.images == image).all((1, 2, 3)).argmax()) for image in images]
    np.testing.assert_array_equal(labels.argmax(axis=1), data.train.labels[where])
    assert len(training.Batches(data.train, 3, Recipe(batch_size=500), 0)) == 1


@pytest.mark.usefixtures("compiled")
@pytest.mark.jax
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


class Recorder(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.events = []

    def on_train_begin(self, logs=None):
        self.events.append("begin")

    def on_epoch_begin(self, epoch, logs=None):
        self.events.append(("epoch", epoch))

    def on_train_batch_end(self, batch, logs=None):
        self.events.append(("step", batch, "loss" in logs))

    def on_epoch_end(self, epoch, logs=None):
        self.events.append(("ended", epoch, logs["val_accuracy"]))

    def on_train_end(self, logs=None):
        self.events.append("end")


def test_callbacks_are_called_as_by_one_fit():
    recorder, model, progress = Recorder(), small_model(), training.Progress()
    list(training.epochs(model, tiny(), changed(start_size=2), progress, [recorder]))
    accuracies = progress.history["val_accuracy"]
    steps = [("step", step, True) for step in range(4)]
    told = [[("epoch", epoch), *steps, ("ended", epoch, accuracies[epoch])] for epoch in range(3)]
    assert recorder.events == ["begin", *itertools.chain(*told), "end"] and recorder.model is model
    assert recorder.params == {"verbose": 0, "epochs": 3, "steps": 4}


def test_a_callback_may_end_training():
    stop = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: setattr(stop.model, "stop_training", True))
    for model in [small_model()] * 2:  # the second time as the first
        progress = training.Progress()
        list(training.epochs(model, tiny(), RECIPE, progress, [stop]))
        assert progress.epoch == 1


@pytest.mark.usefixtures("compiled")
@pytest.mark.jax
@pytest.mark.parametrize("start_size", [0, 2])
def test_a_callback_reads_and_writes_weights_at_each_step(start_size):
    """Also while images grow: another model is fit then, which shares them."""

    class Undo(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.first, self.steps = self.model.get_weights(), []

        def on_train_batch_end(self, batch, logs=None):
            pairs = zip(self.model.get_weights(), self.first, strict=True)
            self.steps.append(max(np.abs(now - first).max() for now, first in pairs))
            self.model.set_weights(self.first)

    undo, model = Undo(), small_model()
    list(training.epochs(model, tiny(), changed(start_size=start_size), training.Progress(), [undo]))
    assert len(undo.steps) == 12 and min(undo.steps) > 0
    assert all(np.array_equal(now, first) for now, first in zip(model.get_weights(), undo.first, strict=True))


@pytest.mark.parametrize(
    ("when", "start_size"),
    [("on_train_begin", 0), ("on_epoch_begin", 0), ("on_epoch_begin", 2), ("on_train_batch_end", 2)],
)
def test_a_callback_may_end_training_whenever_it_is_called(when, start_size):
    recorder, progress = Recorder(), training.Progress()
    stop = keras.callbacks.LambdaCallback(**{when: lambda *_, **__: setattr(stop.model, "stop_training", True)})
    list(training.epochs(small_model(), tiny(), changed(start_size=start_size), progress, [stop, recorder]))
    assert sum(event[0] == "step" for event in recorder.events) == 1 and progress.epoch == 1
    assert recorder.events[-1] == "end"


def test_a_callback_of_keras_own_that_asks_for_everything_works():
    list(training.epochs(small_model(), tiny(), RECIPE, training.Progress(), [keras.callbacks.ProgbarLogger()]))


def test_what_a_callback_makes_of_the_rate_is_in_progress():
    halve = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: setattr(
            halve.model.optimizer, "learning_rate", halve.model.optimizer.learning_rate / 2
        )
    )
    whole, progress = training.Progress(), training.Progress()
    list(training.epochs(small_model(), tiny(), RECIPE, whole, [halve]))
    next(training.epochs(small_model(), tiny(), RECIPE, progress, [halve]))  # and then it's interrupted
    list(training.epochs(small_model(), tiny(), RECIPE, progress, [halve]))
    assert progress.history["learning_rate"] == whole.history["learning_rate"] == pytest.approx([0.02, 0.01, 0.005])


def test_a_callback_sees_the_weights_that_were_validated():
    seen, data = [], tiny()
    look = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append((training.evaluate(look.model, data.validation), logs))
    )
    list(training.epochs(small_model(), data, changed(), training.Progress(), [look]))
    assert len(seen) == 3
    for there, logs in seen:
        assert there["loss"] == pytest.approx(logs["val_loss"], rel=1e-5)


def test_a_run_out_of_patience_ends_early():
    _, history, progress = run(changed(epochs=30, learning_rate=0.5, patience=2, select_by="val_loss"))
    assert len(history["loss"]) == progress.best_epoch + 3 < 30


@pytest.mark.usefixtures("compiled")
def test_it_learns():
    _, history, _ = run(changed(epochs=12, pad=0))
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    assert max(history["val_accuracy"]) == 1


@pytest.mark.usefixtures("compiled")
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


def test_two_epochs_show_both_sides_of_every_image():
    numbered = tiny(120).train
    numbered.images[:, 0, 0, 0], numbered.images[:, 0, -1, 0] = np.arange(120), np.arange(120)[::-1] + 120
    recipe = changed(alternate=True, pad=0, batch_size=40)

    def mirrored(epoch, **changes):
        batches = training.Batches(numbered, 3, recipe.model_copy(update=changes), epoch)
        images = np.concatenate([batches[step][0] for step in range(3)])
        return {int(min(image[0, 0, 0], image[0, -1, 0])): image[0, 0, 0] >= 120 for image in images}

    first, second = mirrored(0), mirrored(1)
    assert len(first) == 120 and all(first[image] != second[image] for image in first)
    assert 40 < sum(first.values()) < 80 and mirrored(2) == first and mirrored(0, seed=1) != first
    assert not any(mirrored(0, flip=False).values())


@pytest.mark.parametrize(
    ("side", "patch_size", "start_size", "epochs", "expected"),
    [
        (32, 2, 16, 6, [16, 16, 16, 24, 24, 32]),
        (32, 4, 16, 5, [16, 16, 24, 24, 32]),
        (32, 4, 16, 3, [16, 24, 32]),
        (32, 2, 28, 4, [28, 28, 28, 32]),
        (32, 2, 32, 2, [32, 32]),
        (6, 2, 2, 4, [2, 2, 4, 6]),
        (36, 6, 12, 5, [12, 18, 24, 30, 36]),
        (32, 2, 16, 1, [32]),
        (32, 2, 0, 2, [32, 32]),
    ],
)
def test_images_grow_to_their_own_size(side, patch_size, start_size, epochs, expected):
    split = Split(np.zeros((4, side, side, 3), "uint8"), np.zeros(4, int))
    recipe = parameters.ConvMixer(patch_size=patch_size, start_size=start_size, epochs=epochs, dataset="any")
    assert training.sides(split, recipe) == expected
    assert [training.Batches(split, 1, recipe, epoch)[0][0].shape[1] for epoch in range(epochs)] == expected


def test_what_can_not_grow_is_refused():
    for shape in ((6, 8), (4, 4)):
        split = Split(np.zeros((4, *shape, 3), "uint8"), np.zeros(4, int))
        with pytest.raises(ValueError, match=f"start_size: received 6 for images of {shape[0]} x {shape[1]} pixels"):
            training.sides(split, changed(start_size=6))
    with pytest.raises(ValueError, match="takes no images of 3 pixels a side: its patches are of 2"):
        run(changed(start_size=3))


@pytest.mark.usefixtures("compiled")
@pytest.mark.jax
def test_an_epoch_of_smaller_images_trains_and_validates_at_their_size():
    calm = {"flip": False, "pad": 0, "learning_rate": 1e-9, "batch_size": 48, "dataset": "tiny"}
    recipe = parameters.ViT(start_size=2, patch_size=2, epochs=4, **calm)
    data, model = tiny(), models.vit((6, 6, 3), 3, patch_size=2, dim=8, depth=1, dropout=0)
    _, history, progress = run(recipe, data, model)
    cross_entropy = keras.losses.CategoricalCrossentropy(from_logits=True)
    for epoch, side in enumerate([2, 2, 4, 6]):
        sized = surgery.at_size(model, side) if side < 6 else model
        for key, split in (("loss", data.train), ("val_loss", data.validation)):
            expected = cross_entropy(training.one_hot(split.labels, 3), sized(shrink(split.images, side)))
            assert history[key][epoch] == pytest.approx(float(expected), rel=1e-4), (key, epoch)
    assert progress.best_epoch == 3


def test_whitening_happens_once_before_the_first_epoch():
    recipe, expected = changed(whiten=True, learning_rate=1e-12, epochs=2, seed=4), small_model(4)
    surgery.whiten(expected, tiny().train.images, 4)
    start = np.asarray(expected.get_layer("stem").embed.kernel)
    assert not np.allclose(start, small_model(4).get_layer("stem").embed.kernel, atol=1e-3)
    model, _, progress = run(recipe)
    np.testing.assert_allclose(model.get_layer("stem").embed.kernel, start, atol=1e-6)
    for weight, value in zip(model.variables, progress.state, strict=False):
        weight.assign(value)
    model.get_layer("stem").embed.kernel.assign(0 * start)
    progress.state[: len(model.variables)] = [np.array(v) for v in model.variables]
    progress.history = {name: [-1.0] for name in progress.history}  # so that the second epoch is the best
    *_, _ = training.epochs(model, tiny(), recipe, progress)
    assert np.abs(model.get_layer("stem").embed.kernel).max() < 1e-6  # what it went on with


def test_the_best_epoch_is_one_of_whole_images(monkeypatch):
    reached, evaluate = iter([0.9, 0.8, 0.7, 0.6]), training.evaluate
    monkeypatch.setattr(training, "evaluate", lambda *a: evaluate(*a) | {"accuracy": next(reached)})
    recipe = parameters.ConvMixer(start_size=4, patch_size=2, epochs=4, batch_size=12, dataset="tiny")
    seen = []
    for progress in training.epochs(small_model(), tiny(), recipe, training.Progress()):
        seen.append(progress.best_epoch)
    assert seen == [0, 0, 0, 3]


def test_the_test_images_decide_nothing():
    (one, first, _), (two, second, _) = (run(RECIPE, tiny(test_labels=np.full(12, label))) for label in (0, 1))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("count", "recipe", "words"),
    [
        (129, Recipe(epochs=25), ["batch_size 128 and epochs 25 make 25 steps of 129", "batch_size 16 and epochs 63"]),
        (5, Recipe(), ["batch_size 5 and epochs 500 would make 500"]),
        (
            43,
            Recipe(epochs=2, batch_size=64),
            ["batch_size 64 and epochs 2", "batch_size 8 and epochs 100", "would make 500"],
        ),
    ],
)
def test_too_few_steps_are_remarked_on_with_what_would_do(count, recipe, words):
    split = Split(np.zeros((count, 1, 1, 3), "uint8"), np.zeros(count, int))
    (sentence,) = training.few_steps(split, recipe)
    assert all(word in sentence for word in words), sentence


@pytest.mark.usefixtures("compiled")
def test_what_the_remark_names_works_on_thirty_pictures_a_class():
    digits = load_data("digits")
    chosen = np.concatenate([np.flatnonzero(digits.train.labels == label)[:30] for label in range(4)])
    held_out = Split(*(part[digits.test.labels < 4] for part in (digits.test.images, digits.test.labels)))
    data = Data("few", Split(digits.train.images[chosen], digits.train.labels[chosen]), held_out, held_out, "0123", "")
    recipe = Recipe(epochs=8, learning_rate=0.01, schedule="one_cycle", weight_decay=0.02, flip=False)
    (sentence,) = training.few_steps(data.train, recipe)
    numbers = re.search(r"batch_size (\d+) and epochs (\d+) would make", sentence)
    named = {"batch_size": int(numbers[1]), "epochs": int(numbers[2])}
    accuracies = []
    for changes in ({}, named):
        keras.utils.set_random_seed(0)
        model = models.convmixer(data.input_shape, 4, dim=8, depth=1, patch_size=8, kernel_size=3)
        run(Recipe(**recipe.model_dump() | changes), data, model)
        accuracies.append(training.evaluate(model, held_out)["accuracy"])
    assert accuracies[1] > max(0.9, accuracies[0] + 0.1)


def test_on_a_terminal_a_bar_tells_epochs_steps_and_numbers(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    history = run(RECIPE)[1]
    shown = terminal.getvalue().split("\r")
    for epoch in (1, 2, 3):
        assert any(line.startswith(f"epoch {epoch}/3:") for line in shown)
    assert "12/12" in shown[-1] and f"val_accuracy={history['val_accuracy'][-1]:.4f}" in shown[-1]
    assert f"loss={history['loss'][-1]:.3f}" in shown[-1]


def test_enough_steps_are_passed_over():
    assert training.few_steps(Split(np.zeros((640, 1, 1, 3), "uint8"), np.zeros(640, int)), Recipe(epochs=40)) == []


def test_evaluation_counts_what_the_predictions_say():
    """Accuracy, top-5 accuracy and loss, once more by hand."""
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (50, 6, 6, 3), dtype="uint8"), rng.integers(0, 9, 50))
    model = models.convmixer((6, 6, 3), 9, dim=8, depth=1, kernel_size=3)
    model.get_layer("head").kernel.assign(rng.normal(0, 3, (8, 9)))
    optimizers.compile_model(model, Recipe(), 1)
    logits = model.predict(split.images, verbose=0).astype("float64")
    ranks = (logits > np.take_along_axis(logits, split.labels[:, None], 1)).sum(1)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = {
        "loss": -log_p[np.arange(50), split.labels].mean(),
        "accuracy": (ranks == 0).mean(),
        "top5": (ranks < 5).mean(),
    }
    assert 0 < expected["accuracy"] < expected["top5"] < 1
    for batch_size in (50, 7):
        assert training.evaluate(model, split, batch_size) == pytest.approx(expected, rel=1e-5)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains(precision):
    _, history, _ = run(changed(precision=precision), model=small_model(dtype=precision))
    assert np.isfinite(history["loss"]).all() and history["loss"][-1] < history["loss"][0]


def test_a_validation_loss_of_nan_is_no_best_epoch(monkeypatch):
    evaluate = training.evaluate
    monkeypatch.setattr(training, "evaluate", lambda *a: evaluate(*a) | {"loss": float("nan")})
    with pytest.raises(FloatingPointError, match="loss is nan in epoch 1"):
        run(changed(select_by="val_loss"))


def test_divergence_is_said_in_a_sentence():
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) in epoch 1 at a learning rate of 1e\+30"):
        run(changed(learning_rate=1e30))
