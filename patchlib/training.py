"""Training epoch by epoch: batches, schedule, optimiser, and the weights to keep.

``epochs`` is a generator that yields after each epoch, so whoever drives it can save, report or stop in between, and
its whole state is in what it yields: a run continued from there ends as one that was never interrupted.
"""

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import keras
import numpy as np
from tqdm import tqdm

from patchlib.augment import Augmentation, Mixing
from patchlib.data import Data, Split
from patchlib.parameters import Recipe

# Which random stream of an epoch is meant, so that no two of them coincide.
_ORDER, _AUGMENTATION = 1, 2

# Threads that prepare batches. With one, Keras leaves that to tf.data, whose tuning thread TensorFlow 2.21 may wait for
# at an epoch's end, for up to a minute. With more, on JAX, the first epoch would see some batches twice and others not.
_WORKERS = 2 if keras.backend.backend() == "tensorflow" else 1


class Batches(keras.utils.PyDataset):
    """One epoch of shuffled, augmented batches: uint8 images (B, H, W, C) and one-hot float32 labels (B, classes).

    Order and augmentation depend on (seed, epoch, step) alone, whatever asks for the batches and in whatever order.
    The last, incomplete batch is left out; which images fall into it changes with each epoch's order.
    """

    def __init__(self, split: Split, num_classes: int, recipe: Recipe, epoch: int):
        super().__init__(workers=_WORKERS)
        self.split, self.num_classes, self.seed, self.epoch = split, num_classes, recipe.seed, epoch
        self.batch_size = min(recipe.batch_size, len(split))
        self.augment, self.mix = (part(**recipe.arguments(part)) for part in (Augmentation, Mixing))
        self.order = np.random.default_rng((recipe.seed, epoch, _ORDER)).permutation(len(split))

    def __len__(self):
        return len(self.split) // self.batch_size

    def __getitem__(self, step):
        index = self.order[step * self.batch_size : (step + 1) * self.batch_size]
        rng = np.random.default_rng((self.seed, self.epoch, _AUGMENTATION, step))
        images = self.augment(self.split.images[index], rng)
        return self.mix(images, one_hot(self.split.labels[index], self.num_classes), rng)


def one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Integer labels (N,) to float32 (N, num_classes)."""
    return np.eye(num_classes, dtype="float32")[labels]


@keras.saving.register_keras_serializable("patchlib")
class OneCycle(keras.optimizers.schedules.LearningRateSchedule):
    """Linear from 0 to the peak at 40% of the steps, to a twentieth of it at 80%, and on to 0 at the end.

    Source: the CIFAR-10 recipe of ConvMixer's authors; the idea is Smith and Topin's "super-convergence" (2018).
    """

    def __init__(self, peak: float, steps: int):
        self.peak, self.steps = peak, steps

    def __call__(self, step):
        done = keras.ops.cast(step, "float32") / self.steps
        up = done / 0.4
        down = 1 - 0.95 * (done - 0.4) / 0.4
        out = 0.05 * (1 - done) / 0.2
        return self.peak * keras.ops.clip(keras.ops.minimum(up, keras.ops.maximum(down, out)), 0.0, 1.0)

    def get_config(self):
        return {"peak": self.peak, "steps": self.steps}


def learning_rate(recipe: Recipe, steps_per_epoch: int):
    """The recipe's learning rate over the run: a number, or a Keras schedule over steps."""
    steps = recipe.epochs * steps_per_epoch
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    match recipe.schedule:
        case "constant" | "plateau":
            return recipe.learning_rate
        case "one_cycle":
            return OneCycle(recipe.learning_rate, steps)
        case "cosine" if warmup:
            return keras.optimizers.schedules.CosineDecay(
                0.0, steps - warmup, warmup_target=recipe.learning_rate, warmup_steps=warmup
            )
        case "cosine":
            return keras.optimizers.schedules.CosineDecay(recipe.learning_rate, steps)


def plateau_factor(val_losses: list[float], factor: float = 0.5, patience: int = 5) -> float:
    """By what the plateau schedule has multiplied the learning rate after these epochs.

    Each time the validation loss hasn't fallen by more than 1e-4 for ``patience`` epochs, by ``factor``: Keras'
    ReduceLROnPlateau, as a function of the history, so that an interrupted run finds its rate again.
    """
    result, best, waited = 1.0, np.inf, 0
    for value in val_losses:
        if value < best - 1e-4:
            best, waited = value, 0
            continue
        waited += 1
        if waited == patience:
            result, waited = result * factor, 0
    return result


def out_of_patience(val_losses: list[float], patience: int) -> bool:
    """Whether the last ``patience`` epochs were all no better than the best before them; never where it's 0."""
    return 0 < patience < len(val_losses) and min(val_losses[-patience:]) >= min(val_losses[:-patience])


def compile_model(model: keras.Model, recipe: Recipe, steps_per_epoch: int) -> None:
    """Give the model its optimiser, cross-entropy on logits, accuracy and top-5 accuracy."""
    shared = {
        "learning_rate": learning_rate(recipe, steps_per_epoch),
        "weight_decay": recipe.weight_decay,
        "use_ema": recipe.ema > 0,
        "ema_momentum": recipe.ema or 0.99,
    }
    if recipe.optimizer == "muon":  # whose update of a matrix has a root mean square of 0.2 times the rate
        optimizer = keras.optimizers.Muon(
            exclude_layers=["^head/", "^pool/", "^position/"],
            adam_lr_ratio=recipe.adamw_ratio,
            adam_weight_decay=recipe.weight_decay,
            **shared,
        )
    else:
        optimizer = keras.optimizers.AdamW(**shared)
    if recipe.precision == "mixed_float16":  # its small gradients would become zero
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=recipe.label_smoothing),
        metrics=[
            keras.metrics.CategoricalAccuracy(name="accuracy"),
            keras.metrics.TopKCategoricalAccuracy(5, name="top5"),
        ],
    )
    model.optimizer.build(model.trainable_variables)


