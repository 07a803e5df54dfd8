"""Plant bugs, one at a time, in a copy of the project, and see which check turns red: ``python tools/bite.py [NAME]``.

A bug that nothing notices is a hole in the tests; the exit code says so. Each bug is a place and a replacement.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from patchlib import markdown

ROOT = Path(__file__).parents[1]

# name: (file below patchlib, or below notebooks if it isn't Python, what stands there, what the bug puts there, the
# notebook to run)
BUGS = {
    "residual dropped": (
        "layers/convolution.py",
        "x = x + self.depthwise_norm(",
        "x = self.depthwise_norm(",
        "convmixer",
    ),
    "residual around the wrong half": (
        "layers/convolution.py",
        "return self.pointwise_norm(",
        "return x + self.pointwise_norm(",
        "convmixer",
    ),
    "kernel larger by two": (
        "layers/convolution.py",
        "DepthwiseConv2D(kernel_size,",
        "DepthwiseConv2D(kernel_size + 2,",
        "convmixer",
    ),
    "norm before activation in the stem": (
        "layers/convolution.py",
        "self.norm(self.activation(self.embed(images)), training=training)",
        "self.activation(self.norm(self.embed(images), training=training))",
        "convmixer",
    ),
    "norm before activation in the block": (
        "layers/convolution.py",
        "self.depthwise_norm(self.activation(self.depthwise(x)), training=training)",
        "self.activation(self.depthwise_norm(self.depthwise(x), training=training))",
        "convmixer",
    ),
    "relu for gelu": (
        "layers/convolution.py",
        "kernels.activation(activation)",
        'kernels.activation("relu")',
        "convmixer",
    ),
    "one block more": ("models.py", "range(depth)", "range(depth + 1)", "convmixer"),
    "pixels doubled": ("models.py", "(1 / std).tolist()", "(2 / std).tolist()", "convmixer"),
    "images brightened on loading": (
        "data.py",
        "    return Data(str(name)",
        "    train.images[:] |= 1\n    return Data(str(name)",
        "convmixer",
    ),
    "labels shuffled": (
        "training.py",
        "one_hot(self.split.labels[index],",
        "one_hot(rng.permutation(self.split.labels[index]),",
        "convmixer",
    ),
    "learning rate a thousandth": (
        "optimizers.py",
        '"learning_rate": learning_rate(recipe, steps_per_epoch)',
        '"learning_rate": recipe.learning_rate / 1000',
        "convmixer",
    ),
    "augmentation switched off": (
        "training.py",
        "images = self.augment(images, rng)",
        "pass",
        "convmixer",
    ),
    "crop is the identity": (
        "augment.py",
        "rng.integers(0, 2 * pad + 1,",
        "rng.integers(pad, pad + 1,",
        "convmixer",
    ),
    "gelu's gradient is its value": (
        "layers/kernels/tensorflow.py",
        "lambda dy: _gelu_gradient(x, y, dy)",
        "lambda dy: dy * y",
        "convmixer",
    ),
    "depthwise gradient of a shifted image": (
        "layers/kernels/tensorflow.py",
        "[0, 0, before, after, before, after, 0, 0]",
        "[0, 0, after + 1, before - 1, before, after, 0, 0]",
        "convmixer",
    ),
    "LayerNorm's gradient without the mean's": (
        "layers/kernels/tensorflow.py",
        "scale * (dnormal - _mean(dnormal) - normal",
        "scale * (dnormal - normal",
        "gmlp",
    ),
    "bfloat16 cut off instead of rounded": (
        "layers/kernels/tensorflow.py",
        "bits + np.uint32(0x7FFF) + odd",
        "bits",
        "convmixer",
    ),
    "half of the Fourier transform not mirrored": (
        "layers/kernels/tensorflow.py",
        "tf.reverse(rest[:, 1:], [1])",
        "rest[:, 1:]",
        "fnet",
    ),
    "variance of the batch forgotten": (
        "layers/kernels/__init__.py",
        "moving * self.momentum + batch",
        "moving * self.momentum + moving",
        "convmixer",
    ),
    "mixed images keep their labels": (
        "augment.py",
        "share[:, None] * targets + (1 - share[:, None]) * targets[partner]",
        "targets",
        "convmixer",
    ),
    "query, key and value start alike": (
        "layers/attention.py",
        "return keras.initializers.RandomUniform(-limit, limit)",
        "return keras.initializers.RandomUniform(-limit, limit, seed=0)",
        "cct",
    ),
    "muon is adamw": ("optimizers.py", 'recipe.optimizer == "muon"', 'recipe.optimizer == "nuom"', "convmixer"),
    "one crop for the whole batch": (
        "augment.py",
        "(2, count))\n    rows",
        "(2, 1)).repeat(count, 1)\n    rows",
        "convmixer",
    ),
    "flip turns upside down": ("augment.py", "images[:, :, ::-1]", "images[:, ::-1]", "convmixer"),
    "selection on the test set": (
        "training.py",
        "evaluate(trained, data.validation,",
        "evaluate(trained, data.test,",
        "convmixer",
    ),
    "images never grow": ("training.py", "sized[grown[epoch]]", "model", "convmixer"),
    "an epoch of small images is the best": ("training.py", "if side == sides[-1]]", "]", "convmixer"),
    "mirrored alike in all epochs": ("augment.py", "started ^ (epoch % 2 == 1)", "started", "convmixer"),
    "whitened again on resuming": (
        "training.py",
        "    elif recipe.whiten and",
        "    if recipe.whiten and",
        "convmixer",
    ),
    "whitened by the variances": ("surgery.py", "np.sqrt(variances + epsilon)", "(variances + epsilon)", "convmixer"),
    "shrunk by leaving pixels out": (
        "augment.py",
        "np.maximum(covered, 0) * side / height",
        "covered == 1",
        "convmixer",
    ),
    "positions interpolated from corner to corner": (
        "layers/patches.py",
        "(np.arange(after) + 0.5) * before / after - 0.5",
        "np.linspace(0, before - 1, after)",
        "vit",
    ),
    "a broken checkpoint is resumed": ("runs.py", "== _digest(checkpoint)", "!= ''", "convmixer"),
    "renamed before its data is flushed": ("files.py", "        flush(made)\n", "        pass\n", "convmixer"),
    "renamed, and the folder isn't flushed": ("files.py", "    flush(path.parent)\n", "", "convmixer"),
    "a checkpoint is seen half removed": (
        "files.py",
        "    os.replace(path, partial(path))\n    shutil.rmtree(partial(path))\n",
        "    shutil.rmtree(path)\n",
        "convmixer",
    ),
    "every seed draws the same weights": ("models.py", "set_random_seed(parameters.seed)", "set_random_seed(0)", "vit"),
    "last weights instead of the best": (
        "training.py",
        "    model.set_weights(progress.best_weights)\n",
        "",
        "fnet",
    ),
    "weights not loaded on resuming": (
        "training.py",
        "    if progress.epoch:\n        _assign(state, progress.state)",
        "    if False:\n        pass",
        "convmixer",
    ),
    "validation images left in training": ("data.py", "whole.take(~chosen)", "whole", "convmixer"),
    "unknown parameters pass": ("schema.py", 'extra="forbid"', 'extra="ignore"', "convmixer"),
    "biases decay": ("optimizers.py", 'recipe.decay_on == "kernels"', 'recipe.decay_on == "none"', "convmixer"),
    "muon without decay": (
        "optimizers.py",
        "optimizer = kind(",
        'shared["weight_decay"] = 0.0\n        optimizer = kind(',
        "cct",
    ),
    "beside muon the decay is full": (
        "optimizers.py",
        "recipe.weight_decay * recipe.adamw_ratio",
        "recipe.weight_decay",
        "cct",
    ),
    "every epoch in the same order": ("training.py", "epoch, _ORDER))", "0, _ORDER))", "convmixer"),
    "every epoch augmented alike": (
        "training.py",
        "(self.seed, self.epoch, _AUGMENTATION",
        "(self.seed, 0, _AUGMENTATION",
        "vit",
    ),
    "plateau never applied": ("optimizers.py", "recipe.learning_rate * factor", "recipe.learning_rate", "mlp_mixer"),
    "top-5 is top-1": ("optimizers.py", "TopKCategoricalAccuracy(5,", "TopKCategoricalAccuracy(1,", "convmixer"),
    "the best epoch off by one": ("runs.py", "progress.best_epoch + 1", "progress.best_epoch", "convmixer"),
    "the last tenth trains as well": (
        "data.py",
        "parts, cifar = (train.take(~chosen),",
        "parts, cifar = (train.take(chosen | ~chosen),",
        "convmixer",
    ),
    "two class names swapped": ("sources.py", "automobile bird cat", "automobile cat bird", "convmixer"),
    "the camera's orientation ignored": ("pictures.py", "ImageOps.exif_transpose(image)", "image", "convmixer"),
    "pictures stretched": (
        "pictures.py",
        "ImageOps.fit(image, height_width[::-1])",
        "image.resize(height_width[::-1])",
        "convmixer",
    ),
    "limit by label": (
        "data.py",
        "np.sort(np.random.default_rng(0).permutation(len(train))[:limit])",
        "np.argsort(train.labels)[:limit]",
        "convmixer",
    ),
    "mean of the test images": ("data.py", "self.train.images.mean(", "self.test.images.mean(", "mlp_mixer"),
    "attention drops nothing": (
        "layers/attention.py",
        "self.drop(self.weights_for(x), training=training)",
        "self.weights_for(x)",
        "cct",
    ),
    "nothing dropped inside the MLP": (
        "layers/mlp.py",
        "self.drop(self.activation(self.expand(x)), training=training)",
        "self.activation(self.expand(x))",
        "cct",
    ),
    "nothing dropped before the head": ("models.py", "    if dropout:\n", "    if False:\n", "mlp_mixer"),
    "all blocks dropped alike": (
        "models.py",
        "np.linspace(0, stochastic_depth, depth)",
        "np.full(depth, stochastic_depth)",
        "vit",
    ),
    "patches start as a convolution": ("layers/patches.py", "kernel_initializer=start, ", "", "vit"),
    "a tier's dropout": ("tiers/gmlp-baseline.yaml", "head_dropout: 0.2", "head_dropout: 0.1", "gmlp"),
    "smoke run at another depth": ("convmixer.ipynb", "depth: int = 4 ", "depth: int = 5 ", "convmixer"),
    "heads interleaved": (
        "layers/attention.py",
        "self.heads, self.key_dim)), (0, 2, 1, 3)",
        "self.key_dim, self.heads)), (0, 3, 1, 2)",
        "cct",
    ),
    "attention without its scale": ("layers/attention.py", "query / self.key_dim**0.5", "query", "cct"),
    "softmax over queries": (
        "layers/attention.py",
        "(key, (0, 1, 3, 2)))",
        "(key, (0, 1, 3, 2)), axis=-2)",
        "cct",
    ),
    "pooling is the mean": (
        "layers/attention.py",
        'ops.einsum("np,npc->nc", self.weights_for(x), x)',
        "ops.mean(x, axis=1)",
        "cct",
    ),
    "padding is always late": ("layers/patches.py", "}[padding]", '}["after_activation"]', "cct"),
    "position embedding dropped (cct)": (
        "models.py",
        '    if position:\n        x = layers.PositionEmbedding("uniform"',
        '    if False:\n        x = layers.PositionEmbedding("uniform"',
        "cct",
    ),
    "token and channel axes mistaken": (
        "layers/mlp.py",
        "linear, axis = kernels.TokenDense, 1",
        "linear, axis = kernels.Dense, -1",
        "mlp_mixer",
    ),
    "one norm for both halves": (
        "layers/mlp.py",
        "if not shared_norm:\n            self.channels_norm =",
        "if False:\n            self.channels_norm =",
        "mlp_mixer",
    ),
    "token residual dropped": (
        "layers/mlp.py",
        "x = x + self.tokens(",
        "x = self.tokens(",
        "mlp_mixer",
    ),
    "no activation between the layers": (
        "layers/mlp.py",
        "self.drop(self.activation(self.expand(x)), training=training)",
        "self.drop(self.expand(x), training=training)",
        "mlp_mixer",
    ),
    "magnitude instead of the real part": (
        "layers/fourier.py",
        'kernels.fourier(ops.cast(x, "float32"))',
        "ops.sqrt(sum(part**2 for part in ops.fft2((x, ops.zeros_like(x)))))",
        "fnet",
    ),
    "transform over tokens only": (
        "layers/fourier.py",
        'kernels.fourier(ops.cast(x, "float32"))',
        "ops.transpose(ops.fft((t := ops.transpose(x, (0, 2, 1)), ops.zeros_like(t)))[0], (0, 2, 1))",
        "fnet",
    ),
    "Fourier residual dropped": (
        "layers/fourier.py",
        "self.fourier_norm(x + self.fourier(x))",
        "self.fourier_norm(self.fourier(x))",
        "fnet",
    ),
    "norm before instead of after": (
        "layers/fourier.py",
        "return self.mlp_norm(x + self.mlp(x, training=training))",
        "return x + self.mlp(self.mlp_norm(x), training=training)",
        "fnet",
    ),
    "gate without its bias": ("layers/gating.py", 'bias_initializer="ones"', 'bias_initializer="zeros"', "gmlp"),
    "gate's halves swapped": ("layers/gating.py", "kept, gating = ops.split", "gating, kept = ops.split", "gmlp"),
    "gate adds instead of multiplying": (
        "layers/gating.py",
        "return kept * self.gate",
        "return kept + self.gate",
        "gmlp",
    ),
    "skip always from the normalised input": (
        "layers/gating.py",
        'normalized if self.skip == "normalized" else x',
        "normalized",
        "gmlp",
    ),
    "class token behind the patches": ("layers/patches.py", "[token, x]", "[x, token]", "vit"),
    "position embedding dropped (vit)": (
        "layers/patches.py",
        "return x + ops.cast(self._rows(x.shape[1]), x.dtype)",
        "return x",
        "vit",
    ),
    "attention residual dropped": (
        "layers/attention.py",
        "x = x + self.attention_drop(",
        "x = self.attention_drop(",
        "vit",
    ),
    "patches in columns instead of rows": (
        "layers/patches.py",
        "        x = self.embed(images)\n        return",
        "        x = ops.transpose(self.embed(images), (0, 2, 1, 3))\n        return",
        "vit",
    ),
    "spread over n": ("cards.py", "np.std(values, ddof=1)", "np.std(values)", "compare"),
    "other recipes counted as seeds": (
        "cards.py",
        "words = [tier, *_special(",
        "words = [tier] or [*_special(",
        "compare",
    ),
    "smoke runs compared": ("compare.py", 'if card["tier"] == "smoke"', "if not card", "compare"),
    "the test images' luck forgotten": ("compare.py", "scores.max(axis=1)", "scores.mean(axis=1)", "compare"),
}
ABOUT_FILES = ("test_notebooks", "test_project")  # how the project's files are written, not what they do
CONTROL = ("models.py", "def convmixer", "def convmixer", "convmixer")


def bite(name: str) -> tuple[str, str]:
    """The first failing check of the bug's notebook and of the unit tests, with it planted; empty where none fails."""
    where, old, new, notebook = BUGS.get(name, CONTROL)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "runs", "__pycache__"))
        path = copy / place(where)
        text = path.read_text()
        if old not in text:
            raise SystemExit(f"{name}: {path.name} no longer holds {old!r}")
        path.write_text(text.replace(old, new))
        return first_failure(copy, ["--nbval", f"notebooks/{notebook}.ipynb"]), first_failure(copy, unit_tests(where))


