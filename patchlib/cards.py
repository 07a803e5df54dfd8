"""Run cards and the folders they stand in: what a run leaves for others to read, without Keras.

While a run trains, its folder holds a checkpoint; when it's finished, its model and its card, and no checkpoint. What
``patchlib run`` has finished is listed with its digests in a file that ``sha256sum --check`` reads, too.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NotRequired

import numpy as np
import pydantic
from typing_extensions import TypedDict  # Python 3.11's own isn't enough for pydantic

from patchlib import markdown
from patchlib.files import read_text, user_path
from patchlib.parameters import ARCHITECTURES, Recipe, RunParameters
from patchlib.schema import brief, shown

SCHEMA = 1
CARD, MODEL, PREDICTIONS = "run.json", "model.keras", "predictions.npz"
SUMS = "SHA256SUMS"
ROW = ("loss", "accuracy", "val_loss", "val_accuracy")  # an epoch's numbers, as far as they are followed
CHECKPOINT, PROGRESS = "checkpoint-", "progress.json"  # a folder, and the file in it that is no array

_SHARE = Annotated[float, pydantic.Field(ge=0, le=1)]
_COUNT = Annotated[int, pydantic.Field(ge=1, lt=2**63)]


def _part(extra=Any, **entries):
    """A dictionary with at least these entries, each of its type, and maybe others, of the type ``extra``."""
    part = TypedDict("_Part", entries, extra_items=extra)  # type: ignore[misc]
    return pydantic.with_config(pydantic.ConfigDict(extra="allow", strict=True, allow_inf_nan=False))(part)


_HARDWARE = _part(processor=str, cores=int, accelerators=list[str])
_MACHINES = list[_part(epoch=_COUNT, hardware=_HARDWARE)]  # type: ignore[misc, valid-type]  # each from this epoch on
# What is read of a card. There may be more in it, and in cards of old there's less.
_CARD = pydantic.TypeAdapter(
    _part(
        architecture=str,
        tier=str | None,
        seed=int,
        parameters=_part(bool | int | float | str, epochs=_COUNT),
        dataset=_part(
            name=str, fingerprint=str, train=_COUNT, validation=_COUNT, test=_COUNT, classes=NotRequired[list[str]]
        ),
        model=_part(parameters=_COUNT, multiply_adds=NotRequired[_COUNT]),
        history=_part(list[float], val_accuracy=list[_SHARE]),
        best_epoch=int,
        metrics=_part(val_accuracy=_SHARE, test_accuracy=_SHARE, test_top5=NotRequired[_SHARE | None]),
        calibration=NotRequired[_part(temperature=Annotated[float, pydantic.Field(gt=0)])],
        time=_part(seconds=float),
        hardware=_HARDWARE,
        machines=NotRequired[_MACHINES],
        started=str,
    )
)
# What is read of a checkpoint's progress, and of a card in its place.
_PROGRESS = pydantic.TypeAdapter(
    _part(
        history=NotRequired[dict[str, list[float]]],
        notes=NotRequired[list[str]],
        machines=NotRequired[_MACHINES],
        run=NotRequired[dict],
    )
)


class RunError(RuntimeError):
    """A run's folder can't be used as asked: finished, in use, or another run's."""


def folder_name(architecture: str, parameters: RunParameters, named: Iterable[str] = ()) -> str:
    """The name of a run's folder, such as "cct-tuned-cifar10-epochs=5-seed0", with the values of what's ``named``."""
    values = [f"{name}={_readable(getattr(parameters, name))}" for name in sorted(set(named) - {"dataset"})]
    name = "-".join([architecture, parameters.tier, _readable(parameters.dataset), *values, f"seed{parameters.seed}"])
    return name if len(name) <= 200 else f"{name[:190]}-{digest(name)}"


def _readable(value):
    """A value as part of a name; of a path its last part, and a hash of the whole."""
    text = str(value)
    stem = re.sub(r"[^\w.]", "_", Path(text).stem)[:40]
    return text if re.fullmatch(r"[\w.+-]+", text) else f"{stem}-{digest(text)}"


def digest(text: str) -> str:
    """Eight hexadecimal digits that tell texts apart."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def checkpoints(folder: Path) -> list[Path]:
    """The folder's complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob(f"{CHECKPOINT}*") if path.name.removeprefix(CHECKPOINT).isdecimal())


def finished(folder: Path) -> bool:
    """Whether the run in this folder has come to its end: there is its card and no checkpoint any more."""
    return (folder / CARD).exists() and not checkpoints(folder)


