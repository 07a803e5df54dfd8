"""The wheel alone, built from the sdist: what the README tells its readers to type, far from any checkout."""

import csv
import hashlib
import os
import re
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import patchlib
from patchlib import cards

ROOT = Path(__file__).parents[1]
NAME = f"patchlib_keras-{patchlib.__version__}"
README = (ROOT / "README.md").read_text()


def lines():
    """The lines of the README's blocks that need no checkout, and its Python, as a shell takes them."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", README, re.M | re.S)
    typed = [f"python - <<'END'\n{text}END" for language, text in blocks if language == "python"]
    plain = [line for language, text in blocks if not language for line in text.splitlines()]
    typed += [line.partition("  #")[0].rstrip() for line in plain if line.startswith("patchlib ")]
    # Runs that take hours: the first notebook alone, a small network, one seed, one epoch on few images.
    less = "--seeds 1 --set dim=8 --set depth=1 --set epochs=1 --set limit=40"
    return [re.sub(r"^(patchlib run \w+)( \w+)*(.*)", rf"\1\3 {less}", line) for line in typed]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the unpacked sdist."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "--directory", folder, "--target"]
    subprocess.run([*build, "sdist"], cwd=ROOT, check=True)
    with tarfile.open(folder / f"{NAME}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    subprocess.run([*build, "wheel"], cwd=folder / NAME, check=True)
    return folder / f"{NAME}-py3-none-any.whl"


@pytest.fixture(scope="module")
def shell(wheel, tmp_path_factory):
    """Runs a line in a folder with pictures, in an environment with the wheel and this environment's packages."""
    there = tmp_path_factory.mktemp("reader")
    environment, folder, scratch = there / "environment", there / "folder", there / "scratch"
    venv.create(environment, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(str(Path(np.__file__).parents[1]))
    pip = [sys.executable, "-m", "pip", "--python", environment, "install", "--quiet", "--no-deps", wheel]
    subprocess.run(pip, check=True)
    (folder / "photos").mkdir(parents=True)
    scratch.mkdir()
    draw = np.random.default_rng(0).integers
    for name in ("cat.png", "photos/a.png", "photos/b.jpg"):
        Image.fromarray(draw(0, 256, (40, 50, 3), "uint8")).save(folder / name)
    images, labels = draw(0, 256, (60, 32, 32, 3), "uint8"), np.arange(60)[:, None] % 10
    np.savez(there / "cifar10.npz", x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PATCHLIB_RUNS")}
    env |= {"PATH": f"{environment / 'bin'}{os.pathsep}{env['PATH']}", "PATCHLIB_DATA": str(there)}
    env["TMPDIR"] = str(scratch)

    def run(line):
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=folder, env=env)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout, done.stderr

    return run, folder, scratch


def test_the_readmes_lines_do_as_it_says(shell):
    run, folder, _ = shell
    typed = [line for line in lines() if not line.startswith("patchlib run ")]
    assert len(typed) == len(lines()) - 1 == 5
    for line in typed:
        run(line)
    with open(folder / "answers.csv") as file:
        assert {row["path"] for row in csv.DictReader(file)} == {"photos/a.png", "photos/b.jpg"}
    made = {"mistakes/mistakes.png", "convmixer-cifar10.onnx", "notebooks/cct.ipynb", "notebooks/tiers/cct-fast.yaml"}
    assert all((folder / name).is_file() for name in made)


def test_its_line_for_batches_runs_a_notebook_to_a_card_and_says_how_to_go_on(shell):
    run, there, scratch = shell
    (line,) = [line for line in lines() if line.startswith("patchlib run ")]
    output, errors = run(line)
    assert not [path for path in scratch.iterdir() if path.name.startswith(("dask", "patchlib"))]
    (folder,) = (there / "runs").iterdir()
    left = ["SHA256SUMS", "convmixer.ipynb", "curves.png", "model.keras", "predictions.npz", "run.json"]
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == left
    digests = [row[:64] for row in (folder / "SHA256SUMS").read_text().splitlines()]
    assert set(digests) == {hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in left[1:]}
    card = cards.load_card(folder)
    assert (card["seed"], card["parameters"]["limit"], card["tier"]) == (0, 40, "tuned")
    said = [line for line in errors.splitlines() if " runs ended, " not in line]  # said where it takes minutes
    steps, remark, epoch, end = said  # and not a word of TensorFlow's
    assert steps == f"{folder.name}: 1 step an epoch, 1 in all" and "too few to learn much" in remark
    assert epoch.startswith(f"{folder.name}: epoch 1/1: loss {card['history']['loss'][0]:.4f}, accuracy")
    assert end == f"{folder.name}: finished, test accuracy {card['metrics']['test_accuracy']:.4f} (1 of 1)"
    (line,) = [line for line in output.splitlines() if line.startswith("classify a picture: ")]
    answer, warned = run(line.partition(": ")[2].replace("picture.jpg", "cat.png"))
    picture, *shares_and_names = answer.split()
    assert (picture, warned) == ("cat.png", "")
    assert len(shares_and_names) == 10 and set(shares_and_names[1::2]) < set(card["dataset"]["classes"])
