"""What all notebooks of an architecture do alike, as calls: a look at the data, at a finished run, at full runs."""

import csv
import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from patchlib import cards, checks, compare, evaluation, explain, networks, pictures, plots
from patchlib.backend import keras
from patchlib.data import NAMES, Data
from patchlib.parameters import ARCHITECTURES, RunParameters
from patchlib.sources import load_arrays

LESIONS = "lesions.csv"  # of the published networks


def first_look(data: Data) -> Figure:
    """Print type, range, mean, spread and classes of the training images, and show sixteen of them."""
    images, labels = data.train.images, data.train.labels
    print(images.dtype, images.shape, "from", images.min(), "to", images.max())
    print("mean", images.mean(axis=(0, 1, 2)).round(1), "standard deviation", images.std(axis=(0, 1, 2)).round(1))
    print("images per class", np.bincount(labels, minlength=data.num_classes)[:10])
    return plots.grid(images[:16], titles=[data.classes[label] for label in labels[:16]])


def finished(model: keras.Model, data: Data, parameters: RunParameters, card: dict, folder: Path) -> Figure:
    """Check a run that has just ended and show its learning curves, which are saved beside its card.

    The recipe as it was compiled is printed; the model must be the one that its card speaks of, and its file must give
    the same logits.
    """
    checks.recipe(model, data, parameters)
    checks.trained(model, data, card)
    checks.saved(model, data, folder / cards.MODEL)
    curves = plots.learning_curves({parameters.tier: card})
    curves.savefig(folder / "curves.png", dpi=150)
    return curves


def where_it_is_wrong(data: Data, folder: Path) -> Figure:
    """Print the accuracy of the run in this folder, and show its errors, from its stored answers to the test images."""
    stored = load_arrays(folder / cards.PREDICTIONS)
    label, predicted, confidence = (stored[name] for name in ("label", "predicted", "confidence"))
    found = evaluation.tables(label, predicted, confidence, data.classes)
    print(evaluation.headline(found))
    return plots.mistakes(data.test.images, found)


def full_runs(card: dict, folder: str | os.PathLike = networks.RESULTS) -> Figure:
    """Show the full runs of a card's architecture as a table, their ablations if there are any, and their curves.

    They are the run cards below ``folder``. For a run on one's own data, or where there are none yet, it's that run.
    The curves are of the data on which most tiers ran.
    """
    from IPython.display import Markdown, display  # here, because without Jupyter it needn't be installed

    full = cards.load_cards(folder, architecture=card["architecture"]) if card["dataset"]["name"] in NAMES else []
    found = full or [card]
    groups = cards.groups(found)
    display(Markdown(cards.table(found)))
    changes = compare.ingredients(groups)
    if changes != compare.NONE:
        display(Markdown(changes))
    curves = compare.curves(groups)
    most = max(map(len, curves.values()))
    curves = {data: tiers for data, tiers in curves.items() if len(tiers) == most}
    return plots.bands(curves, "epoch", "validation accuracy, %")


def drawn(model: keras.Model, data: Data, parameters: RunParameters) -> tuple[dict[str, keras.Model], np.ndarray]:
    """The networks to draw, by name, and two images to draw them with.

    After the notebook's own smoke run that's its model and the published network of the architecture, on photographs.
    After any other run it's the model just trained, on test images of its own data.
    """
    published = [name for name in networks.published() if name.startswith(f"{model.name}-")]
    if not (parameters.is_smoke() and published):
        return {"this run": model}, data.test.images[:2]
    return {"this run": model} | {name: networks.load_model(name) for name in published}, pictures.photographs(32)


def who_hears_whom() -> Figure:
    """Who hears whom in the second block of each published network, on two photographs."""
    images, heard = pictures.photographs(32), {}
    for architecture, kind in ARCHITECTURES.items():
        for name in (name for name in networks.published() if name.startswith(f"{architecture}-")):
            heard[kind.title] = explain.influence(networks.load_model(name), images, "block_1", directions=2)
    figure = plots.influence(images, heard)
    figure.suptitle("Who hears whom, in the second block of each network")
    return figure


def lesions(model: keras.Model, data: Data, parameters: RunParameters) -> str:
    """Accuracy on the validation images without single parts, of the networks to draw, as Markdown.

    For published ones that was counted when they were published.
    """
    found = {"this run": explain.lesion(model, data.validation)}
    if parameters.is_smoke():
        for row in published_lesions(networks.PUBLISHED / LESIONS):
            if row["network"].startswith(f"{model.name}-"):
                found.setdefault(row["network"], []).append(row)
    return explain.lesion_table(found)


def published_lesions(path: Path) -> list[dict]:
    """The rows of ``explain.lesion`` of all published networks, each with its ``network``."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [
            {k: v if k in ("network", "without") else float(v) for k, v in row.items()} for row in csv.DictReader(file)
        ]
