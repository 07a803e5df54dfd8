"""What run cards say side by side: tables and curves made of them, and of nothing else.

Nearly everything here takes what ``cards.groups`` makes: {(network, tier, setting): cards that differ in their seeds
alone}, all in words. A tier's name is followed by what is special in the runs, if something is.
"""

import itertools
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from patchlib import cards, evaluation, markdown
from patchlib.cards import RunError, mean_and_spread, recipe
from patchlib.files import user_path
from patchlib.schema import shown
from patchlib.sources import load_arrays

Groups = dict[tuple[str, str, str], list[dict]]
NONE = "No run card says so yet."
AGAIN = ", another seed"


def load(folder: str | os.PathLike) -> list[dict]:
    """All run cards in or below a folder, in the order of their paths; a card that lies there twice counts once.

    Raises:
        PathError: ``folder`` can't be a path.
        RunError: there's no such folder, a file isn't a run card of this schema, or runs are smoke runs, which
            show that the code works and not how good a network is.
    """
    if not user_path(folder).is_dir():
        raise RunError(f"{shown(os.fspath(folder))} isn't a folder: name the one with the run cards.")
    found = {path: cards.load_card(path) for path in cards.card_files(folder)}
    if smoke := [str(path) for path, card in found.items() if card["tier"] == "smoke"]:
        raise RunError(
            f"Smoke runs have no place in a comparison, and there is {', '.join(smoke)}: remove it, or name a folder "
            "without it."
        )
    return [card for i, card in enumerate(found.values()) if card not in list(found.values())[:i]]


def summary(groups: Groups) -> str:
    """How many runs and seeds there are, and how far recipes and networks lie apart, as a Markdown list."""
    if not groups:
        return NONE
    seeds = sorted(Counter(map(_seeds, groups.values())).items())
    counted = ", ".join(f"{ways} with {count} seed{'s' * (count > 1)}" for count, ways in seeds)
    lines = [f"{sum(map(len, groups.values()))} runs of {len(groups)} recipes: {counted}."]
    tiers: dict[tuple[str, str], dict[str, float]] = {}
    for (network, tier, where), group in groups.items():
        tiers.setdefault((tier, where), {})[network] = _mean(group)
    several = [means for means in tiers.values() if len(means) > 1]
    names = ", ".join(sorted({network for means in several for network in means}, key=str.lower))
    recipes = [_mean(after) - _mean(before) for _, before, after in _steps(groups)]
    networks = [max(means.values()) - min(means.values()) for means in several]
    apart = {"baseline and tuned": recipes, f"the best and the worst network of a tier ({names})": networks}
    for what, gains in apart.items():
        if gains:
            points = f"{min(gains):.1f} to {max(gains):.1f} points of test accuracy"
            lines.append(f"Between {what}, on the same data for equally many epochs: {points}.")
    return "\n".join(f"- {line}" for line in lines)


def costs(groups: Groups, file: str | os.PathLike) -> dict[str, dict[str, list]]:
    """Test accuracies in percent over what they cost, for ``plots.scatter``: tiers as they are, without what's special.

    Returns:
        {data set: {cost: [(network, tier, the cost's mean, accuracies)]}}. Epochs are those that ran, times of steps
        those that ``make bench`` put into ``file``.
    """
    panels: dict[str, dict[str, list]] = {}
    measured = json.loads(Path(file).read_text(encoding="utf-8"))["compare"] if Path(file).exists() else {}
    for (network, tier, where), group in groups.items():
        step = measured.get(group[0]["architecture"], {}).get("contenders", {}).get(tier)
        found = {
            "epochs": [len(card["history"]["val_accuracy"]) for card in group],
            "parameters": [card["model"]["parameters"] for card in group],
            "multiply-adds for one image": [card["model"].get("multiply_adds") for card in group],
            "milliseconds of a training step": [step and 1000 * step["train"]["median"]],
        }
        for cost, values in found.items():
            if "," not in tier and None not in values:
                point = network, tier, float(np.mean(values)), _accuracies(group)
                panels.setdefault(where.rpartition(", ")[0], {}).setdefault(cost, []).append(point)
    return panels


def curves(groups: Groups) -> dict[str, dict[str, list[tuple[str, list[list[float]]]]]]:
    """Validation accuracies in percent after each epoch, for ``plots.bands``.

    Returns:
        {data set: {tier: [(name, one list a run)]}}. Of one network alone a name is the tier with what's special; of
        several it's the network's, and tiers are there as they are, without what's special.
    """
    panels: dict[str, dict[str, list[tuple[str, list[list[float]]]]]] = {}
    alone = len({network for network, *_ in groups}) == 1
    for (network, tier, where), group in groups.items():
        if alone or "," not in tier:
            lines = [[100 * accuracy for accuracy in card["history"]["val_accuracy"]] for card in group]
            panel = panels.setdefault(where.rpartition(", ")[0], {}).setdefault(tier.partition(",")[0], [])
            panel.append((tier if alone else network, lines))
    return panels