def place(where: str) -> Path:
    """The file of a bug, in the project."""
    return Path("patchlib" if where.endswith(".py") else "notebooks") / where


def unit_tests(where: str) -> list[str]:
    """The files of unit tests: those of the bug's module first, those that start programs last."""
    own = "test_" + Path(where).parts[0].removesuffix(".py")
    there = sorted(path.stem for path in ROOT.glob("tests/test_*.py") if path.stem not in ABOUT_FILES)
    return [f"tests/{name}.py" for name in sorted(there, key=lambda name: (name != own, name == "test_batch"))]


def first_failure(folder: Path, arguments: list[str]) -> str:
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--color=no", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[0].split(" - ")[0].split(" ", 1)[1] if lines else f"pytest exit code {done.returncode}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Plant bugs, one by one, and see what catches each.")
    parser.add_argument("bugs", nargs="*", metavar="BUG", help="by name; without any, all of them")
    names = parser.parse_args().bugs or list(BUGS)
    if unknown := set(names) - set(BUGS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}. There are: {'; '.join(BUGS)}.")
    if red := " and ".join(filter(None, bite("no bug"))):
        print(f"{red} fails without any bug planted: see to `make test` first.")
        return 1
    rows = []
    missed = by_notebook = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, (notebook, unit) in zip(names, pool.map(bite, names), strict=True):
            print(f"{name}: {notebook or '-'}, {unit or '-'}", file=sys.stderr, flush=True)
            rows.append([name, notebook or "-", unit or "-"])
            missed += not (notebook or unit)
            by_notebook += bool(notebook)
    print(markdown.table(["bug", "notebook", "unit tests"], rows))
    print(f"\n{len(names)} bugs: {len(names) - missed} caught, {by_notebook} of them by a notebook, {missed} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
