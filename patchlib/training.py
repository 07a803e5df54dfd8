"""Training epoch by epoch: batches, schedule, optimiser, and the weights to keep.

``epochs`` is a generator that yields after each epoch, so whoever drives it can save, report or stop in between, and
its whole state is in what it yields: a run continued from there ends as one that was never interrupted.
"""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from tqdm import tqdm

from patchlib import optimizers, surgery
from patchlib.augment import Augmentation, Mixing, alternating_flip, shrink
from patchlib.backend import keras
from patchlib.data import Data, Split
from patchlib.parameters import Recipe

# Which random stream of an epoch is meant, so that no two of them coincide.
_ORDER, _AUGMENTATION, _FLIP = 1, 2, 3

# A run of fewer steps than the first is remarked on, since a network that starts from nothing has hardly moved by then,
# and told how to get as many as the second.
FEW_STEPS, ENOUGH_STEPS = 200, 500

# Threads that prepare batches. With one, Keras leaves that to tf.data, whose tuning thread TensorFlow 2.21 may wait for
# at an epoch's end, for up to a minute. With more, on JAX, the first epoch would see some batches twice and others not.
_WORKERS = 2 if keras.backend.backend() == "tensorflow" else 1


class Batches(keras.utils.PyDataset):
    """One epoch of shuffled, augmented batches: uint8 images (B, H, W, C) and one-hot float32 labels (B, classes).

    Order and augmentation depend on (seed, epoch, step) alone, whatever asks for the batches and in whatever order.
    The last, incomplete batch is left out; which images fall into it changes with each epoch's order. In epochs of
    smaller images (see ``sides``) these are made smaller last of all.
    """

    def __init__(self, split: Split, num_classes: int, recipe: Recipe, epoch: int):
        super().__init__(workers=_WORKERS)
        self.split, self.num_classes, self.seed, self.epoch = split, num_classes, recipe.seed, epoch
        self.batch_size = min(recipe.batch_size, len(split))
        self.augment = Augmentation(**recipe.arguments(Augmentation))
        self.mix = Mixing(**recipe.arguments(Mixing))
        self.mirrored_first = None
        if recipe.flip and recipe.alternate:
            self.augment = replace(self.augment, flip=False)
            self.mirrored_first = np.random.default_rng((recipe.seed, _FLIP)).random(len(split)) < 0.5
        self.order = np.random.default_rng((recipe.seed, epoch, _ORDER)).permutation(len(split))
        self.side = sides(split, recipe)[epoch]

    def __len__(self):
        return len(self.split) // self.batch_size

    def __getitem__(self, step):
        index = self.order[step * self.batch_size : (step + 1) * self.batch_size]
        rng = np.random.default_rng((self.seed, self.epoch, _AUGMENTATION, step))
        images = self.split.images[index]
        if self.mirrored_first is not None:
            images = alternating_flip(images, self.mirrored_first[index], self.epoch)
        images = self.augment(images, rng)
        images, targets = self.mix(images, one_hot(self.split.labels[index], self.num_classes), rng)
        return shrink(images, self.side), targets


