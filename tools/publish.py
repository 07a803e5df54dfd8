"""Take finished runs into ``results/``: ``python tools/publish.py runs/full``.

The card and the predictions of each, and for each architecture its trained network: that of the tuned tier, or of fast
while that is missing, as the tier's file has it and with seed 0, so that nobody chose among runs. What lies in
``results/`` already is left as it is. The networks' accuracy on the validation images is counted again, for which their
data must be there.
"""

import argparse
import csv
import io
import re
import shutil
import textwrap
import zipfile
from pathlib import Path

import h5py
import numpy as np
import yaml

from patchlib import cards, compare, evaluation, explain, markdown, networks, notebook, training
from patchlib.data import load_data
from patchlib.parameters import ARCHITECTURES

ROOT = Path(__file__).parents[1]
TIERS = ROOT / "notebooks" / "tiers"
LOSS = 5e-4  # of validation accuracy that halving the file may cost
NOISE = "logits.npz"


def settings(card):
    """In which parameters a run differs from its tier's file: {name: value}."""
    path = TIERS / f"{card['architecture']}-{card['tier']}.yaml"
    usual = ARCHITECTURES[card["architecture"]](**yaml.safe_load(path.read_text())).model_dump()
    return {k: v for k, v in cards.parameters(card).items() if k not in ("run_dir", "seed") and v != usual.get(k)}


def command(card):
    """What makes a run again."""
    words = ["patchlib run", card["architecture"], "--tier", card["tier"], "--seed", str(card["seed"])]
    return " ".join([*words, *(f"--set {name}={value}" for name, value in settings(card).items())])


def collect(source, results):
    """Copy what finished runs below ``source`` say, into a folder each."""
    for path in cards.card_files(source):
        folder, target = path.parent, results / path.parent.name
        if path.name != cards.CARD or not cards.finished(folder) or cards.load_card(path)["tier"] == "smoke":
            continue
        if (target / cards.CARD).exists():
            if cards.load_card(target) != cards.load_card(path):
                raise SystemExit(f"{target} holds another card than {folder}: remove the one that isn't wanted.")
            continue
        target.mkdir(parents=True)
        for name in (cards.PREDICTIONS, cards.CARD):
            shutil.copyfile(folder / name, target / name)
        print("taken:", target.name)


def wanted(found):
    """{architecture: the card whose network is published}."""
    usual = [card for card in found if card["seed"] == 0 and not settings(card)]
    by_tier = {tier: {c["architecture"]: c for c in usual if c["tier"] == tier} for tier in ("fast", "tuned")}
    return by_tier["fast"] | by_tier["tuned"]


def stored(source, target, dtype):
    """Write the network of a ``.keras`` file anew: it computes in float32, and its weights are kept as ``dtype``."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in sorted(old.namelist()):
            content = old.read(name)
            if name == "config.json":
                content = re.sub(rb'"mixed_b?float16"', b'"float32"', content)
            if name.endswith(".h5"):
                content = _as(content, dtype)
            # With a date of its own, so that the same network is the same file.
            new.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)


def _as(content, dtype):
    buffer = io.BytesIO()
    with h5py.File(io.BytesIO(content)) as old, h5py.File(buffer, "w") as new:

        def copy(name, item):
            if isinstance(item, h5py.Group):
                new.require_group(name).attrs.update(item.attrs)
            elif item.dtype.kind == "f":
                new.create_dataset(name, data=item[()].astype(dtype)).attrs.update(item.attrs)
            else:
                old.copy(item, new, name)

        old.visititems(copy)
    return buffer.getvalue()


def publish(card, source, weights):
    """Write a network, its model card, its answers to noise, and what it's worth without single parts.

    What is there, of the same run, stays as it is.
    """
    name = f"{card['architecture']}-{card['dataset']['name']}"
    target, reached = weights / f"{name}.keras", {}
    if target.exists() and networks.load_model(target).card == card:
        return
    p = ARCHITECTURES[card["architecture"]](**cards.parameters(card))
    data = load_data(p.dataset, image_size=p.image_size, limit=p.limit, validation=p.validation)
    if data.fingerprint != card["dataset"]["fingerprint"]:
        raise SystemExit(f"{name}: these aren't the images that it was trained on.")
    weights.mkdir(parents=True, exist_ok=True)
    for dtype in ("float32", "float16"):
        stored(source, target, dtype)
        logits = training.logits(networks.load_model(target), data.validation)
        reached[dtype] = float((evaluation.ranks(logits, data.validation.labels) == 0).mean())
    if abs(reached["float16"] - reached["float32"]) > LOSS:
        stored(source, target, dtype := "float32")
    (weights / f"{name}.md").write_text(model_card(name, card, dtype, reached))
    path = weights / NOISE
    answers = dict(np.load(path)) if path.exists() else {}
    answers[name] = networks.load_model(target).predict(noise(), verbose=0)
    np.savez(path, **answers)
    path = weights / notebook.LESIONS
    counted = [row for row in notebook.published_lesions(path) if row["network"] != name]
    counted += [{"network": name} | row for row in explain.lesion(networks.load_model(target), data.validation)]
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, list(counted[0]))
        table.writeheader()
        table.writerows(sorted(counted, key=lambda row: row["network"]))
    print("published:", name, card["tier"], dtype, reached)


def noise():
    """Four pictures of nothing."""
    return np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), "uint8")


def overview(found, examples, timed):
    """What the examples publish beside what the tiers reach, as Markdown: means over seeds, of how many in brackets.

    Args:
        found: cards.
        examples: as in ``examples.yaml``.
        timed: as ``bench.time_to_accuracy`` measured.
    """
    columns = ["", "data", "example, %", "epochs", "baseline, %", "`fast`, %", "epochs", "share of the example's time"]
    rows = []
    for architecture in ARCHITECTURES:
        example, time = examples.get(architecture), timed.get(architecture)
        epochs, reached = {"baseline": example["values"]["epochs"] if example else ""}, {}
        for tier in ("baseline", "fast", "tuned"):
            group = [card for card in _usual(found, tier) if card["architecture"] == architecture]
            accuracies = [100 * card["metrics"]["test_accuracy"] for card in group]
            reached[tier] = f"{cards.mean_and_spread(accuracies)} ({len(group)})" if group else ""
            epochs[tier] = group[0]["parameters"]["epochs"] if group else epochs.get(tier, "")
        row = [f"{100 * example['accuracy']:.2f}" if example else "", epochs["baseline"], reached["baseline"]]
        row += [reached["fast"], epochs["fast"], f"{time['fast'] / time['example']:.1%}" if time else ""]
        row += [reached["tuned"], epochs["tuned"]]
        sizes = [c["model"]["parameters"] for c in found if (c["architecture"], c["tier"]) == (architecture, "tuned")]
        data = _data(found, architecture)
        rows.append([ARCHITECTURES[architecture].title, data, *row, f"{max(sizes):,}" if sizes else ""])
    return markdown.table([*columns, "`tuned`, %", "epochs", "parameters"], rows)


def _data(found, architecture):
    """The data sets of an architecture's tiers, as their authors write them."""
    of_tiers = [card for card in found if card["architecture"] == architecture and "dataset" not in settings(card)]
    names = sorted({card["dataset"]["name"] for card in of_tiers})
    return ", ".join(name.replace("cifar", "CIFAR-") for name in names)