def sums(folder: Path, names: Iterable[str]) -> list[str]:
    """The sha256 of each of these files that is there, in lines as ``sha256sum`` writes them."""
    paths = [folder / name for name in names if (folder / name).is_file()]
    return [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in paths]


def progress(folder: Path) -> dict:
    """What a run has reached, by its newest checkpoint or its card; empty before its first epoch.

    Both have ``history``, a number for each epoch; a checkpoint has ``notes``, sentences for whoever follows the run.
    """
    for path in (*(checkpoint / PROGRESS for checkpoint in reversed(checkpoints(folder))), folder / CARD):
        with suppress(OSError, RecursionError, ValueError):  # removed at this moment
            return read_progress(path)
    return {}


def read_progress(path: Path) -> dict:
    """One file of what ``progress`` chooses from.

    Raises:
        OSError, RecursionError, ValueError: there's none, or it's something else.
    """
    try:
        return dict(_PROGRESS.validate_python(json.loads(read_text(path))))
    except pydantic.ValidationError as error:
        raise ValueError(_first(error)) from None


def epoch_line(history: dict, epoch: int, epochs: int) -> str:
    """One epoch's numbers in a line; ``epoch`` counts from 0."""
    at = {name: values[epoch] for name, values in history.items()}
    return (
        f"epoch {epoch + 1}/{epochs}: loss {at['loss']:.4f}, accuracy {at['accuracy']:.4f}, "
        f"validation loss {at['val_loss']:.4f}, validation accuracy {at['val_accuracy']:.4f}"
    )


def load_card(path: str | os.PathLike) -> dict:
    """Read a run card, from its file or from its run's folder.

    Raises:
        PathError: ``path`` can't be one.
        RunError: there's none, it isn't one of this schema, or something in it is missing or of the wrong type.
    """
    path = user_path(path)
    path = path / CARD if path.is_dir() else path
    if not path.is_file():
        raise RunError(f"{path.parent} holds no finished run: there is no file {path.name}.")
    try:
        card = json.loads(read_text(path))
    except (OSError, RecursionError, ValueError) as error:
        raise RunError(f"{path} isn't a run card ({brief(error)}).") from None
    return checked(card, path)


def checked(card, source: str | os.PathLike) -> dict:
    """The card, if it's one that the rest can rely on.

    Raises:
        RunError: it isn't one of this schema, or something in it is missing or of the wrong type; it names ``source``.
    """
    if not isinstance(card, dict) or card.get("schema") != SCHEMA:
        raise RunError(f"{source} isn't a run card of schema {SCHEMA}.")
    try:
        card = dict(_CARD.validate_python(card))
    except pydantic.ValidationError as error:
        raise RunError(f"{source}: {_first(error)}.") from None
    best, last = card["best_epoch"], len(card["history"]["val_accuracy"])
    if not 1 <= best <= last:
        raise RunError(f"{source}: best_epoch is {shown(best)}, accepted: one of the {last} epochs of its history.")
    return card


def _first(error):
    """The first of what pydantic found wrong, in words."""
    first = error.errors()[0]
    where, accepted = brief(".".join(map(str, first["loc"])) or "it"), first["msg"].removeprefix("Input should be ")
    wrong = "is missing" if first["type"] == "missing" else f"is {shown(first['input'])}, accepted: {accepted}"
    return f"{where} {wrong}"


def load_cards(folder: str | os.PathLike, **wanted) -> list[dict]:
    """All run cards below a folder whose entries equal ``wanted``: ``load_cards("results", tier="tuned")``."""
    cards = [load_card(path) for path in card_files(folder)]
    return [card for card in cards if all(card[key] == value for key, value in wanted.items())]


def card_files(folder: str | os.PathLike) -> list[Path]:
    """The JSON files below a folder, less those of checkpoints, and of hidden folders such as Jupyter's."""
    folder = user_path(folder)
    paths = {path: path.relative_to(folder).parts for path in sorted(folder.rglob("*.json"))}
    return [path for path, parts in paths.items() if not any(part.startswith((".", CHECKPOINT)) for part in parts)]


def setting(card: dict) -> str:
    """The data, the number of training images and of epochs, in words: runs that differ in them aren't comparable."""
    data, epochs = card["dataset"], card["parameters"]["epochs"]
    return f"{data['name']}, {data['train']:,} training images, {epochs} epoch{'s' * (epochs > 1)}"