@dataclass
class Progress:
    """Everything that a run has reached after some epochs; ``history`` maps names to one number per epoch."""

    history: dict[str, list[float]] = field(default_factory=dict)
    best_epoch: int = -1
    best_weights: list[np.ndarray] = field(default_factory=list)
    state: list[np.ndarray] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return len(self.history.get("loss", ()))


def _state(model: keras.Model) -> list:
    """All variables that a step reads: weights, seeds of random layers, the optimiser's moments and step."""
    return [*model.variables, *model.optimizer.variables]


def epochs(model: keras.Model, data: Data, recipe: Recipe, progress: Progress) -> Iterator[Progress]:
    """Train from where ``progress`` stands to the recipe's last epoch, yielding after each.

    After the last one the model holds the weights of the best epoch, by validation (``recipe.select_by``). With an EMA
    those are averaged weights, beside BatchNorm statistics of the weights as they were. The test images are never
    looked at.

    Raises:
        FloatingPointError: the loss is no longer a finite number.
    """
    training = Batches(data.train, data.num_classes, recipe, epoch=0)
    compile_model(model, recipe, len(training))
    if progress.epoch:
        for variable, value in zip(_state(model), progress.state, strict=True):
            variable.assign(value)
    averaging = keras.callbacks.SwapEMAWeights()
    averaging.set_model(model)
    done, total = progress.epoch * len(training), recipe.epochs * len(training)
    with tqdm(initial=done, total=total, unit="step", disable=not sys.stderr.isatty()) as bar:
        tick = keras.callbacks.LambdaCallback(on_train_batch_end=lambda step, logs: bar.update())
        callbacks = [keras.callbacks.TerminateOnNaN(), tick]
        for epoch in range(progress.epoch, recipe.epochs):
            if out_of_patience(progress.history.get("val_loss", []), recipe.patience):
                break
            if recipe.schedule == "plateau":
                factor = plateau_factor(progress.history.get("val_loss", []))
                model.optimizer.learning_rate = recipe.learning_rate * factor
            batches = Batches(data.train, data.num_classes, recipe, epoch)
            bar.set_description(f"epoch {epoch + 1}/{recipe.epochs}")
            start = time.perf_counter()
            fitted = model.fit(batches, shuffle=False, verbose=0, callbacks=callbacks).history
            row = {"loss": fitted["loss"][0], "accuracy": fitted["accuracy"][0], "seconds": time.perf_counter() - start}
            _refuse_divergence(row["loss"], epoch, recipe)
            progress.state = [np.array(v) for v in _state(model)]
            if recipe.ema:
                averaging.on_test_begin()
            row |= {f"val_{k}": v for k, v in evaluate(model, data.validation, recipe.batch_size).items()}
            _refuse_divergence(row["val_loss"], epoch, recipe)
            for name, value in row.items():
                progress.history.setdefault(name, []).append(value)
            if _best(progress.history, recipe.select_by) == epoch:
                progress.best_epoch, progress.best_weights = epoch, model.get_weights()
            if recipe.ema:
                averaging.on_test_end()
            bar.set_postfix(loss=f"{row['loss']:.3f}", val_accuracy=f"{row['val_accuracy']:.4f}")
            yield progress
    model.set_weights(progress.best_weights)


def accuracy_without(model: keras.Model, split: Split, *paths: str) -> float:
    """Accuracy of a compiled model while all weights whose path starts with one of ``paths`` are zero.

    The weights are put back afterwards.

    Raises:
        ValueError: one of ``paths`` starts no weight's path.
    """
    silenced = [w for w in model.weights if w.path.startswith(paths)]
    for path in paths:
        if not any(w.path.startswith(path) for w in silenced):
            raise ValueError(f"no weight's path starts with {path!r}; there are {[w.path for w in model.weights]}")
    kept = [keras.ops.convert_to_numpy(w) for w in silenced]
    try:
        for weight in silenced:
            weight.assign(np.zeros(weight.shape))
        return evaluate(model, split)["accuracy"]
    finally:
        for weight, value in zip(silenced, kept, strict=True):
            weight.assign(value)


def _best(history, select_by) -> int:
    """The epoch to keep, the first of equals."""
    values = np.array(history[select_by])
    return int(np.argmin(values) if select_by == "val_loss" else np.argmax(values))


def _refuse_divergence(loss, epoch, recipe):
    if not np.isfinite(loss):
        raise FloatingPointError(
            f"training diverged: the loss is {loss} in epoch {epoch + 1} at a learning rate of "
            f"{recipe.learning_rate}; lower it, or give schedule='cosine' a warm-up."
        )


def evaluate(model: keras.Model, split: Split, batch_size: int = 128) -> dict[str, float]:
    """Loss, accuracy and top-5 accuracy of a compiled model on a split, as floats."""
    return model.evaluate(_InOrder(split, model.output_shape[-1], batch_size), verbose=0, return_dict=True)


class _InOrder(keras.utils.PyDataset):
    """A split's images and one-hot labels as they are, in batches of which the last may be smaller."""

    def __init__(self, split, num_classes, batch_size):
        super().__init__(workers=_WORKERS)
        self.split, self.num_classes, self.batch_size = split, num_classes, batch_size

    def __len__(self):
        return math.ceil(len(self.split) / self.batch_size)

    def __getitem__(self, step):
        part = slice(step * self.batch_size, (step + 1) * self.batch_size)
        return self.split.images[part], one_hot(self.split.labels[part], self.num_classes)
