"""Runs: a folder each, with checkpoints while it trains, and the model and its run card when it's done.

A run is finished when ``run.json`` stands in its folder; it's written last. Every file appears whole or not at all.
"""

import datetime
import hashlib
import importlib
import json
import os
import platform
import shlex
import shutil
import sys
from collections import Counter
from pathlib import Path

import filelock
import keras
import numpy as np

from patchlib import models, training
from patchlib.data import Data
from patchlib.parameters import ARCHITECTURES, Recipe, RunParameters

SCHEMA = 1
CARD, MODEL = "run.json", "model.keras"
_CHECKPOINT = "checkpoint-"


class RunError(RuntimeError):
    """A run's folder can't be used as asked: finished, in use, or another run's."""


def new_folder(parameters: RunParameters, architecture: str) -> Path:
    """The run's own folder, created.

    That's ``parameters.run_dir``, which may hold this run, interrupted. If it's empty, it's a folder that no run had
    before, below ``$PATCHLIB_RUNS`` or ``runs/``.

    Raises:
        RunError: the folder holds a finished run.
    """
    if parameters.run_dir:
        folder = Path(parameters.run_dir).expanduser()
        _refuse_finished(folder)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    root = Path(os.environ.get("PATCHLIB_RUNS", "runs"))
    name = f"{architecture}-{parameters.tier}-{Path(parameters.dataset).stem}-seed{parameters.seed}"
    root.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = root / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def train(model: keras.Model, data: Data, recipe: Recipe, run_dir: str | os.PathLike) -> dict:
    """Train a model, keep its best weights by validation, evaluate them once on the test images, write the run card.

    After each epoch a checkpoint is written into ``run_dir``. If ``run_dir`` holds an interrupted run of the same
    model, data and recipe, it's continued, to the same result as without the interruption.

    Args:
        model: from images 0 to 255 to logits, with its initial weights; left with the best weights, and compiled.
        data: see ``patchlib.load_data``.
        recipe: a ``Recipe``, or the parameters of a whole run, which are a recipe too.
        run_dir: the run's own folder; made if need be.

    Returns:
        The run card, as written to ``run.json``.

    Raises:
        RunError: ``run_dir`` holds a finished run, another run's checkpoint, or is in use by another process.
        ValueError: the model doesn't fit the data.
        FloatingPointError: the loss is no longer a finite number.
    """
    folder = Path(run_dir).expanduser()
    _refuse_finished(folder)
    if model.input_shape[1:] != data.input_shape or model.output_shape[-1] != data.num_classes:
        raise ValueError(
            f"the model takes {model.input_shape[1:]} and gives {model.output_shape[-1]} logits; "
            f"{data.name!r} has images of {data.input_shape} and {data.num_classes} classes."
        )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / ".lock", timeout=0):
            _refuse_finished(folder)  # once more: another process may just have finished it
            return _train(model, data, recipe, folder)
    except filelock.Timeout:
        raise RunError(f"{folder} is in use by another process: choose another run_dir, or wait for it.") from None


def _train(model, data, recipe, folder):
    for leftover in folder.glob("*.partial*"):  # of a process that was killed
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    identity = {
        "architecture": model.name,
        "parameters": _without_folder(recipe),
        "fingerprint": data.fingerprint,
        "model": _model_fingerprint(model),
    }
    progress, started = _resume(folder, identity)
    steps = training.count_steps(data.train, recipe)
    print(f"{steps:,} steps an epoch, {recipe.epochs * steps:,} in all")
    training.warn_of_few_steps(data.train, recipe)
    if progress.epoch:
        print(f"continuing after epoch {progress.epoch} of {recipe.epochs}")
    for _ in training.epochs(model, data, recipe, progress):
        _checkpoint(folder, identity, progress, started)
        last = {name: values[-1] for name, values in progress.history.items()}
        if not sys.stderr.isatty():
            print(
                f"epoch {progress.epoch}/{recipe.epochs}: loss {last['loss']:.4f}, accuracy {last['accuracy']:.4f}, "
                f"validation loss {last['val_loss']:.4f}, validation accuracy {last['val_accuracy']:.4f}",
                flush=True,
            )
    card = _card(model, data, recipe, identity, progress, started)
    bare = keras.Model(model.inputs, model.outputs, name=model.name)  # uncompiled, or loading would need the schedule
    _write_whole(folder / MODEL, bare.save)
    _write_whole(folder / CARD, lambda path: path.write_text(json.dumps(card, indent=1, allow_nan=False) + "\n"))
    if not os.environ.get("PATCHLIB_KEEP_CHECKPOINT"):  # `patchlib run` keeps it until the notebook's last cell ran
        for checkpoint in _checkpoints(folder):
            shutil.rmtree(checkpoint)
    return card


