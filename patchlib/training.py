"""Training epoch by epoch: batches, schedule, optimiser, and the weights to keep.

``epochs`` is a generator that yields after each epoch, so whoever drives it can save, report or stop in between, and
its whole state is in what it yields: a run continued from there ends as one that was never interrupted.
"""

import math
import sys
import time
import warnings
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

# A run of fewer steps is warned of, since a network that starts from nothing has hardly moved by then, and told how to
# get as many as the second.
FEW_STEPS, ENOUGH_STEPS = 200, 500

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
            adam_weight_decay=recipe.weight_decay * recipe.adamw_ratio,  # Keras multiplies it by Muon's rate
            **shared,
        )
    else:
        optimizer = keras.optimizers.AdamW(**shared)
    # Keras would put the average in the weights' place when `fit` ends, which here is after each epoch.
    optimizer.finalize_variable_values = lambda variables: None
    if recipe.decay_on == "kernels":
        optimizer.exclude_from_weight_decay([w for w in model.trainable_variables if len(w.shape) < 2])
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


def updates(model: keras.Model) -> list[dict]:
    """What the compiled optimiser does to which weights, read back from it: a row for each way of updating.

    Each row has ``rule`` ("muon" or "adamw"), ``rate``, the share of the learning rate, ``decay``, what a step takes of
    each weight as a share of the learning rate, and ``weights``, the paths of the weights.
    """
    optimizer, rows = _inner(model.optimizer), {}
    for weight in model.trainable_variables:
        rule, rate, decay = "adamw", 1.0, optimizer.weight_decay
        if isinstance(optimizer, keras.optimizers.Muon):
            rule, rate = ("adamw", optimizer.adam_lr_ratio) if optimizer._should_use_adamw(weight) else ("muon", 1.0)
            decay = optimizer.weight_decay if rule == "muon" else optimizer.adam_weight_decay
        decay = decay if optimizer._use_weight_decay(weight) else 0.0
        rows.setdefault((rule, rate, decay), []).append(weight.path)
    return [dict(zip(("rule", "rate", "decay"), key, strict=True), weights=paths) for key, paths in rows.items()]


def rates(model: keras.Model, steps: list[int]) -> dict[int, float]:
    """The compiled optimiser's learning rate at each of these steps, read back from it."""
    rate = _inner(model.optimizer).get_config()["learning_rate"]
    if isinstance(rate, dict):
        schedule = keras.optimizers.schedules.deserialize(rate)
        return {step: float(schedule(step)) for step in steps}
    return dict.fromkeys(steps, float(rate))


def _inner(optimizer):
    """The optimiser itself, without the scaling of the loss."""
    return getattr(optimizer, "inner_optimizer", optimizer)


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


