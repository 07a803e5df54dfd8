"""Ingredients of a recipe that cost no time: what each is worth on validation images, at equal epochs.

``python tools/ingredients.py`` trains each architecture's tier ``fast`` on few images for few epochs, without whitened
patches and alternating flip, which are rows of the table, of ViT with its class token, and with one thing changed; it
writes a card for each run and a table of the differences. What was worth its place is a parameter of the library; what
wasn't stays here, as a change to a model's first weights or as a callback.
"""

import argparse
import json
import operator
import tempfile
from pathlib import Path

import numpy as np
import yaml

from patchlib import machine, markdown, models, runs, training
from patchlib.backend import keras
from patchlib.data import Split, load_data
from patchlib.parameters import ARCHITECTURES

HERE = Path(__file__).parent
TIERS = HERE.parent / "notebooks" / "tiers"
SHORT = {"tier": "ingredients", "epochs": 3, "limit": 15_000, "whiten": False, "alternate": False}
OWN = {"vit": {"pool": "token"}}  # as in its baseline and tuned tiers


def mimetic(model, rng):
    """Attention starts by looking at what is alike, and values near the negated input (Trockman and Kolter, "Mimetic
    Initialization of Self-Attention Layers", 2023, section 4)."""
    for attention in (block.attention for block in _blocks(model)):
        dim, width = attention.query.kernel.shape
        query, key = np.zeros((2, dim, width))
        for head in range(attention.heads):
            part = slice(head * attention.key_dim, (head + 1) * attention.key_dim)
            left, right = _factors(0.7, 0.7, dim, rng)
            query[:, part], key[:, part] = left[:, : attention.key_dim], right[:, : attention.key_dim]
        left, right = _factors(0.4, -0.4, dim, rng)
        attention.query.kernel.assign(query)
        attention.key.kernel.assign(key)
        attention.value.kernel.assign(left[:, :width])
        attention.output_projection.kernel.assign(right.T[:width])


def _factors(noise, identity, dim, rng):
    """Two matrices whose product, the second transposed, is noise and a multiple of the identity."""
    left, sizes, right = np.linalg.svd(noise * rng.normal(size=(dim, dim)) / np.sqrt(dim) + identity * np.eye(dim))
    return left * np.sqrt(sizes), right.T * np.sqrt(sizes)


def covariance(model, rng):
    """Depthwise kernels start as smooth noise under a Gaussian window, both wider in later blocks (Trockman, Willmott
    and Kolter, "Understanding the Covariance Structure of Convolutional Filters", 2022)."""
    blocks = _blocks(model)
    for width, block in zip(np.linspace(0.6, 1.6, len(blocks)), blocks, strict=True):
        kernel = block.depthwise.kernel
        places = np.indices(kernel.shape[:2]).reshape(2, -1).T - (kernel.shape[0] - 1) / 2
        window = np.exp(-(places**2).sum(1) / (4 * width**2))
        alike = np.exp(-((places[:, None] - places) ** 2).sum(2) / (4 * width**2))
        root = np.linalg.cholesky(window[:, None] * alike * window + 1e-6 * np.eye(len(places)))
        _assign(kernel, root @ rng.normal(size=(len(places), kernel.shape[2])))


def local(model, rng):
    """Weights over positions start under a Gaussian window about one patch for each hidden unit, the idea of a start as
    a convolution (Zheng et al., "Structured Initialization for Vision Transformers", 2025)."""
    for block in _blocks(model):
        kernels = [block.spatial.gate.kernel] if hasattr(block, "spatial") else []
        if not kernels:
            kernels = [block.tokens.expand.kernel, block.tokens.project.kernel]
        side = round(kernels[0].shape[0] ** 0.5)
        places = np.indices((side, side)).reshape(2, -1).T
        window = np.exp(-((places[:, None] - places) ** 2).sum(2) / (2 * 1.5**2))
        hidden = rng.permutation(kernels[0].shape[1]) % len(places) if len(kernels) == 2 else np.arange(len(places))
        for kernel, seen in zip(kernels, (window[:, hidden], window[hidden]), strict=False):
            _assign(kernel, rng.normal(size=kernel.shape) * seen)


