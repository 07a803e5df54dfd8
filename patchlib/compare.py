"""The leaderboard: tables and curves made of run cards, and of nothing else.

Only runs of one setting (data, training images, epochs) are put side by side. Nearly everything here takes what
``by_setting`` makes: {setting: {name: cards that differ in their seeds alone}}, with settings and names in words.
"""

import itertools
import json
import os
from pathlib import Path

import numpy as np

from patchlib import cards, evaluation, markdown
from patchlib.cards import RunError, mean_and_spread, recipe
from patchlib.files import user_path
from patchlib.parameters import ARCHITECTURES, shown

Settings = dict[str, dict[str, list[dict]]]
NONE = "No run card says so yet."
TIERS = ("baseline", "fast", "tuned")


def load(folder: str | os.PathLike) -> list[dict]:
    """All run cards in or below a folder, in the order of their paths; a card that lies there twice counts once.

    Raises:
        PathError: ``folder`` can't be a path.
        RunError: there's no such folder, a file isn't a run card of this schema, or runs are smoke runs, which
            show that the code works and not how good a network is.
    """
    if not user_path(folder).is_dir():
        raise RunError(f"{shown(os.fspath(folder))} isn't a folder: name the one with the run cards.")
    found = {path: cards.load_card(path) for path in cards.card_files(user_path(folder))}
    if smoke := [str(path) for path, card in found.items() if card["tier"] == "smoke"]:
        raise RunError(
            f"Smoke runs have no place in a comparison, and there is {', '.join(smoke)}: remove it, or name a folder "
            "without it."
        )
    return [card for i, card in enumerate(found.values()) if card not in list(found.values())[:i]]


def by_setting(found: list[dict]) -> Settings:
    """The cards under their setting, and in it under a name: {"cifar10, ...": {"cct baseline": [card, ...]}}."""
    settings: Settings = {}
    for (architecture, tier, where), group in cards.groups(found).items():
        settings.setdefault(where, {})[f"{architecture} {tier}"] = group
    return dict(sorted(settings.items()))


def coverage(settings: Settings) -> str:
    """A Markdown table of which runs there are: seeds of the tiers baseline / fast / tuned of each architecture."""
    present = {group[0]["architecture"] for groups in settings.values() for group in groups.values()}
    columns = [name for name in ARCHITECTURES if name in present] + sorted(present - set(ARCHITECTURES))
    rows = []
    for where, groups in settings.items():
        seeds = {name: _seeds(group) for name, group in groups.items()}
        cells = [[seeds.get(f"{column} {tier}", "–") for tier in TIERS] for column in columns]
        rows.append([where, *(" / ".join(map(str, cell)) for cell in cells)])
    return markdown.table([f"seeds of {' / '.join(TIERS)}", *columns], rows)


def leaderboard(settings: Settings) -> str:
    """A Markdown table for each setting, the best mean test accuracy first; a dash stands for what no card says."""
    columns = ["network and tier", "parameters", "multiply-adds", "validation accuracy, %", "test accuracy, %", "seeds"]
    tables = []
    for where, groups in settings.items():
        rows = []
        for name, group in sorted(groups.items(), key=lambda item: -_mean(item[1])):
            machines = sorted({hardware(card) for card in group})
            numbers = [group[0]["model"].get(what) for what in ("parameters", "multiply_adds")]
            for what in ("seconds", "images_per_second"):  # of different machines they have no mean
                numbers.append(np.mean([card["time"][what] for card in group]) if len(machines) == 1 else None)
            *counts, seconds, speed = ["–" if number is None else f"{number:,.0f}" for number in numbers]
            accuracies = [mean_and_spread(_accuracies(group, split)) for split in ("val", "test")]
            rows.append([name, *counts, *accuracies, _seeds(group), seconds, speed, "; ".join(machines)])
        tables.append(
            f"**{markdown.escaped(where)}**\n\n{markdown.table([*columns, 'seconds', 'images/s', 'computed on'], rows)}"
        )
    return "\n\n".join(tables) or NONE


def points(settings: Settings, part: str, what: str) -> dict[str, dict[str, tuple[float, list[float]]]]:
    """Test accuracies in percent over a number in the cards, such as ("model", "parameters"), for ``plots.scatter``.

    Returns:
        {panel: {name: (the number's mean, accuracies)}}. A panel is a data set and its number of training images,
        a name ends with the epochs; a card that doesn't say is left out.
    """
    panels: dict[str, dict[str, tuple[list, list[float]]]] = {}
    for where, groups in settings.items():
        for name, group in groups.items():
            for card in [card for card in group if what in card[part]]:
                panel, named = _panel(where, name)
                numbers, accuracies = panels.setdefault(panel, {}).setdefault(named, ([], []))
                numbers.append(card[part][what])
                accuracies.extend(_accuracies([card]))
    return {
        panel: {name: (float(np.mean(numbers)), accuracies) for name, (numbers, accuracies) in found.items()}
        for panel, found in panels.items()
    }


