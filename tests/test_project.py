"""What holds of the project as a whole: its files agree with each other."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import refresh
from bench import by_baselines
from bite import BUGS, place
from siege import WHAT

import patchlib
from patchlib import cli, exporting
from patchlib.parameters import ARCHITECTURES

ROOT = Path(__file__).parents[1]
ORDER = [*re.split(r"\s*->\s*", re.search(r"``(backend -> .*?)``", patchlib.__doc__, re.S)[1]), "__main__"]


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_what_stands_before_it(name):
    path = ROOT / "patchlib" / name
    files = sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    used = set()
    for node in [node for file in files for node in ast.walk(ast.parse(file.read_text()))]:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("patchlib"):
            parts = node.module.split(".")
            used |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    assert used - {name} <= set(ORDER[: ORDER.index(name)])


def test_no_module_is_missing_from_the_order():
    modules = {path.stem for path in (ROOT / "patchlib").iterdir() if not path.name.startswith("__pycache__")}
    assert modules == {*ORDER, "__init__"}


def test_each_module_has_its_tests():
    assert {f"test_{name}" for name in ORDER if name != "__main__"} <= {path.stem for path in ROOT.glob("tests/*.py")}


def test_conda_users_get_the_same_versions():
    import yaml

    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert conda[1:] == ["pip"] and re.fullmatch(r"python=3\.1[123]", conda[0])
    constraint, package = pip["pip"]
    assert constraint == "--constraint constraints.txt"
    extras = re.fullmatch(r"--editable \.\[(.*)\]", package)[1]
    assert f".venv/ready: EXTRAS := {extras}\n" in (ROOT / "Makefile").read_text()
    assert set(extras.split(",")) <= set(project["optional-dependencies"])


def test_every_dependency_is_locked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = sum(project["optional-dependencies"].values(), project["dependencies"])
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "constraints.txt").read_text(), re.M))
    assert {re.match(r"[\w-]+", requirement)[0] for requirement in wanted} <= locked
    assert "://" not in (ROOT / "constraints.txt").read_text()


def test_a_release_has_one_version():
    texts = {name: (ROOT / name).read_text() for name in ("README.md", "CHANGELOG.md", "CITATION.cff")}
    assert f"patchlib_keras-{patchlib.__version__}-py3-none-any.whl" in texts["README.md"]
    assert re.search(r"^## (\d.*?) - ", texts["CHANGELOG.md"], re.M)[1] == patchlib.__version__
    assert f"\nversion: {patchlib.__version__}\n" in texts["CITATION.cff"]


def test_no_installation_takes_what_others_published_under_this_name():
    paths = [
        path for kind in ("*.md", "docs/**/*.md", "notebooks/**/*", "patchlib/**/*.py") for path in ROOT.glob(kind)
    ]
    texts = {path: path.read_text() for path in paths if path.suffix in (".md", ".ipynb", ".py")}
    assert {
        path for path, text in texts.items() if re.search(r"pip install\b[^`\n]*\bpatchlib(-keras)?\b", text)
    } == set()


def test_what_a_command_says_to_install_is_the_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert (shlex.split(cli._EXTRA), shlex.split(exporting._EXTRA)) == (extras["notebooks"], extras["export"])


def test_readme_is_short_and_names_what_exists():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 120
    assert {f"notebooks/{name}.ipynb" for name in ARCHITECTURES} <= set(re.findall(r"\]\(([^)]+)\)", readme))
    for target in re.findall(r"\]\((?!http|#)([^)]+)\)", readme):
        assert (ROOT / target).exists(), target
    for target in re.findall(r"^ *make ([a-z]+)", readme, re.M):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target


def test_what_make_is_given_reaches_python_as_it_is(tmp_path):
    shown = tmp_path / "python"
    shown.write_text("#!/usr/bin/env python3\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    shown.chmod(0o755)
    hostile = f"my photos/$(shell touch {tmp_path}/a)`touch {tmp_path}/b`$$(touch {tmp_path}/c)\"'"
    words = [f"PY={shown}", f"DATA={hostile}", "LIMIT=3;ls", "SEED=", "ARGS=--set dim=64 *"]
    command = ["make", "--silent", "--old-file=.venv/ready", "run", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    given = ["--set", f"dataset={hostile}", "--set", "limit=3;ls", "--set", "dim=64", "*"]
    expected = ["-m", "patchlib", "run", "convmixer", "--tier", "smoke", "--seed", "0", *given]
    assert json.loads(done.stdout) == expected and list(tmp_path.iterdir()) == [shown]


def test_import_is_lazy_and_takes_less_than_a_second_beyond_keras():
    program = (
        "import patchlib, sys; print([name for name in sys.modules if name.startswith(('patchlib.', 'keras'))])\n"
        "import keras, time; start = time.process_time(); patchlib.runs, patchlib.checks, patchlib.load_data\n"
        "print(time.process_time() - start < 1)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ)
    assert done.stdout == "[]\nTrue\n", done.stderr


def test_the_readmes_tables_are_made_from_cards_and_measurements():
    text = (ROOT / "README.md").read_text()
    assert refresh.readme(text) == text, "run `make refresh`"
    spoiled = re.sub(r"(\| (CCT|gMLP) \|( CIFAR-\d+ \|| AVX\w+ \|)) [\d,.]+", r"\1 1.23", text)
    spoiled = re.sub(r"add \d+\.\d to", "add 99.9 to", re.sub(r"Points short of .*?\. ", "All is well. ", spoiled))
    assert (
        spoiled.count("| 1.23 |") == 2 + 2 * len(refresh.measured("time_to_accuracy"))
        and refresh.readme(spoiled) == text
    )
    text = (ROOT / "tools" / "README.md").read_text()
    spoiled = re.sub(r"(\| (CCT|gMLP) \| AVX\w+ \|) [\d,.]+", r"\1 1.23", text)
    assert spoiled.count("| 1.23 |") == 2 * len(refresh.measured("compare")) and refresh.tools_readme(
        text
    ) == text == refresh.tools_readme(spoiled)
    reports = refresh.reports()
    assert len(reports) >= 6 and {path: path.read_text() for path in reports} == reports


@pytest.mark.parametrize(
    ("curves", "expected"),
    [([], ""), ([[0.1, 0.4]], "never (0 of 1)"), ([[0.5], [0.2], [0.1, 0.1, 0.5], [0.4, 0.6]], "20.0 (3 of 4)")],
)
def test_a_baselines_time_is_that_of_its_typical_run(curves, expected):
    row = {"published": 0.5, "example": 100.0, "epochs": 10, "fast": 1.0}
    assert by_baselines(row, curves) == expected


def test_every_test_of_the_siege_is_there():
    for test in WHAT:
        module, name = test.split("::")
        assert f"def {name}(" in (ROOT / "tests" / module).read_text(), test


def test_every_bug_of_make_bite_still_has_its_place():
    for name, (where, old, new, _) in BUGS.items():
        text = (ROOT / place(where)).read_text()
        assert old in text, name
        if where.endswith(".py"):
            ast.parse(text.replace(old, new))  # else any check would catch it