def headline(found, examples):
    """What the tuned tiers bring, and in how many epochs, in a sentence; ``examples`` as in ``overview``."""
    gains = _gains(found, examples, "tuned")
    least, most = min(gains.values()), max(gains.values())
    longer = [
        f"{ARCHITECTURES[name].title} in {asked} epochs, not {examples[name]['values']['epochs']}"
        for name, asked in {c["architecture"]: c["parameters"]["epochs"] for c in _usual(found, "tuned")}.items()
        if name in gains and asked != examples[name]["values"]["epochs"]
    ]
    but = f" ({'; '.join(longer)})" if longer else ""
    return f"At no more parameters, tuned recipes add {least:.1f} to {most:.1f} points to the examples{but}."


def distances(found, examples):
    """How far the baselines are from what the examples publish, and which other tier doesn't reach it, in sentences."""
    gains = _gains(found, examples, "baseline").items()
    apart = ", ".join(f"{ARCHITECTURES[name].title} {f'{gain:+.1f}'.replace('-', '−')}" for name, gain in gains)
    short = [
        f"{ARCHITECTURES[name].title}'s `{tier}` by {-gain:.1f}"
        for tier in ("fast", "tuned")
        for name, gain in _gains(found, examples, tier).items()
        if gain < 0
    ]
    others = f"Short of theirs: {', '.join(short)}." if short else "Every `fast` and `tuned` is above its example."
    return f"The baselines' distances from the examples, in points: {apart}. {others}"


def _gains(found, examples, tier):
    """{architecture: points that its runs of a tier, as its file has it, gain on the example on average}."""
    accuracies = {architecture: [] for architecture in examples}
    for card in _usual(found, tier):
        if card["architecture"] in examples:
            accuracies[card["architecture"]].append(card["metrics"]["test_accuracy"])
    return {name: 100 * (np.mean(group) - examples[name]["accuracy"]) for name, group in accuracies.items() if group}


def _usual(found, tier):
    """The cards of a tier as its files have it."""
    return [card for card in found if card["tier"] == tier and not settings(card)]


def listed(found):
    """Every run with what makes it again, as Markdown."""
    rows = [
        [
            card["architecture"],
            card["tier"],
            card["seed"],
            *(f"{100 * card['metrics'][f'{split}_accuracy']:.2f}" for split in ("val", "test")),
            compare.hardware(card),
            f"`{command(card)}`",
        ]
        for card in found
    ]
    return markdown.table(["", "tier", "seed", "validation, %", "test, %", "computed on", "made again by"], rows)


