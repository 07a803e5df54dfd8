"""Training into a run's folder: a checkpoint after each epoch, and the model and its run card when it's done.

Every file appears whole or not at all, the card last but one thing: then the checkpoints go.
"""

import contextlib
import datetime
import hashlib
import importlib.util
import inspect
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import filelock
import numpy as np

from patchlib import cards, cost, evaluation, files, machine, networks, optimizers, sources, training
from patchlib.backend import keras
from patchlib.cards import CARD, CHECKPOINT, MODEL, PREDICTIONS, PROGRESS, SCHEMA, SUMS, RunError
from patchlib.data import Data
from patchlib.parameters import ARCHITECTURES, Recipe, RunParameters
from patchlib.schema import ParameterError, brief, shown

# What a checkpoint holds beside its progress: all that training goes on from, the best weights, a hash of the three.
_STATE, _BEST, _DIGEST = "state.npz", "best.npz", "sha256"
_PLAIN = (str, int, float, bool, type(None))
_SLOW = "mixed_bfloat16 is likely slower here than float32, for lack of instructions that the backend uses"


def new_folder(parameters: RunParameters, architecture: str) -> Path:
    """The run's own folder, created.

    That's ``parameters.run_dir``, which may hold this run, interrupted. If it's empty, it's a folder that no run had
    before, below ``$PATCHLIB_RUNS`` or ``runs/``.

    Raises:
        RunError: the folder holds a finished run, or can't be written into.
    """
    if parameters.run_dir:
        return _made(parameters.run_dir)
    root = _made(os.environ.get("PATCHLIB_RUNS", "runs"))
    name = cards.folder_name(architecture, parameters)
    number = 1
    while True:
        folder = root / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def _made(name: str | os.PathLike) -> Path:
    """A folder that can be written into and holds no finished run, made if need be."""
    try:
        folder = files.user_path(name)
        _refuse_finished(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, files.PathError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"run_dir: received {shown(os.fspath(name))}, which can't be written into ({reason}).") from None
    return folder


def precision(parameters: RunParameters, folder: Path) -> str:
    """The dtype policy of a run's model: ``parameters.precision``, or for "auto" what this machine computes fastest.

    A run that goes on in ``folder`` keeps the policy that it was started with, wherever that was.

    Raises:
        ParameterError: it's bfloat16, and TensorFlow would crash in it.
    """
    policy: str = parameters.precision
    if policy == "auto":
        policy = cards.progress(folder).get("run", {}).get("dtype_policy") or machine.precision()
    if "bfloat16" in policy and machine.loses_bfloat16():
        raise ParameterError(
            f"precision: received {policy!r}, which oneDNN is kept from by ONEDNN_MAX_CPU_ISA="
            f"{os.environ['ONEDNN_MAX_CPU_ISA']}: unset it, or use 'float32' in a run of its own."
        )
    return policy