def parameters(run: dict) -> dict:
    """The parameters in a card; one that the card is older than has its default, as the run had it.

    One that there's no more is left out where it's off.
    """
    known = ARCHITECTURES.get(run["architecture"], Recipe).model_fields
    defaults = {name: field.default for name, field in known.items() if name != "run_dir"}
    return defaults | {name: value for name, value in run["parameters"].items() if name in known or value}


def difference(there: dict, here: dict) -> str:
    """The first entry in which two runs' parameters differ, in words; empty if there's none."""
    for name in dict.fromkeys([*here, *there]):
        if there.get(name) != here.get(name):
            return f"{shown(name)[1:-1]} is {shown(there.get(name))} there and {shown(here.get(name))} here"
    return ""


def recipe(card: dict) -> dict:
    """What makes two runs in a setting differ in more than luck: architecture, parameters and the very pixels.

    The seed is luck, the tier only a name, and the data's name part of the setting.
    """
    run = {"architecture": card["architecture"], "fingerprint": card["dataset"]["fingerprint"][:8]}
    return {name: value for name, value in (parameters(card) | run).items() if name not in ("seed", "tier", "dataset")}


def groups(cards: list[dict]) -> dict[tuple[str, str, str], list[dict]]:
    """Cards that differ in their seeds alone, together, under (network, tier, setting) in words, sorted.

    If a tier was run in several ways, what is special in one follows the tier's name: "tuned", "tuned, pad 0" and
    "tuned, flip False". Special is what most of the ways, in all settings, don't share; where there's no most, the way
    of most epochs is usual, and of several such the first one. Pixels are compared within a setting.
    """
    tiers: dict[tuple[str, str], list[dict]] = {}
    for card in sorted(cards, key=lambda card: (-card["parameters"]["epochs"], card["started"])):
        tiers.setdefault((title(card), str(card["tier"])), []).append(card)
    named: dict[tuple[str, str, str], list[dict]] = {}
    for (network, tier), of_tier in tiers.items():
        ways = {json.dumps(way, sort_keys=True): way for way in ((setting(card), recipe(card)) for card in of_tier)}
        for card in of_tier:
            words = [tier, *_special(setting(card), recipe(card), ways.values())]
            named.setdefault((network, ", ".join(words), setting(card)), []).append(card)
    return dict(sorted(named.items()))


def _special(where, own, ways):
    """In words, what most of the ways don't share with this one; each is a setting and a recipe."""
    words = []
    for name in dict.fromkeys(name for _, other in ways for name in other if name not in ("epochs", "limit")):
        values = [other.get(name) for there, other in ways if there == where or name != "fingerprint"]
        if own.get(name) != Counter(values).most_common(1)[0][0]:
            words.append(f"{name} {own.get(name)}")
    return words


def mean_and_spread(values: list[float]) -> str:
    """The mean, and with several values their standard deviation (over n - 1): "92.00 ± 1.41"."""
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


def table(cards: list[dict]) -> str:
    """Run cards as a Markdown table: a row for cards that differ in their seeds alone, with mean and spread.

    Data sets stand together, the best test accuracy first; a dash stands for what no card says.
    """
    rows = []
    for (network, tier, _), group in groups(cards).items():
        data, counted = group[0]["dataset"], group[0]["model"]
        accuracies = [[100 * card["metrics"][f"{split}_accuracy"] for card in group] for split in ("val", "test")]
        counts = [f"{counted[what]:,}" if what in counted else "–" for what in ("parameters", "multiply_adds")]
        row = [network, tier, data["name"], f"{data['train']:,}", epochs(group), *counts]
        row += [*map(mean_and_spread, accuracies), len({card["seed"] for card in group})]
        rows.append((data["name"], -np.mean(accuracies[1]), row))
    columns = ["network", "tier", "data", "training images", "epochs", "parameters", "multiply-adds"]
    columns += ["validation accuracy, %", "test accuracy, %", "seeds"]
    return markdown.table(columns, [row for *_, row in sorted(rows)])


def title(card: dict) -> str:
    """The network's name as its authors write it."""
    name = card["architecture"]
    return ARCHITECTURES[name].title if name in ARCHITECTURES else name


def epochs(group: list[dict]) -> str:
    """How many epochs were asked for, and if patience ended a run before, how many there were: "45 of 50"."""
    asked, ran = group[0]["parameters"]["epochs"], sorted({len(card["history"]["val_accuracy"]) for card in group})
    if ran == [asked]:
        return str(asked)
    return f"{'–'.join(map(str, dict.fromkeys((ran[0], ran[-1]))))} of {asked}"