_ABOUT = """# Results

A folder for each run, with its card `run.json` and `predictions.npz`: for every test image, in the data set's order,
its class (`label`), the class it's taken for (`predicted`), in younger runs how probable that is (`confidence`), and
the rank of the true one (`rank`, 0 where the answer is right). So accuracy, top-5, a confusion matrix or how far two
networks agree can be counted without running anything.

`weights/` has one trained network for each architecture, as `patchlib.load_model("cct-cifar10")` loads it, with a model
card. All of this is what `python tools/publish.py runs/full` took from the runs of `make full`; `full.txt` has
them, the arguments of a `patchlib run` in each line. Seconds in these cards were counted while the machine did other
things: `make bench` measures speed. Where a tier says `precision: auto`, the card's `dtype_policy` says what it was.

A run that went on elsewhere names the machines that took part; older cards name the last one alone. Unknown, or unnamed
there, is an accelerator, on which these were begun: ViT's tuned runs and the second one of its baselines, the third of
CCT's tuned, the second of MLP-Mixer's, FNet's and gMLP's tuned, and the second of gMLP's baselines. ViT's first
baseline ended on one.

gMLP's `fast` with seeds 0 to 2 were trained again, whatever came of it, when the gradient of its gate was put right
(see the changelog). The cards from before are in the repository's history.
"""

_MODEL_CARD = """---
license: mit
library_name: keras
pipeline_tag: image-classification
datasets:
- uoft-cs/{dataset}
metrics:
- accuracy
---

# {name}

{what}

```python
import patchlib

model = patchlib.load_model("{name}")
print(patchlib.classify(model, "picture.jpg"))
```

{table}

{how}

{limits}
"""

_WHAT = (
    "{architecture}, trained from scratch on {train:,} images of {dataset} with the tier `{tier}` of patchlib: "
    "{epochs} epochs, of which the validation images chose number {best}. Pictures of 32 pixels a side go in, as "
    "numbers from 0 to 255, and logits for {classes} classes come out."
)
_HOW = (
    "Made by `{command}`, {started}, on {hardware}, in {computed}. The test images were read once, at the end. Weights "
    "are stored as {dtype}; computed in float32, the validation accuracy is {stored:.2f}% with them and {exact:.2f}% "
    "with the trained ones."
)
_LIMITS = (
    "What it knows are the {classes} classes of {dataset}, in pictures of 32 x 32 pixels with one thing in the middle. "
    "It answers with one of them whatever it's shown, and {confidence}."
)


def model_card(name, card, dtype, reached):
    """Markdown, with the front matter of Hugging Face."""
    data, metrics, calibration = card["dataset"], card["metrics"], card["calibration"]
    rows = {
        "test accuracy": f"{100 * metrics['test_accuracy']:.2f}%, {data['test']:,} images",
        "test accuracy, top 5": f"{100 * metrics['test_top5']:.2f}%",
        "validation accuracy": f"{100 * metrics['val_accuracy']:.2f}%, {data['validation']:,} images",
        "parameters": f"{card['model']['parameters']:,}",
        "multiply-adds a picture": f"{card['model']['multiply_adds']:,}",
        "calibration error": f"{100 * calibration['error']:.1f} points",
        "the same at the temperature": f"{100 * calibration['error_at_temperature']:.1f} points",
        "temperature": f"{calibration['temperature']:.3f}",
    }
    sure = "too sure of itself" if calibration["temperature"] > 1 else "less sure of itself than it should be"
    facts = {
        "architecture": ARCHITECTURES[card["architecture"]].title,
        "dataset": data["name"],
        "tier": card["tier"],
        "train": data["train"],
        "epochs": card["parameters"]["epochs"],
        "best": card["best_epoch"],
        "classes": len(data["classes"]),
        "command": command(card),
        "started": card["started"][:10],
        "hardware": compare.hardware(card),
        "computed": card["dtype_policy"],
        "dtype": dtype,
        "stored": 100 * reached[dtype],
        "exact": 100 * reached["float32"],
        "confidence": f"is {sure} unless its logits are divided by the temperature",
    }
    what, how, limits = (textwrap.fill(text.format(**facts), 120) for text in (_WHAT, _HOW, _LIMITS))
    table = markdown.table(["", ""], rows.items())
    return _MODEL_CARD.format(name=name, dataset=data["name"], table=table, what=what, how=how, limits=limits)


def main():
    parser = argparse.ArgumentParser(description="Take finished runs into results/.")
    parser.add_argument("runs", type=Path, help="folder with the runs")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    asked = parser.parse_args()
    collect(asked.runs, asked.results)
    found = cards.load_cards(asked.results)
    for card in wanted(found).values():
        for path in asked.results.glob(f"*/{cards.CARD}"):
            source = asked.runs / path.parent.name / cards.MODEL
            if cards.load_card(path) == card and source.exists():
                publish(card, source, asked.results / "weights")
    notebook.who_hears_whom().savefig(asked.results / "who-hears-whom.png", dpi=100)
    (asked.results / "README.md").write_text(f"{_ABOUT}\n{listed(found)}\n")


if __name__ == "__main__":
    main()