def _card(model, data, recipe, identity, progress, started):
    tested = training.evaluate(model, data.test, recipe.batch_size)
    history = progress.history
    steady = history["seconds"][1:] or history["seconds"]  # the first epoch compiles
    trainable = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    counts = {"parameters": model.count_params(), "trainable_parameters": trainable}
    if model.name in ARCHITECTURES:  # of other layers nobody knows their number
        counts["multiply_adds"] = sum(models.cost(model)["multiply_adds"].values())
    return {
        "schema": SCHEMA,
        "architecture": identity["architecture"],
        "tier": getattr(recipe, "tier", None),
        "parameters": identity["parameters"],
        "effective_weight_decay": recipe.learning_rate * recipe.weight_decay,
        "updates": training.updates(model),
        "steps_per_epoch": training.count_steps(data.train, recipe),
        "seed": recipe.seed,
        "dataset": data.describe() | {"classes": list(data.classes)},
        "model": counts,
        "history": history,
        "best_epoch": progress.best_epoch + 1,
        "metrics": {
            "val_accuracy": history["val_accuracy"][progress.best_epoch],
            "test_accuracy": tested["accuracy"],
            "test_top5": tested["top5"] if data.num_classes > 5 else None,
        },
        "time": {
            "seconds": sum(history["seconds"]),
            "seconds_per_epoch": float(np.median(steady)),
            "images_per_second": len(data.train) / float(np.median(steady)),
        },
        "hardware": hardware(),
        "versions": versions(),
        "command": _command(identity),
        "started": started,
        "finished": _now(),
    }


def load_card(path: str | os.PathLike) -> dict:
    """Read a run card, from its file or from its run's folder.

    Raises:
        RunError: there's none, or it isn't one of this schema.
    """
    path = Path(path)
    path = path / CARD if path.is_dir() else path
    try:
        card = json.loads(path.read_text())
    except FileNotFoundError:
        raise RunError(f"{path.parent} holds no finished run: there is no {path.name}.") from None
    except ValueError as error:
        raise RunError(f"{path} isn't a run card ({error}).") from None
    if not isinstance(card, dict) or card.get("schema") != SCHEMA:
        raise RunError(f"{path} isn't a run card of schema {SCHEMA}.")
    return card


def load_cards(folder: str | os.PathLike, **wanted) -> list[dict]:
    """All run cards below a folder whose entries equal ``wanted``: ``load_cards("results", tier="tuned")``."""
    cards = [load_card(path) for path in card_files(folder)]
    return [card for card in cards if all(card[key] == value for key, value in wanted.items())]


def card_files(folder: str | os.PathLike) -> list[Path]:
    """The JSON files below a folder, less those of checkpoints, and of hidden folders such as Jupyter's."""
    folder = Path(folder)
    paths = {path: path.relative_to(folder).parts for path in sorted(folder.rglob("*.json"))}
    return [path for path, parts in paths.items() if not any(part.startswith((".", _CHECKPOINT)) for part in parts)]


def setting(card: dict) -> str:
    """The data, the number of training images and of epochs, in words: runs that differ in them aren't comparable."""
    data, epochs = card["dataset"], card["parameters"]["epochs"]
    return f"{data['name']}, {data['train']:,} training images, {epochs} epoch{'s' * (epochs > 1)}"


def recipe(card: dict) -> dict:
    """What makes two runs in a setting differ in more than luck: architecture, parameters and the very pixels.

    The seed is luck, the tier only a name, and the data's name part of the setting. A card that is older than a
    parameter was run as that parameter's default has it.
    """
    known = ARCHITECTURES.get(card["architecture"], Recipe).model_fields
    defaults = {name: field.default for name, field in known.items() if name != "run_dir"}
    run = {"architecture": card["architecture"], "fingerprint": card["dataset"]["fingerprint"][:8]}
    everything = defaults | card["parameters"] | run
    return {name: value for name, value in everything.items() if name not in ("seed", "tier", "dataset")}


def groups(cards: list[dict]) -> dict[tuple[str, str, str], list[dict]]:
    """Cards that differ in their seeds alone, together, under (architecture, tier, setting), sorted.

    If a tier was run in several ways, what is special in one follows the tier's name: "tuned", "tuned, pad 0" and
    "tuned, flip False". Special is what most of the ways don't share; where there's no most, the first run is usual.
    """
    together = {}
    for card in sorted(cards, key=lambda card: card["started"]):
        name = card["architecture"], str(card["tier"]), setting(card)
        together.setdefault(name, {}).setdefault(json.dumps(recipe(card), sort_keys=True), []).append(card)
    named = {}
    for (architecture, tier, where), ways in together.items():
        recipes = [recipe(group[0]) for group in ways.values()]
        names = dict.fromkeys(name for other in recipes for name in other)
        usual = {name: Counter(other.get(name) for other in recipes).most_common(1)[0][0] for name in names}
        for own, group in zip(recipes, ways.values(), strict=True):
            special = [f"{name} {own.get(name)}" for name in names if own.get(name) != usual[name]]
            named.setdefault((architecture, ", ".join([tier, *special]), where), []).extend(group)  # 1 and 1.0 are one
    return dict(sorted(named.items()))