def sides(split: Split, recipe: Recipe) -> list[int]:
    """How many pixels high images are in each epoch: as they are, unless the recipe has a ``start_size``.

    Then they grow evenly, from that in the first epoch to their own size in the last, in steps of a quarter of it, or
    of the multiple of the recipe's ``patch_size`` next below.

    Raises:
        ValueError: the images aren't square, or not larger than ``start_size``.
    """
    height, width = split.images.shape[1:3]
    if not recipe.start_size:
        return [height] * recipe.epochs
    if height != width or height < recipe.start_size:
        raise ValueError(
            f"start_size: received {recipe.start_size} for images of {height} x {width} pixels, accepted: 0, or at "
            "most the side of square images."
        )
    patch_size, last = getattr(recipe, "patch_size", 1), recipe.epochs - 1
    step = patch_size * max(1, height // (4 * patch_size))
    grown = [(height - recipe.start_size) * epoch // last // step * step for epoch in range(last)]
    return [recipe.start_size + pixels for pixels in grown] + [height]


def one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Integer labels (N,) to float32 (N, num_classes)."""
    return np.eye(num_classes, dtype="float32")[labels]


def out_of_patience(val_losses: list[float], patience: int) -> bool:
    """Whether the last ``patience`` epochs were all no better than the best before them; never where it's 0."""
    return 0 < patience < len(val_losses) and min(val_losses[-patience:]) >= min(val_losses[:-patience])


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


def count_steps(split: Split, recipe: Recipe) -> int:
    """Optimiser steps in an epoch of these training images."""
    return len(split) // min(recipe.batch_size, len(split))


def few_steps(split: Split, recipe: Recipe) -> list[str]:
    """A sentence on a run too short to learn, with the parameters that would change it, or none."""
    steps = recipe.epochs * count_steps(split, recipe)
    if steps >= FEW_STEPS:
        return []
    batch_size = min(recipe.batch_size, max(8, 2 ** int(math.log2(max(1, len(split) / 8)))), len(split))
    epochs = math.ceil(ENOUGH_STEPS / (len(split) // batch_size))
    return [
        f"batch_size {recipe.batch_size} and epochs {recipe.epochs} make {steps} steps of {len(split)} training "
        f"images, too few to learn much: batch_size {batch_size} and epochs {epochs} would make "
        f"{epochs * (len(split) // batch_size):,}."
    ]


def epochs(
    model: keras.Model,
    data: Data,
    recipe: Recipe,
    progress: Progress,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> Iterator[Progress]:
    """Train from where ``progress`` stands to the recipe's last epoch, yielding after each.

    After the last one the model holds the weights of the best epoch, by validation (``recipe.select_by``). An epoch of
    smaller images is validated at their size, and gives way to any of larger ones. The test images are never looked at.

    ``callbacks`` are called as by one ``fit`` over all epochs, with the numbers that these have in the whole run; after
    an epoch they get its row of ``progress.history``, and find the weights that were validated. What they make of these
    or of the learning rate is in ``progress``. They may end training by ``model.stop_training``, as in ``fit``.

    Raises:
        FloatingPointError: the loss is no longer a finite number.
        ValueError: the model, or its images, can't be had at the sizes that ``recipe.start_size`` asks for.
    """
    steps, grown = count_steps(data.train, recipe), sides(data.train, recipe)
    sized = {side: surgery.at_size(model, side) for side in grown if side != grown[-1]} | {grown[-1]: model}
    optimizers.compile_model(model, recipe, steps, *sized.values())
    # All that a step reads: weights, seeds of random layers, the optimiser's step, moments.
    state = [*model.variables, *model.optimizer.variables]
    if progress.epoch:
        _assign(state, progress.state)
    elif recipe.whiten and not recipe.init_from:
        surgery.whiten(model, data.train.images, recipe.seed)
    with tqdm(
        initial=progress.epoch * steps, total=recipe.epochs * steps, unit="step", disable=not sys.stderr.isatty()
    ) as bar:
        tick = keras.callbacks.LambdaCallback(on_train_batch_end=lambda step, logs: bar.update())
        params = {"verbose": 0, "epochs": recipe.epochs, "steps": steps}
        all_along = keras.callbacks.CallbackList([*callbacks, tick], model=model, **params)

        def after_step(step, logs):
            if callbacks and trained is not model and keras.backend.backend() == "jax":
                trained.jax_state_sync()  # into the weights that both share, as Keras does for a callback's own model
            all_along.on_train_batch_end(step, logs)
            model.stop_training |= stop  # which fit forgets when it begins
            trained.stop_training |= model.stop_training

        each_step = keras.callbacks.LambdaCallback(
            on_train_batch_begin=all_along.on_train_batch_begin, on_train_batch_end=after_step
        )
        model.stop_training = False
        all_along.on_train_begin()
        for epoch in range(progress.epoch, recipe.epochs):
            if out_of_patience(progress.history.get("val_loss", []), recipe.patience):
                break
            all_along.on_epoch_begin(epoch)
            stop = model.stop_training
            if recipe.schedule == "plateau":
                factor = optimizers.plateau_factor(progress.history.get("val_loss", []))
                optimizers.set_rate(model, recipe, factor)
            batches = Batches(data.train, data.num_classes, recipe, epoch)
            bar.set_description(f"epoch {epoch + 1}/{recipe.epochs}")
            start = time.perf_counter()
            trained = sized[grown[epoch]]
            in_fit = [keras.callbacks.TerminateOnNaN(), each_step]
            fitted = trained.fit(batches, shuffle=False, verbose=0, callbacks=in_fit).history
            row = {"loss": fitted["loss"][0], "accuracy": fitted["accuracy"][0], "seconds": time.perf_counter() - start}
            row["learning_rate"] = float(model.optimizer.learning_rate)  # at the end of the epoch, as Keras logs it
            row["side"] = grown[epoch]
            _refuse_divergence(row["loss"], epoch, recipe)
            held_out = evaluate(trained, data.validation, 2 * recipe.batch_size)  # without gradients twice as many fit
            row |= {f"val_{k}": v for k, v in held_out.items()}
            _refuse_divergence(row["val_loss"], epoch, recipe)
            for name, value in row.items():
                progress.history.setdefault(name, []).append(value)
            if _best(progress.history, recipe.select_by) == epoch:
                progress.best_epoch, progress.best_weights = epoch, model.get_weights()
            all_along.on_epoch_end(epoch, row)
            progress.state = [np.array(v) for v in state]  # with what a callback has made of it
            bar.set_postfix(loss=f"{row['loss']:.3f}", val_accuracy=f"{row['val_accuracy']:.4f}")
            yield progress
            if model.stop_training:
                break
        all_along.on_train_end()
    if recipe.schedule == "plateau":
        optimizers.set_rate(model, recipe, 1.0)  # as compiled
    model.set_weights(progress.best_weights)


def _assign(variables, values):
    if [variable.shape for variable in variables] != [value.shape for value in values]:
        raise ValueError("the checkpoint's state is of other shapes than the model's and its optimizer's: remove it.")
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _best(history, select_by) -> int:
    """The epoch to keep, of those of images as large as the latest one's; the first of equals."""
    sign, sides = -1 if select_by == "val_loss" else 1, history["side"]
    whole = [epoch for epoch, side in enumerate(sides) if side == sides[-1]]
    return max(whole, key=lambda epoch: sign * history[select_by][epoch])


def _refuse_divergence(loss, epoch, recipe):
    if not np.isfinite(loss):
        raise FloatingPointError(
            f"training diverged: the loss is {loss} in epoch {epoch + 1} at a learning rate of "
            f"{recipe.learning_rate}; lower it, or give schedule='cosine' a warm-up."
        )


def evaluate(model: keras.Model, split: Split, batch_size: int = 128) -> dict[str, float]:
    """Loss, accuracy and top-5 accuracy of a compiled model on a split, as floats.

    Images larger than the model's are made smaller.
    """
    return model.evaluate(_InOrder(split, model, batch_size), verbose=0, return_dict=True)


def logits(model: keras.Model, split: Split) -> np.ndarray:
    """What a model says of each of a split's images: float32 (N, classes). On a terminal a bar shows how far it is."""
    count = len(split)
    # In batches of one size, of which the last begins anew, so that the backend compiles once.
    batches = np.arange(math.ceil(count / 128) * 128).reshape(-1, 128) % count
    shown = tqdm(batches, "answers", unit="batch", leave=False, disable=not sys.stderr.isatty())
    return np.concatenate([model.predict_on_batch(split.images[index]) for index in shown])[:count]


class _InOrder(keras.utils.PyDataset):
    """A split's images and one-hot labels in their order, in batches of which the last may be smaller."""

    def __init__(self, split, model, batch_size):
        super().__init__(workers=_WORKERS)
        self.split, self.batch_size = split, batch_size
        self.side, self.num_classes = model.input_shape[1], model.output_shape[-1]

    def __len__(self):
        return math.ceil(len(self.split) / self.batch_size)

    def __getitem__(self, step):
        part = slice(step * self.batch_size, (step + 1) * self.batch_size)
        return shrink(self.split.images[part], self.side), one_hot(self.split.labels[part], self.num_classes)
