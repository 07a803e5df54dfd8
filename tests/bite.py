"""Plant bugs, one at a time, in a copy of the project, and see which check turns red: ``python tests/bite.py [NAME]``.

A bug that nothing notices is a hole in the tests; the exit code says so. Each bug is a place and a replacement.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]

# name: (file, what stands there, what the bug puts there)
BUGS = {
    "residual dropped": ("layers", "x = x + self.depthwise_norm(", "x = self.depthwise_norm("),
    "residual around the wrong half": (
        "layers",
        "return self.pointwise_norm(self.activation(self.pointwise(x)), training=training)\n\n    def compute",
        "return x + self.pointwise_norm(self.activation(self.pointwise(x)), training=training)\n\n    def compute",
    ),
    "kernel larger by two": ("layers", "DepthwiseConv2D(kernel_size,", "DepthwiseConv2D(kernel_size + 2,"),
    "norm before activation in the stem": (
        "layers",
        "self.norm(self.activation(self.embed(images)), training=training)",
        "self.activation(self.norm(self.embed(images), training=training))",
    ),
    "norm before activation in the block": (
        "layers",
        "self.depthwise_norm(self.activation(self.depthwise(x)), training=training)",
        "self.activation(self.depthwise_norm(self.depthwise(x), training=training))",
    ),
    "relu for gelu": ("layers", "keras.activations.get(activation)", 'keras.activations.get("relu")'),
    "one block more": ("models", "range(depth)", "range(depth + 1)"),
    "pixels doubled": ("models", "(1 / std).tolist()", "(2 / std).tolist()"),
    "images doubled on loading": (
        "data",
        "return Data(str(name), train,",
        "train.images[:] *= 2\n    return Data(str(name), train,",
    ),
    "labels shuffled": (
        "training",
        "return images, one_hot(self.split.labels[index],",
        "return images, one_hot(rng.permutation(self.split.labels[index]),",
    ),
    "learning rate zero": ("training", "            learning_rate(recipe, steps_per_epoch),", "            0.0,"),
    "augmentation switched off": (
        "training",
        "self.augment(self.split.images[index], rng)",
        "self.split.images[index]",
    ),
    "crop is the identity": ("augment", "rng.integers(0, 2 * pad + 1,", "rng.integers(pad, pad + 1,"),
    "one crop for the whole batch": ("augment", "(2, count))", "(2, 1)).repeat(count, axis=1)"),
    "flip turns upside down": ("augment", "images[:, :, ::-1]", "images[:, ::-1]"),
    "selection on the test set": ("training", "evaluate(model, data.validation,", "evaluate(model, data.test,"),
    "last weights instead of the best": ("training", "    model.set_weights(progress.best_weights)\n", ""),
    "weights not loaded on resuming": ("training", "        variable.assign(value)", "        pass"),
    "validation images left in training": ("data", "_take(whole, ~chosen)", "whole"),
    "unknown parameters pass": ("parameters", 'extra="forbid"', 'extra="ignore"'),
    "smoke run at another depth": ("convmixer.ipynb", "depth: int = 4 ", "depth: int = 5 "),
}
UNIT_TESTS = ["tests", "--ignore=tests/test_notebooks.py", "--ignore=tests/test_project.py"]


def bite(name: str) -> tuple[str, str]:
    """The first failing check of the notebooks and of the unit tests, with one bug planted; empty where none fails."""
    where, old, new = BUGS[name]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "runs", "__pycache__"))
        path = copy / "notebooks" / where if where.endswith(".ipynb") else copy / "patchlib" / f"{where}.py"
        text = path.read_text()
        if old not in text:
            raise SystemExit(f"{name}: {path.name} no longer holds {old!r}")
        path.write_text(text.replace(old, new))
        return first_failure(copy, ["--nbval", "notebooks"]), first_failure(copy, UNIT_TESTS)


def first_failure(folder: Path, arguments: list[str]) -> str:
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--color=no", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[0].split(" - ")[0].split(" ", 1)[1] if lines else f"pytest exit code {done.returncode}"


def main(names: list[str]) -> int:
    names = names or list(BUGS)
    print("| bug | notebooks | unit tests |\n|---|---|---|", flush=True)
    missed = by_notebook = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, (notebook, unit) in zip(names, pool.map(bite, names), strict=True):
            print(f"| {name} | {notebook or '-'} | {unit or '-'} |", flush=True)
            missed += not (notebook or unit)
            by_notebook += bool(notebook)
    print(f"\n{len(names)} bugs: {len(names) - missed} caught, {by_notebook} of them by a notebook, {missed} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