def mean_and_spread(values: list[float]) -> str:
    """The mean, and with several values their standard deviation (over n - 1): "92.00 ± 1.41"."""
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


def table(cards: list[dict]) -> str:
    """Run cards as a Markdown table: a row for cards that differ in their seeds alone, with mean and spread."""
    lines = [
        "| architecture | tier | data | training images | epochs | parameters | test accuracy, % | seeds | seconds |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for (architecture, tier, _), group in groups(cards).items():
        images, epochs = group[0]["dataset"]["train"], group[0]["parameters"]["epochs"]
        accuracy = mean_and_spread([100 * card["metrics"]["test_accuracy"] for card in group])
        seeds, seconds = len({card["seed"] for card in group}), np.mean([card["time"]["seconds"] for card in group])
        cells = [architecture, tier, group[0]["dataset"]["name"], f"{images:,}", epochs]
        cells += [f"{group[0]['model']['parameters']:,}", accuracy, seeds, f"{seconds:,.0f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def hardware() -> dict:
    """Processor, the cores this process may use, and the backend's accelerators, by name."""
    accelerators = []
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf  # here, because on other backends it needn't be installed

        gpus = tf.config.list_physical_devices("GPU")
        accelerators = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
    elif keras.backend.backend() == "jax":
        import jax

        accelerators = [device.device_kind for device in jax.devices() if device.platform != "cpu"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": _processor(), "cores": cores, "accelerators": accelerators}


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions() -> dict:
    """Versions of Python, Keras, its backend, and what else the numbers depend on."""
    backend = keras.backend.backend()
    modules = ["patchlib", "keras", backend, "numpy"]
    numbers = {name: importlib.import_module(name).__version__ for name in modules}
    return {"python": platform.python_version(), "backend": backend} | numbers


def _command(identity):
    """Papermill's command line for this run. With ``-p``, since YAML would read a number like 1e-05 as text."""
    notebook = f"notebooks/{identity['architecture']}.ipynb"
    given = [word for name, value in identity["parameters"].items() for word in ("-p", name, str(value))]
    return shlex.join(["papermill", notebook, "out.ipynb", "--cwd", "notebooks", *given])


def _model_fingerprint(model):
    """A hash of the layers' configurations."""
    configurations = json.dumps([layer.get_config() for layer in model.layers], sort_keys=True, default=str)
    return hashlib.sha256(configurations.encode()).hexdigest()


def _without_folder(recipe):
    return {name: value for name, value in recipe.model_dump().items() if name != "run_dir"}


def _now():
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _refuse_finished(folder):
    if (folder / CARD).exists():
        card = load_card(folder)
        raise RunError(
            f"{folder} holds a finished run (test accuracy {card['metrics']['test_accuracy']:.4f}, finished "
            f"{card['finished']}): choose another run_dir, or remove it."
        )


def _write_whole(path, write):
    """Let ``write`` fill a neighbour of ``path``, then put it in place in one step."""
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    write(partial)
    os.replace(partial, path)


def _checkpoints(folder):
    """The folder's complete checkpoints, oldest first."""
    return sorted(p for p in folder.glob(f"{_CHECKPOINT}*") if ".partial" not in p.name)


def _checkpoint(folder, identity, progress, started):
    """Write a checkpoint as a folder, whole or not at all, then remove the older ones."""
    older = _checkpoints(folder)
    final = folder / f"{_CHECKPOINT}{progress.epoch:05}"
    partial = folder / f"{final.name}.partial"
    partial.mkdir()
    np.savez(partial / "state.npz", *progress.state)
    np.savez(partial / "best.npz", *progress.best_weights)
    record = {"run": identity, "history": progress.history, "best_epoch": progress.best_epoch, "started": started}
    (partial / "progress.json").write_text(json.dumps(record))
    partial.rename(final)
    for checkpoint in older:
        shutil.rmtree(checkpoint)


def _resume(folder, identity):
    """The progress of the newest checkpoint, or none yet, and when the run started."""
    checkpoints = _checkpoints(folder)
    if not checkpoints:
        return training.Progress(), _now()
    newest = checkpoints[-1]
    record = json.loads((newest / "progress.json").read_text())
    if record["run"] != json.loads(json.dumps(identity)):
        difference = _difference(record["run"], identity)
        raise RunError(f"{folder} holds another run, interrupted ({difference}): choose another run_dir, or remove it.")
    best, state = _arrays(newest / "best.npz"), _arrays(newest / "state.npz")
    return training.Progress(record["history"], record["best_epoch"], best, state), record["started"]


def _arrays(path):
    with np.load(path) as file:
        return [file[f"arr_{i}"] for i in range(len(file.files))]


def _difference(old, new):
    """The first thing in which two runs differ, in words."""
    old, new = (run | run["parameters"] for run in (old, new))
    name = next(n for n in new if n != "parameters" and old.get(n) != new[n])
    return f"{name} is {old.get(name)!r} there and {new[name]!r} here"
