"""The wheel alone, built from the sdist: what the README tells its readers to type, far from any checkout."""

import csv
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


@pytest.fixture
def shell(wheel, tmp_path, monkeypatch):
    """Runs a line in an empty folder, in an environment with the wheel and this environment's packages."""
    environment = tmp_path / "environment"
    venv.create(environment, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(str(Path(np.__file__).parents[1]))
    pip = [sys.executable, "-m", "pip", "--python", environment, "install", "--quiet", "--no-deps", wheel]
    subprocess.run(pip, check=True)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("PATH", f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return lambda line: subprocess.run(["bash", "-c", line], capture_output=True, text=True)


def test_the_readmes_lines_do_as_it_says(shell, tmp_path, monkeypatch):
    draw = np.random.default_rng(0).integers
    Path("photos").mkdir()
    for name in ("cat.png", "photos/a.png", "photos/b.jpg"):
        Image.fromarray(draw(0, 256, (40, 50, 3), "uint8")).save(name)
    images, labels = draw(0, 256, (60, 32, 32, 3), "uint8"), np.arange(60)[:, None] % 10
    np.savez(tmp_path / "cifar10.npz", x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])
    monkeypatch.setenv("PATCHLIB_DATA", str(tmp_path))
    assert len(lines()) == 6
    for line in lines():
        done = shell(line)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    with open("answers.csv") as file:
        assert {row["path"] for row in csv.DictReader(file)} == {"photos/a.png", "photos/b.jpg"}
    made = {"mistakes/mistakes.png", "convmixer-cifar10.onnx", "notebooks/cct.ipynb", "notebooks/tiers/cct-fast.yaml"}
    assert all(Path(name).is_file() for name in made)
    assert len(list(Path("runs").glob("convmixer-tuned-*/run.json"))) == 1