def steps(groups: Groups) -> str:
    """From baseline to tuned as a Markdown table: what it brought, and all that changed at once."""
    rows = [_step(*step) for step in _steps(groups)]
    return markdown.table(_STEP, rows) if rows else NONE


def _steps(groups):
    """(setting, cards of the baseline, cards of tuned) of each network, whatever is special in them."""
    for ((network, _, where), before), ((other, _, there), after) in itertools.permutations(groups.items(), 2):
        tiers = before[0]["tier"], after[0]["tier"]
        if (network, where) == (other, there) and tiers == ("baseline", "tuned"):
            yield where, before, after


def ingredients(groups: Groups, most: int = 3) -> str:
    """What single changes brought, as a Markdown table: in each row two groups of runs, from the worse to the better.

    Two groups of a network in a setting stand in a row if their recipes differ in at most ``most`` parameters and no
    third one lies between them, with each of its parameters from one or the other. So what was left out of a recipe
    is compared with that recipe, and not with everything else that was left out of it.
    """
    rows = []
    recipes = {name: recipe(group[0]) for name, group in groups.items()}
    for a, b in itertools.combinations(sorted(groups, key=lambda name: _mean(groups[name])), 2):
        changed = _changed(recipes[a], recipes[b])
        between = any(
            all(value in (recipes[a].get(key), recipes[b].get(key)) for key, value in recipes[c].items())
            for c in set(groups) - {a, b}
            if c[2] == a[2]
        )
        if a[2] == b[2] and 0 < len(changed) <= most and "architecture" not in changed and not between:
            rows.append(_step(a[2], groups[a], groups[b]))
    return markdown.table(_STEP, sorted(rows)) if rows else NONE


def selection_bias(groups: Groups) -> str:
    """What choosing an epoch by its accuracy adds to it, as a Markdown table in percentage points; means over seeds.

    The difference is the kept epoch's accuracy on the validation images, which chose it, less that on the test images,
    which didn't. Its standard error is that of two samples of so many images. Below are the means of each data set's
    rows; so is the error there, since these rows answer the same images and share their luck. For the last column see
    ``luck``. Runs in which the loss chose the epoch are left out.
    """
    columns = ["network and tier", "setting", "validation, %", "test, %", "difference", "standard error", "by luck"]
    rows, signed = [], "{:+.2f} {:.2f} {:+.2f}"
    gains: dict[str, list[tuple]] = {}
    for (network, tier, where), group in groups.items():
        if cards.parameters(group[0])["select_by"] == "val_accuracy":
            validation, test, images = _mean(group, "val"), _mean(group), group[0]["dataset"]
            error = _error([(validation, images["validation"]), (test, images["test"])])
            lucky = [luck(card["history"]["val_accuracy"], card["best_epoch"] - 1, images["test"]) for card in group]
            gain = validation - test, error, float(np.mean(lucky))
            gains.setdefault(group[0]["dataset"]["name"], []).append(gain)
            rows.append([f"{network} {tier}", where, f"{validation:.2f}", f"{test:.2f}", *signed.format(*gain).split()])
    for name, several in gains.items():
        if len(several) > 1:
            rows.append(["**mean**", f"**{name}**", "", "", *signed.format(*np.mean(several, axis=0)).split()])
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
    """What networks said of the test images: {data set: {run: {"label", "predicted", "rank"}}}, of seeds 0 and 1.

    The first two are names of classes where the card has them. A run's name is its network and tier, with "another
    seed" behind them for seed 1. Of several with one name it's that of the shortest folder's name, since what differs
    from the tier is said there.
    """
    found: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for path in sorted(cards.card_files(folder), key=lambda path: len(path.parent.name)):
        card, file = cards.load_card(path), path.parent / cards.PREDICTIONS
        if path.name == cards.CARD and file.exists() and card["seed"] in (0, 1):
            answers = load_arrays(file)
            if classes := card["dataset"].get("classes"):
                answers |= {what: np.array(classes)[answers[what]] for what in ("label", "predicted")}
            name = f"{cards.title(card)} {card['tier']}" + card["seed"] * AGAIN
            found.setdefault(card["dataset"]["name"], {}).setdefault(name, answers)
    return {name: dict(sorted(said.items())) for name, said in sorted(found.items())}


def each(said: dict[str, dict], say: Callable[..., str], *arguments: str) -> str:
    """What ``say`` has to say of each data set in ``predictions``, below its name, as Markdown."""
    return "\n\n".join(f"**{dataset}**\n\n{say(answers, *arguments)}" for dataset, answers in said.items()) or NONE