def by_step_time(settings: Settings, file: str | os.PathLike) -> dict[str, dict[str, tuple[float, list[float]]]]:
    """Test accuracies in percent over the milliseconds of a training step, for ``plots.scatter``.

    The times are those that ``make bench`` measured on an otherwise idle machine and put into ``file``; of other tiers
    than baseline and tuned it has none, and without the file nothing is returned.
    """
    if not Path(file).exists():
        return {}
    measured = json.loads(Path(file).read_text())
    panels: dict[str, dict[str, tuple[float, list[float]]]] = {}
    machine = hardware({"hardware": measured["hardware"]})
    for where, groups in settings.items():
        for name, group in groups.items():
            architecture, tier = name.split(" ", 1)
            contenders = measured["compare"].get(architecture, {}).get("contenders", {})
            if tier in ("baseline", "tuned") and tier in contenders:
                step = 1000 * contenders[tier]["train"]["median"]
                panel, named = _panel(where, name)
                panels.setdefault(f"{panel}\n{machine}", {})[named] = step, _accuracies(group)
    return panels


def curves(settings: Settings) -> dict[tuple[str, str], dict[str, list[list[float]]]]:
    """Validation accuracies in percent after each epoch, for ``plots.bands``.

    Returns:
        {(architecture, setting): {tier: one list a run}}.
    """
    panels: dict[tuple[str, str], dict[str, list[list[float]]]] = {}
    for where, groups in settings.items():
        for name, group in groups.items():
            architecture, tier = name.split(" ", 1)
            lines = [[100 * accuracy for accuracy in card["history"]["val_accuracy"]] for card in group]
            panels.setdefault((architecture, _two_lines(where)), {})[tier] = lines
    return panels


def steps(settings: Settings) -> str:
    """From baseline to tuned as a Markdown table: all that changed at once, and what it brought."""
    rows = [
        _step(where, groups[f"{architecture} baseline"], groups[f"{architecture} tuned"])
        for where, groups in settings.items()
        for architecture in sorted({group[0]["architecture"] for group in groups.values()})
        if {f"{architecture} baseline", f"{architecture} tuned"} <= set(groups)
    ]
    return markdown.table(_STEP, rows) if rows else "No network has both a baseline and a tuned run in one setting yet."


def ingredients(settings: Settings, most: int = 3) -> str:
    """What single changes brought, as a Markdown table: in each row two groups of runs, from the worse to the better.

    Two groups of a network in a setting stand in a row if their recipes differ in at most ``most`` parameters and no
    third one lies between them, with each of its parameters from one or the other. So what was left out of a recipe
    is compared with that recipe, and not with everything else that was left out of it.
    """
    rows = []
    for where, groups in settings.items():
        recipes = {name: recipe(group[0]) for name, group in groups.items()}
        for a, b in itertools.combinations(sorted(groups, key=lambda name: _mean(groups[name])), 2):
            changed = _changed(recipes[a], recipes[b])
            between = any(
                all(value in (recipes[a].get(key), recipes[b].get(key)) for key, value in recipes[c].items())
                for c in set(groups) - {a, b}
            )
            if 0 < len(changed) <= most and "architecture" not in changed and not between:
                rows.append(_step(where, groups[a], groups[b]))
    nothing = f"No two groups of runs of one network in one setting differ in {most} parameters or fewer yet."
    return markdown.table(_STEP, sorted(rows)) if rows else nothing


def selection_bias(settings: Settings) -> str:
    """What choosing an epoch by a score adds to that score, as a Markdown table in percentage points; means over seeds.

    The difference is the kept epoch's accuracy on the validation images, which chose it, less that on the test images,
    which didn't. Its standard error is that of two samples of so many images. For the last column see ``luck``.
    """
    columns = ["network and tier", "setting", "validation, %", "test, %", "difference", "standard error", "by luck"]
    rows, gains = [], []
    for where, groups in settings.items():
        for name, group in groups.items():
            validation, test, images = _mean(group, "val"), _mean(group), group[0]["dataset"]
            error = _error([(validation, images["validation"]), (test, images["test"])])
            lucky = [luck(card["history"]["val_accuracy"], card["best_epoch"] - 1, images["test"]) for card in group]
            gains.append((validation - test, np.mean(lucky)))
            difference, by_luck = (f"{gain:+.2f}" for gain in gains[-1])
            rows.append([name, where, f"{validation:.2f}", f"{test:.2f}", difference, f"{error:.2f}", by_luck])
    if len(rows) > 1:
        difference, by_luck = (f"{gain:+.2f}" for gain in np.mean(gains, axis=0))
        rows.append(["**mean of all rows**", "", "", "", difference, "", by_luck])
    return markdown.table(columns, rows) if rows else NONE