def nonzero_mean(model, rng):
    """The MLPs' first weights have a mean of half their standard deviation (arXiv 2602.07156)."""
    first = {"convmixer": "pointwise", "mlp_mixer": "channels.expand", "gmlp": "expand"}.get(model.name, "mlp.expand")
    for layer in map(operator.attrgetter(first), _blocks(model)):
        values = keras.ops.convert_to_numpy(layer.kernel)
        layer.kernel.assign(values + values.std() / 2)


def orthogonal(model, rng):
    """Every matrix of the blocks starts with orthogonal rows or columns (Saxe, McClelland and Ganguli, "Exact solutions
    to the nonlinear dynamics of learning in deep linear neural networks", 2013), as long as they were."""
    for weight in (weight for block in _blocks(model) for weight in block.trainable_weights):
        if weight.name == "kernel" and len(weight.shape) == 2 and keras.ops.convert_to_numpy(weight).std():
            _assign(weight, keras.initializers.Orthogonal(seed=int(rng.integers(2**31)))(weight.shape))


class Change(keras.callbacks.Callback):
    """What changes training itself knows the images that are trained on."""

    def __init__(self, split):
        super().__init__()
        self.split = split


class Average(Change):
    """Each epoch is judged, and kept, with the moving average of all steps' weights (Polyak and Juditsky, 1992)."""

    momentum, average = 0.98, None

    def on_train_batch_end(self, batch, logs=None):
        weights = self.model.get_weights()
        pairs = zip(self.average or weights, weights, strict=True)
        self.average = [self.momentum * old + (1 - self.momentum) * new for old, new in pairs]
        if batch == self.params["steps"] - 1:
            self.reached = weights
            self.model.set_weights(self.average)

    def on_epoch_end(self, epoch, logs=None):
        self.model.set_weights(self.reached)