def _give_average(model: keras.Model, batches: Batches) -> None:
    """Give a model the moving average of its weights, and BatchNorm the statistics that go with it, over 32 batches.

    The average is ``momentum * average + (1 - momentum) * weights`` after every step, and begins as the weights after
    the first. The statistics of the weights themselves would be others (Izmailov et al., "Averaging Weights Leads to
    Wider Optima and Better Generalization", 2018, section 3.2).
    """
    swap = keras.callbacks.SwapEMAWeights()
    swap.set_model(model)
    swap.on_test_begin()
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for step in range(min(32, len(batches)) if norms else 0):
        for norm in norms:
            norm.momentum = step / (step + 1)  # so that the moving average is the mean of all so far
        model(batches[step][0], training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def count_steps(split: Split, recipe: Recipe) -> int:
    """Optimiser steps in an epoch of these training images."""
    return len(split) // min(recipe.batch_size, len(split))


def warn_of_few_steps(split: Split, recipe: Recipe) -> None:
    """Warn of a run too short to learn, or to average its weights, and name the parameters that would change it."""
    steps = recipe.epochs * count_steps(split, recipe)
    if steps < FEW_STEPS:
        batch_size = max(1, min(recipe.batch_size, 2 ** int(math.log2(max(1, len(split) / 8)))))
        epochs = math.ceil(ENOUGH_STEPS / (len(split) // batch_size))
        warnings.warn(
            f"batch_size {recipe.batch_size} and epochs {recipe.epochs} make {steps} steps of {len(split)} training "
            f"images, too few to learn much: batch_size {batch_size} and epochs {epochs} would make "
            f"{epochs * (len(split) // batch_size):,}.",
            stacklevel=2,
        )
    if recipe.ema and steps * (1 - recipe.ema) < 5 - 1e-9:
        warnings.warn(
            f"ema {recipe.ema} needs {5 / (1 - recipe.ema):,.0f} steps, and this run has {steps:,}: its average still "
            f"remembers the start. Give more epochs, or an ema of {max(0.0, math.floor(1000 - 5000 / steps) / 1000)}.",
            stacklevel=2,
        )


def epochs(model: keras.Model, data: Data, recipe: Recipe, progress: Progress) -> Iterator[Progress]:
    """Train from where ``progress`` stands to the recipe's last epoch, yielding after each.

    After the last one the model holds the weights of the best epoch, by validation (``recipe.select_by``); with an EMA
    those are averages, with BatchNorm statistics of their own. The test images are never looked at.

    Raises:
        FloatingPointError: the loss is no longer a finite number.
    """
    steps = count_steps(data.train, recipe)
    compile_model(model, recipe, steps)
    # All that a step reads: weights, seeds of random layers, the optimiser's step, moments and averages.
    state = [*model.variables, *model.optimizer.variables]
    if progress.epoch:
        _assign(state, progress.state)
    with tqdm(
        initial=progress.epoch * steps, total=recipe.epochs * steps, unit="step", disable=not sys.stderr.isatty()
    ) as bar:
        tick = keras.callbacks.LambdaCallback(on_train_batch_end=lambda step, logs: bar.update())
        callbacks = [keras.callbacks.TerminateOnNaN(), tick]
        for epoch in range(progress.epoch, recipe.epochs):
            if out_of_patience(progress.history.get("val_loss", []), recipe.patience):
                break
            if recipe.schedule == "plateau":
                _set_rate(model, recipe, plateau_factor(progress.history.get("val_loss", [])))
            batches = Batches(data.train, data.num_classes, recipe, epoch)
            bar.set_description(f"epoch {epoch + 1}/{recipe.epochs}")
            start = time.perf_counter()
            fitted = model.fit(batches, shuffle=False, verbose=0, callbacks=callbacks).history
            row = {"loss": fitted["loss"][0], "accuracy": fitted["accuracy"][0], "seconds": time.perf_counter() - start}
            row["learning_rate"] = float(model.optimizer.learning_rate)  # at the end of the epoch, as Keras logs it
            _refuse_divergence(row["loss"], epoch, recipe)
            progress.state = [np.array(v) for v in state]
            if recipe.ema:
                _give_average(model, batches)
            row |= {f"val_{k}": v for k, v in evaluate(model, data.validation, recipe.batch_size).items()}
            _refuse_divergence(row["val_loss"], epoch, recipe)
            for name, value in row.items():
                progress.history.setdefault(name, []).append(value)
            if _best(progress.history, recipe.select_by) == epoch:
                progress.best_epoch, progress.best_weights = epoch, model.get_weights()
            if recipe.ema:
                _assign(state, progress.state)
            bar.set_postfix(loss=f"{row['loss']:.3f}", val_accuracy=f"{row['val_accuracy']:.4f}")
            yield progress
    if recipe.schedule == "plateau":
        _set_rate(model, recipe, 1.0)  # as compiled
    model.set_weights(progress.best_weights)


def _assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _set_rate(model, recipe, factor):
    """The plateau's learning rate; with ``fixed_decay`` what a step takes of the weights stays what it was."""
    optimizer = _inner(model.optimizer)
    optimizer.learning_rate = recipe.learning_rate * factor
    decay = recipe.weight_decay / factor if recipe.fixed_decay else recipe.weight_decay
    if optimizer.weight_decay != decay:
        optimizer.weight_decay = decay
        model.make_train_function(force=True)  # which holds the old one as a constant


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