def agreements(said: dict[str, dict[str, np.ndarray]], tier: str = "tuned") -> str:
    """Whether the networks of a tier err on the same images, as a Markdown table; see ``evaluation.agreement``.

    Each network stands beside itself with another seed, if there is one, and beside the others.
    """
    counts = ["both right", "the first alone", "the second alone", "neither"]
    rows = []
    for (first, one), (second, other) in _pairs(said, tier):
        *counted, kappa, most, p = evaluation.agreement(one["rank"], other["rank"]).values()
        likely = f"{p:.1g}".replace("-", "−")  # at a hyphen a narrow table would break
        numbers = *(f"{n:,}" for n in counted), f"{kappa:.2f}", f"{most:.2f}", _share(kappa, most)
        rows.append([first, second, *numbers, likely])
    columns = ["the first", "the second", *counts, "error consistency", "at most", "share of that", "p"]
    return markdown.table(columns, rows) if rows else NONE


def consistency(said: dict[str, dict[str, np.ndarray]], tier: str) -> str:
    """The error consistency of all networks of a tier as a share of the most it could be, as a Markdown table.

    In the diagonal is that of a network and itself with another seed, if there is one.
    """
    networks, share = list(_of_tier(said, tier)), {}
    for (first, one), (second, other) in _pairs(said, tier):
        *_, kappa, most, _ = evaluation.agreement(one["rank"], other["rank"]).values()
        share[first, second.removesuffix(AGAIN)] = _share(kappa, most)
    rows = [[a, *(share.get((a, b)) or share.get((b, a), "") for b in networks)] for a in networks]
    return markdown.table(["", *networks], rows) if len(rows) > 1 else NONE


def _pairs(said, tier):
    """Two (network, answers) each: every network and itself with another seed, if there is one; then every two."""
    networks = list(_of_tier(said, tier).items())
    for name, answers in networks:
        if other := said.get(f"{name} {tier}{AGAIN}"):
            yield (name, answers), (name + AGAIN, other)
    yield from itertools.combinations(networks, 2)


def _share(kappa, most):
    return f"{kappa / most:.2f}" if most else "–"


def missed(said: dict[str, dict[str, np.ndarray]], tier: str = "tuned", most: int = 6) -> str:
    """The test images that all networks of a tier get wrong: how many, and the answers to the first, as Markdown."""
    answers = _of_tier(said, tier)
    if not answers:
        return NONE
    wrong = np.array([arrays["rank"] > 0 for arrays in answers.values()])
    given = np.array([arrays["predicted"] for arrays in answers.values()])
    images, label = np.flatnonzero(wrong.all(axis=0)), next(iter(answers.values()))["label"]
    alike = (given[:, images] == given[0, images]).all(axis=0).sum()
    text = (
        f"{len(images):,} images, where {wrong.mean(axis=1).prod() * wrong.shape[1]:,.0f} would be expected if the "
        f"networks erred independently; {alike:,} of them all take for the same class."
    )
    rows = [[number, label[number], *given[:, number]] for number in images[:most]]
    return f"{text}\n\n{markdown.table(['number', 'class', *answers], rows)}"


def _of_tier(said, tier):
    """{network: its answers}."""
    return {name.removesuffix(f" {tier}"): arrays for name, arrays in said.items() if name.endswith(f" {tier}")}


def hardware(card: dict) -> str:
    """What a run was computed on: its accelerators, or else its processor and how many cores it had.

    Of a run that moved it's all machines, and from which epoch on; unknown is what an older checkpoint doesn't say.
    """
    parts = card.get("machines", [{"epoch": 1, "hardware": card["hardware"]}])
    told = [(1, "unknown")] if parts[0]["epoch"] > 1 else []
    for part in parts:
        there = part["hardware"]
        name = ", ".join(there["accelerators"]) or f"{there['processor']}, {there['cores']} cores"
        if not told or name != told[-1][1]:  # else it had other versions
            told.append((part["epoch"], name))
    (_, first), *later = told
    return "; ".join([first, *(f"from epoch {epoch} on {name}" for epoch, name in later)])


_STEP = ["network", "setting", "from, %", "to, %", "difference", "standard error", "seeds", "changed"]


def _step(where, before, after):
    """A row of ``_STEP``. Its standard error is that of two samples of so many test images, and of as many seeds where
    there are several: a group of one is taken to spread as the other does."""
    old, new = recipe(before[0]), recipe(after[0])
    changed = "; ".join(f"{name} {old.get(name)} → {new.get(name)}" for name in _changed(old, new))
    reached = [_accuracies(group) for group in (before, after)]
    images = _error([(_mean(group), group[0]["dataset"]["test"]) for group in (before, after)])
    spread = sum(len(few) * np.var(few) for few in reached) / max(1, sum(len(few) - 1 for few in reached))
    error = (images**2 + spread * sum(1 / len(few) for few in reached)) ** 0.5
    numbers = [*map(mean_and_spread, reached), f"{_mean(after) - _mean(before):+.2f}", f"{error:.2f}"]
    return [cards.title(before[0]), where, *numbers, f"{_seeds(before)}, {_seeds(after)}", changed]


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


def _seeds(group):
    return len({card["seed"] for card in group})
