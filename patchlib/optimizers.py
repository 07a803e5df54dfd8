"""The optimiser that a recipe asks for, its learning rate over the steps, and what it does, read back from it."""

from collections import Counter

import numpy as np

from patchlib.backend import keras
from patchlib.layers import kernels
from patchlib.parameters import Recipe


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
        return self.peak * keras.ops.minimum(up, keras.ops.maximum(down, keras.ops.maximum(out, 0.0)))

    def get_config(self):
        return {"peak": self.peak, "steps": self.steps}


@keras.saving.register_keras_serializable("patchlib")
class Muon(keras.optimizers.Muon):
    """Keras' Muon, whose iterations of matrix products are done in bfloat16, as in Jordan's own (2024).

    Where that's slower and worse than float32 they are done in that.
    """

    def zeropower_via_newtonschulz5(self, x, steps):
        unit = keras.ops.cast(x / (keras.ops.norm(x) + 1e-7), kernels.exact("bfloat16"))
        return keras.ops.cast(super().zeropower_via_newtonschulz5(unit, steps), x.dtype)


def learning_rate(recipe: Recipe, steps_per_epoch: int):
    """The recipe's learning rate over the run: a number, or a Keras schedule over steps."""
    steps = recipe.epochs * steps_per_epoch
    warmup = min(round(recipe.warmup_epochs * steps_per_epoch), steps - 1)
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


def dtype_policy(model: keras.Model) -> str:
    """The dtype policy of most of the model's layers; the logits are float32 under any."""
    return Counter(layer.dtype_policy.name for layer in model.layers).most_common(1)[0][0]


def compile_model(model: keras.Model, recipe: Recipe, steps_per_epoch: int, *sharing: keras.Model) -> None:
    """Give the model, and others of the same weights, its optimiser, cross-entropy on logits, accuracy and top-5."""
    shared = {"learning_rate": learning_rate(recipe, steps_per_epoch), "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "muon":  # whose update of a matrix has a root mean square of 0.2 times the rate
        kind = Muon if dtype_policy(model) == "mixed_bfloat16" else keras.optimizers.Muon
        optimizer = kind(
            exclude_layers=["^head/", "^pool/", "^position/"],
            adam_lr_ratio=recipe.adamw_ratio,
            adam_weight_decay=recipe.weight_decay * recipe.adamw_ratio,  # Keras multiplies it by Muon's rate
            **shared,
        )
    else:
        optimizer = keras.optimizers.AdamW(**shared)
    if recipe.decay_on == "kernels":
        optimizer.exclude_from_weight_decay([w for w in model.trainable_variables if len(w.shape) < 2])
    if dtype_policy(model) == "mixed_float16":  # its small gradients would become zero
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    for each in (model, *sharing):
        each.compile(
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
    rows: dict[tuple, list[str]] = {}
    optimizer = _inner(model.optimizer)
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


def set_rate(model, recipe, factor):
    """The plateau's learning rate; with ``fixed_decay`` what a step takes of the weights stays what it was."""
    optimizer = _inner(model.optimizer)
    optimizer.learning_rate = recipe.learning_rate * factor
    decay = recipe.weight_decay / factor if recipe.fixed_decay else recipe.weight_decay
    if optimizer.weight_decay != decay:
        optimizer.weight_decay = decay
        model.make_train_function(force=True)  # which holds the old one as a constant