class Repeat(Change):
    """From the second epoch on, the third of the images with the least loss gives its places to the others, at random
    (Jiang et al., "Accelerating Deep Learning by Focusing on the Biggest Losers", 2019). Finding it isn't counted."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 0:
            self.whole = Split(self.split.images.copy(), self.split.labels.copy())
            return
        answers = training.logits(self.model, self.whole)
        losses = keras.losses.sparse_categorical_crossentropy(self.whole.labels, answers, from_logits=True)
        count, order = len(self.whole), np.argsort(keras.ops.convert_to_numpy(losses))
        harder = np.random.default_rng((epoch, 5)).permutation(order[count // 3 :])
        taken = np.resize(harder, count)
        self.split.images[:], self.split.labels[:] = self.whole.images[taken], self.whole.labels[taken]


class Freeze(Change):
    """What stands before the middle block keeps its weights in the last epoch, a third fewer products there (Brock
    et al., "FreezeOut: Accelerate Training by Progressively Freezing Layers", 2017)."""

    def on_epoch_begin(self, epoch, logs=None):
        self.last = epoch == self.params["epochs"] - 1
        middle = self.model.layers.index(_blocks(self.model)[len(_blocks(self.model)) // 2])
        self.frozen = [weight for layer in self.model.layers[:middle] for weight in layer.trainable_weights]
        self.kept = [keras.ops.convert_to_numpy(weight) for weight in self.frozen]

    def on_train_batch_end(self, batch, logs=None):
        if self.last:
            for weight, value in zip(self.frozen, self.kept, strict=True):
                weight.assign(value)


def _blocks(model):
    return [layer for layer in model.layers if layer.name.startswith("block_")]


def _assign(kernel, values):
    """New values of the standard deviation that the kernel has."""
    values = keras.ops.convert_to_numpy(values)
    deviation = keras.ops.convert_to_numpy(kernel).std()
    kernel.assign((values * deviation / values.std()).reshape(kernel.shape))


# For each ingredient: changed parameters, a function of the model and a generator, or a callback; and what it fits.
EVERY = tuple(ARCHITECTURES)
INGREDIENTS = {
    "unchanged": ({}, EVERY),
    "whitened patches": ({"whiten": True}, EVERY),
    "alternating flip": ({"alternate": True}, EVERY),
    "growing images": ({"start_size": 16}, ("cct", "fnet", "vit")),
    "mimetic attention": (mimetic, ("cct", "vit")),
    "covariance of kernels": (covariance, ("convmixer",)),
    "local weights over positions": (local, ("mlp_mixer", "gmlp")),
    "non-zero mean": (nonzero_mean, EVERY),
    "orthogonal matrices": (orthogonal, EVERY),
    "label smoothing 0.1": ({"label_smoothing": 0.1}, ("convmixer", "mlp_mixer", "fnet", "gmlp")),
    "no label smoothing": ({"label_smoothing": 0.0}, ("cct", "vit")),
    "average of weights": (Average, EVERY),
    "easy images skipped": (Repeat, EVERY),
    "first half frozen at last": (Freeze, EVERY),
    "no decay": ({"weight_decay": 0.0}, EVERY),
    "half the rate": (0.5, EVERY),
    "twice the rate": (2.0, EVERY),
}


def run(architecture, ingredient, seed, folder):
    """Train one, unless its card is there."""
    path = folder / f"{architecture}-{ingredient.replace(' ', '_')}-seed{seed}.json"
    if path.exists():
        return
    change, _ = INGREDIENTS[ingredient]
    values = yaml.safe_load((TIERS / f"{architecture}-fast.yaml").read_text()) | SHORT | {"seed": seed}
    values |= OWN.get(architecture, {})
    if isinstance(change, float):
        change = {"learning_rate": values["learning_rate"] * change}
    p = ARCHITECTURES[architecture](**values | (change if isinstance(change, dict) else {}))
    data = load_data(p.dataset, limit=p.limit, validation=p.validation)
    model = models.build(p, data, machine.precision() if p.precision == "auto" else p.precision)
    callbacks = [change(data.train)] if isinstance(change, type) else []
    if callable(change) and not callbacks:
        change(model, np.random.default_rng((seed, 4)))
    with tempfile.TemporaryDirectory() as scratch:
        card = runs.train(model, data, p, scratch, callbacks) | {"ingredient": ingredient}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(card, indent=1) + "\n")


def report(folder):
    """The table of all cards in a folder."""
    return table([json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))])


def table(found):
    """Points of validation accuracy that each ingredient adds, the mean over seeds and its standard error."""
    rows, reached = [], {}
    for card in found:
        key = card["architecture"], card["ingredient"]
        reached.setdefault(key, {})[card["seed"]] = 100 * card["metrics"]["val_accuracy"]
    for ingredient in INGREDIENTS:
        cells = []
        for architecture in ARCHITECTURES:
            usual, changed = (reached.get((architecture, name), {}) for name in ("unchanged", ingredient))
            if ingredient == "unchanged":
                cells.append(f"{np.mean(list(usual.values())):.1f} ({len(usual)})" if usual else "")
                continue
            gains = [changed[seed] - usual[seed] for seed in sorted(changed.keys() & usual.keys())]
            error = f" ± {np.std(gains, ddof=1) / len(gains) ** 0.5:.1f}" if len(gains) > 1 else ""
            cells.append(f"{np.mean(gains):+.1f}{error} ({len(gains)})" if gains else "")
        rows.append([ingredient, *cells])
    return markdown.table(["", *ARCHITECTURES], rows)


def main():
    parser = argparse.ArgumentParser(description="What each ingredient of a recipe is worth.")
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES), choices=list(ARCHITECTURES))
    parser.add_argument("--ingredients", nargs="+", default=list(INGREDIENTS), choices=list(INGREDIENTS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "ingredients")
    asked = parser.parse_args()
    for seed in range(asked.seeds):
        for ingredient in dict.fromkeys(["unchanged", *asked.ingredients]):
            for architecture in asked.architectures:
                if architecture in INGREDIENTS[ingredient][1]:
                    run(architecture, ingredient, seed, asked.out)
    asked.out.with_suffix(".md").write_text(report(asked.out) + "\n")
    print(report(asked.out))


if __name__ == "__main__":
    main()