def train(
    model: keras.Model,
    data: Data,
    recipe: Recipe,
    run_dir: str | os.PathLike,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> dict:
    """Train a model, keep its best weights by validation, evaluate them once on the test images, write the run card.

    After each epoch a checkpoint is written into ``run_dir``. If ``run_dir`` holds an interrupted run of the same
    model, data and recipe, it's continued, to the same result as without the interruption.

    Args:
        model: from images 0 to 255 to logits, with its initial weights; left with the best weights, and compiled.
        data: see ``patchlib.load_data``.
        recipe: a ``Recipe``, or the parameters of a whole run, which are a recipe too.
        run_dir: the run's own folder; made if need be.
        callbacks: Keras', TensorBoard's, MLflow's ..., see ``training.epochs``. A checkpoint keeps nothing of them.

    Returns:
        The run card, as written to ``run.json``.

    Raises:
        RunError: ``run_dir`` holds a finished run, another run's checkpoint, is in use by another process, or can't be
            written into.
        ValueError: the model doesn't fit the data, or the network that ``recipe.init_from`` names.
        FloatingPointError: the loss is no longer a finite number, or an answer isn't one.
    """
    if model.input_shape[1:] != data.input_shape or model.output_shape[-1] != data.num_classes:
        raise ValueError(
            f"the model takes {model.input_shape[1:]} and gives {model.output_shape[-1]} logits; "
            f"{data.name!r} has images of {data.input_shape} and {data.num_classes} classes."
        )
    folder = _made(run_dir)
    files.flush(folder.parent)
    try:
        with filelock.FileLock(folder / ".lock", timeout=0):
            _refuse_finished(folder)  # once more: another process may just have finished it
            return _train(model, data, recipe, folder, callbacks)
    except filelock.Timeout:
        raise RunError(f"{folder} is in use by another process: choose another run_dir, or wait for it.") from None


def _train(model, data, recipe, folder, callbacks):
    for leftover in folder.glob(f"{CHECKPOINT}*.partial"):  # of a process that was killed
        shutil.rmtree(leftover)
    for name in (CARD, MODEL, PREDICTIONS):
        files.partial(folder / name).unlink(missing_ok=True)
    (folder / SUMS).unlink(missing_ok=True)  # of a run whose card somebody has removed
    if getattr(recipe, "tensorboard", False):
        callbacks = [*callbacks, _tensorboard(folder)]
    identity = _identity(model, data, recipe)
    progress, started, machines, remarks = _resume(folder, identity, model)
    machines = _with_this_machine(machines, progress.epoch + 1)
    steps = training.count_steps(data.train, recipe)
    notes = [
        *remarks,
        f"{steps:,} step{'s' * (steps > 1)} an epoch, {recipe.epochs * steps:,} in all",
        *training.few_steps(data.train, recipe),
        *([_SLOW] if "bfloat16" in identity["dtype_policy"] and not machine.has_bfloat16() else []),
    ]
    print(*notes, sep="\n")
    if progress.epoch:
        print(f"continuing after epoch {progress.epoch} of {recipe.epochs}")
    elif recipe.init_from:
        networks.start_from(model, recipe.init_from, data)
    for _ in training.epochs(model, data, recipe, progress, callbacks):
        _checkpoint(folder, progress, {"run": identity, "started": started, "machines": machines, "notes": notes})
        if not sys.stderr.isatty():
            print(cards.epoch_line(progress.history, progress.epoch - 1, recipe.epochs), flush=True)
    logits = training.logits(model, data.test)
    card = _card(model, data, recipe, identity, progress, started, machines, logits)
    predictions = _predictions(logits, data.test, card["calibration"]["temperature"])
    files.put(folder / MODEL, lambda path: networks.save(model, card, path))
    files.put(folder / PREDICTIONS, lambda path: np.savez_compressed(path, **predictions))
    files.put(folder / CARD, lambda path: path.write_text(json.dumps(card, indent=1, allow_nan=False) + "\n"))
    if not os.environ.get("PATCHLIB_KEEP_CHECKPOINT"):  # `patchlib run` keeps it until the notebook's last cell ran
        for checkpoint in cards.checkpoints(folder):
            files.discard_folder(checkpoint)
    return card


def _tensorboard(folder):
    for name in ("tensorboard", "tensorflow"):  # by which Keras writes the files, on JAX too
        if importlib.util.find_spec(name) is None:
            raise RunError(f"tensorboard: received True, and {name} isn't installed: pip install {name}.")
    return keras.callbacks.TensorBoard(str(folder / "tensorboard"), write_graph=False)


def _identity(model, data, recipe):
    """What a run must have in common with a checkpoint to go on from it."""
    return {
        "architecture": model.name,
        "parameters": recipe.model_dump(exclude={"run_dir"}),
        "fingerprint": data.fingerprint,
        "dtype_policy": optimizers.dtype_policy(model),
        "layers": {layer.name: _configuration(layer) for layer in model.layers},
    }


def _predictions(logits, split, temperature):
    """Each test image's class, the one that it's taken for, how probable that is, and the rank of the true one.

    In as few bytes as need be.
    """
    dtype, label = np.min_scalar_type(logits.shape[1]), split.labels
    found = {"label": label, "predicted": logits.argmax(axis=1), "rank": evaluation.ranks(logits, label)}
    confidence = evaluation.probabilities(logits, temperature).max(axis=1).astype("float16")
    return {name: values.astype(dtype) for name, values in found.items()} | {"confidence": confidence}


def _card(model, data, recipe, identity, progress, started, machines, logits):
    history, labels = progress.history, data.test.labels
    rank = evaluation.ranks(logits, labels)
    held_out = training.logits(model, data.validation)
    temperature = evaluation.temperature(held_out, data.validation.labels)
    val_accuracy = history["val_accuracy"][progress.best_epoch]
    if history["side"][progress.best_epoch] != data.input_shape[0]:  # a callback ended it before images had grown
        val_accuracy = float((evaluation.ranks(held_out, data.validation.labels) == 0).mean())
    errors = [evaluation.calibration_error(logits, labels, t) for t in (1.0, temperature)]
    steady = history["seconds"][1:] or history["seconds"]  # the first epoch compiles
    trainable = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    counts = {"parameters": model.count_params(), "trainable_parameters": trainable}
    if model.name in ARCHITECTURES:  # of other layers nobody knows their number
        counts["multiply_adds"] = sum(cost.of(model)["multiply_adds"].values())
    return {
        "schema": SCHEMA,
        "architecture": identity["architecture"],
        "tier": getattr(recipe, "tier", None),
        "parameters": identity["parameters"],
        "effective_weight_decay": recipe.learning_rate * recipe.weight_decay,
        "dtype_policy": identity["dtype_policy"],
        "updates": optimizers.updates(model),
        "steps_per_epoch": training.count_steps(data.train, recipe),
        "seed": recipe.seed,
        "dataset": data.describe() | {"classes": list(data.classes)},
        "model": counts,
        "history": history,
        "best_epoch": progress.best_epoch + 1,
        "metrics": {
            "val_accuracy": val_accuracy,
            "test_accuracy": float((rank == 0).mean()),
            "test_top5": float((rank < 5).mean()) if data.num_classes > 5 else None,
        },
        "test_accuracy_by_class": evaluation.accuracy_by_class(rank, labels, data.num_classes),
        # The temperature is fitted on the validation images; the error of calibration is on the test images.
        "calibration": dict(zip(("temperature", "error", "error_at_temperature"), (temperature, *errors), strict=True)),
        "weights": _weights_digest(model),
        "time": {
            "seconds": sum(history["seconds"]),
            "seconds_per_epoch": float(np.median(steady)),
            "images_per_second": len(data.train) / float(np.median(steady)),
        },
        # The machine on which the run ended, and all that took part, each from its epoch on.
        "hardware": machines[-1]["hardware"],
        "versions": machines[-1]["versions"],
        "machines": machines,
        "command": _command(identity),
        "started": started,
        "finished": _now(),
    }


def _with_this_machine(machines, epoch):
    """What a run was computed on and with, and from which epoch on, with this machine if it isn't the last already."""
    here = {"hardware": machine.hardware(), "versions": machine.versions()}
    if machines and here == {name: machines[-1].get(name) for name in here}:
        return machines
    return [*machines, {"epoch": epoch} | here]


def _weights_digest(model):
    """The sha256 of all weights, in their order, as float32."""
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(np.ascontiguousarray(weight, "<f4").data)
    return digest.hexdigest()


def _command(identity):
    """Papermill's command line for this run. With ``-p``, since YAML would read a number like 1e-05 as text."""
    notebook = f"notebooks/{identity['architecture']}.ipynb"
    given = [word for name, value in identity["parameters"].items() for word in ("-p", name, str(value))]
    return shlex.join(["papermill", notebook, "out.ipynb", "--cwd", "notebooks", *given])


def _configuration(layer):
    """A layer's class and arguments, as JSON gives them back."""
    return json.loads(json.dumps({"class": type(layer).__name__, **layer.get_config()}, default=str))


def _defaults(layer):
    """The arguments that a layer's classes have a default for, as in its configuration."""
    parameters = [
        inspect.signature(vars(kind).get("__init__", object.__init__)).parameters.values()
        for kind in reversed(type(layer).__mro__)
    ]
    return {p.name: p.default for part in parameters for p in part if p.default is not p.empty}


def _now():
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _refuse_finished(folder):
    if cards.finished(folder):
        accuracy = cards.load_card(folder)["metrics"]["test_accuracy"]
        raise RunError(
            f"{folder} holds a finished run (test accuracy {accuracy:.4f}): choose another run_dir, or remove it."
        )


def _checkpoint(folder, progress, record):
    """Write a checkpoint as a folder, whole or not at all; the one before it stays, those before that go."""
    reached = {"history": progress.history, "best_epoch": progress.best_epoch}

    def fill(partial):
        np.savez(partial / _STATE, *progress.state)
        np.savez(partial / _BEST, *progress.best_weights)
        (partial / PROGRESS).write_text(json.dumps(record | reached))
        (partial / _DIGEST).write_text(_digest(partial))

    final = folder / f"{CHECKPOINT}{progress.epoch:05}"
    if final.exists():  # broken, so that the run went on from the one before it
        files.discard_folder(final)
    files.put_folder(final, fill)
    for checkpoint in cards.checkpoints(folder)[:-2]:
        files.discard_folder(checkpoint)


def _digest(checkpoint):
    """One hash of all that a checkpoint is made of."""
    lines = cards.sums(checkpoint, (PROGRESS, _STATE, _BEST))
    return hashlib.sha256("".join(line[:64] for line in lines).encode()).hexdigest()


def _whole(checkpoint):
    with contextlib.suppress(OSError, ValueError):
        return files.read_text(checkpoint / _DIGEST) == _digest(checkpoint)
    return False


def _resume(folder, identity, model):
    """The progress of the newest checkpoint that is whole, or none yet.

    With it when the run started, the machines that took part, and sentences for who follows it.
    """
    checkpoints = cards.checkpoints(folder)
    if not checkpoints:
        return training.Progress(), _now(), [], []
    newest = next(filter(_whole, reversed(checkpoints)), None)
    if newest is None:
        raise RunError(f"{folder} holds an interrupted run, and no checkpoint of it is whole: remove it to begin anew.")
    broken = checkpoints[checkpoints.index(newest) + 1 :]
    remarks = [f"{checkpoint.name} is broken: going on from {newest.name}" for checkpoint in broken]
    try:
        record = cards.read_progress(newest / PROGRESS)
        changed = cards.difference(_comparable(record["run"], model), _comparable(identity, model))
        progress = training.Progress(
            record["history"], record["best_epoch"], *map(_arrays, (newest / _BEST, newest / _STATE))
        )
        if lacking := sorted({*cards.ROW, "side", "seconds"} - set(progress.history)):
            raise ValueError(f"its history lacks {', '.join(lacking)}")
        shortest, *longer = sorted({len(column) for column in progress.history.values()})
        if longer:
            raise ValueError(f"the columns of its history have {shortest} and {longer[-1]} epochs, accepted: the same")
        if progress.best_epoch not in range(shortest):
            raise ValueError(f"best_epoch is {shown(progress.best_epoch)}, accepted: 0 to {shortest - 1}")
        if not changed and [array.shape for array in progress.best_weights] != [w.shape for w in model.weights]:
            raise ValueError(f"{_BEST} has weights of other shapes than the model")
        started = record["started"]
    except Exception as error:  # whoever wrote it can have written nearly anything
        wrong = f"{error.args[0]} is missing" if isinstance(error, KeyError) else brief(error)
        raise RunError(f"{newest} isn't a checkpoint ({wrong}): remove it.") from error
    if changed:
        raise RunError(f"{folder} holds another run, interrupted ({changed}): choose another run_dir, or remove it.")
    return progress, started, record.get("machines", []), remarks


def _comparable(run, model):
    """What identifies a run, in one dictionary; a parameter or a layer's argument younger than it has its default."""
    flat = cards.parameters(run) | {name: run[name] for name in ("architecture", "fingerprint", "dtype_policy")}
    defaults = {layer.name: _defaults(layer) for layer in model.layers}
    for layer, configuration in run["layers"].items():
        known = {name: value for name, value in defaults.get(layer, {}).items() if isinstance(value, _PLAIN)}
        flat |= {f"{layer}: {name}": value for name, value in (known | configuration).items()}
    return flat


def _arrays(path):
    arrays = sources.load_arrays(path)
    return [arrays[f"arr_{i}"] for i in range(len(arrays))]