def luck(accuracies: list[float], kept: int, images: int, draws: int = 10_000) -> float:
    """By how many percentage points the best score of all epochs exceeds, on average, the kept one's.

    Args:
        accuracies: of the epochs, 0 to 1, taken as their true ones. Each is counted on images of its own; counted on
            the same images, epochs err together, and the best of them exceeds the others by less.
        kept: the kept epoch, from 0.
        images: how many are counted.
    """
    scores = np.random.default_rng(0).binomial(images, accuracies, (draws, len(accuracies))) / images
    return float(100 * (scores.max(axis=1) - scores[:, kept]).mean())


def predictions(folder: str | os.PathLike) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """What networks said of the test images: {data set: {run: its ``predictions.npz``}}, of seed 0 alone.

    A run's name is its architecture and tier. Of several with one name it's that of the shortest folder's name, since
    what differs from the tier is said there.
    """
    found: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for path in sorted(cards.card_files(folder), key=lambda path: len(path.parent.name)):
        card, file = cards.load_card(path), path.parent / cards.PREDICTIONS
        if path.name == cards.CARD and file.exists() and card["seed"] == 0:
            with np.load(file) as arrays:
                said = found.setdefault(card["dataset"]["name"], {})
                said.setdefault(f"{card['architecture']} {card['tier']}", dict(arrays))
    return {name: dict(sorted(said.items())) for name, said in sorted(found.items())}


def agreements(said: dict[str, dict[str, np.ndarray]], tier: str = "tuned") -> str:
    """Whether the networks of a tier err on the same images, as a Markdown table; see ``evaluation.agreement``."""
    columns = [
        "",
        "",
        "both right",
        "the first alone",
        "the second alone",
        "neither",
        "error consistency",
        "at most",
        "p",
    ]
    rows = []
    for first, second in itertools.combinations([name for name in said if name.endswith(f" {tier}")], 2):
        counted = evaluation.agreement(said[first]["rank"], said[second]["rank"])
        *counts, kappa, most, p = counted.values()
        rows.append([first, second, *(f"{n:,}" for n in counts), f"{kappa:.2f}", f"{most:.2f}", f"{p:.1g}"])
    return markdown.table(columns, rows) if rows else NONE


def missed(said: dict[str, dict[str, np.ndarray]]) -> np.ndarray:
    """The numbers of the test images that every network gets wrong."""
    return np.flatnonzero(np.all([arrays["rank"] > 0 for arrays in said.values()], axis=0))


def hardware(card: dict) -> str:
    """What a run was computed on: its accelerators, or else its processor and how many cores it had."""
    machine = card["hardware"]
    return ", ".join(machine["accelerators"]) or f"{machine['processor']}, {machine['cores']} cores"


_STEP = ["network", "setting", "changed", "from, %", "to, %", "difference", "standard error", "seeds"]


def _step(where, before, after):
    """A row of ``_STEP``; its standard error is that of two samples of so many test images."""
    old, new = recipe(before[0]), recipe(after[0])
    changed = "; ".join(f"{name} {old.get(name)} → {new.get(name)}" for name in _changed(old, new))
    error = _error([(_mean(group), group[0]["dataset"]["test"]) for group in (before, after)])
    accuracies = [mean_and_spread(_accuracies(group)) for group in (before, after)]
    numbers = [*accuracies, f"{_mean(after) - _mean(before):+.2f}", f"{error:.2f}"]
    return [before[0]["architecture"], where, changed, *numbers, f"{_seeds(before)}, {_seeds(after)}"]


def _changed(old, new):
    """The parameters in which two recipes differ; the pixels aren't one."""
    return [name for name in old | new if name != "fingerprint" and old.get(name) != new.get(name)]


def _accuracies(group, split="test"):
    """In percent, one for each card."""
    return [100 * card["metrics"][f"{split}_accuracy"] for card in group]


def _mean(group, split="test"):
    return float(np.mean(_accuracies(group, split)))


def _error(counted):
    """The standard error of a difference of two percentages, each given with the number of images behind it."""
    return sum(percent * (100 - percent) / images for percent, images in counted) ** 0.5


def _panel(where, name):
    """The title of the panel for a setting, which has its data, and the name there, which has its epochs."""
    data, _, epochs = where.rpartition(", ")
    return _two_lines(data), f"{name}, {epochs}"


def _two_lines(where):
    return where.replace(", ", "\n", 1)


def _seeds(group):
    return len({card["seed"] for card in group})
