"""What the command line asks for, as runs with folders and checked parameters."""

import json
import shutil
import zipfile

import pytest

from patchlib import cli, plan
from patchlib.parameters import ARCHITECTURES
from patchlib.pictures import DataError

pytest.importorskip("yaml", reason="it comes with the notebooks' extra")


def planned(*words):
    return {run.folder.name: run for run in plan.plan(cli._parser().parse_args(["run", *words]))}


def test_what_is_planned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert list(planned("--seeds", "1")) == [f"{name}-smoke-digits-seed0" for name in ARCHITECTURES]
    assert list(planned("cct", "--tier", "smoke", "baseline", "--seeds", "4", "7")) == [
        f"cct-{run}"
        for run in ("smoke-digits-seed4", "baseline-cifar10-seed4", "smoke-digits-seed7", "baseline-cifar10-seed7")
    ]
    (run,) = planned("cct", "--tier", "baseline", "--set", "learning_rate=1e-3", "--set", "epochs=5").values()
    assert run.folder == tmp_path / "runs" / "cct-baseline-cifar10-epochs=5-learning_rate=0.001-seed0"
    assert (run.parameters.learning_rate, run.parameters.epochs, run.parameters.dataset) == (1e-3, 5, "cifar10")
    assert planned("cct").popitem()[1].parameters.dim == 48  # of the notebook's own cell


def test_a_network_to_start_from_is_found_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    zipfile.ZipFile(tmp_path / "run" / "model.keras", "w").close()
    for given, kept in (("cct-cifar10", "cct-cifar10"), ("run", str(tmp_path / "run" / "model.keras"))):
        assert planned("cct", "--set", f"init_from={given}").popitem()[1].parameters.init_from == kept
    with pytest.raises(
        plan.UsageError, match="no model: received 'cct-cifar11', did you mean 'cct-cifar10'[?] accepted:"
    ):
        planned("cct", "--set", "init_from=cct-cifar11")


def test_a_folder_without_train_is_refused_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    with pytest.raises(
        DataError, match=r"photos has no folder 'train': .*/train/<class>/\*.png; it has cats, dogs, which"
    ):
        planned("cct", "--set", "dataset=photos")


def test_data_sets_of_one_name_have_two_folders_and_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/photos/train", "b/photos/train"):
        (tmp_path / name).mkdir(parents=True)
    (a, first), (b, _) = [planned("cct", "--set", f"dataset={x}/photos").popitem() for x in "ab"]
    assert a != b and a.startswith("cct-smoke-photos-") and "/" not in a
    assert first.parameters.dataset == str(tmp_path / "a" / "photos")


@pytest.mark.parametrize(
    "text",
    [
        *("5", "[1]", "a: [", "a: a: a", "[" * 10**5, "\xff", "dim: 2024-02-30", "? [a]\n: 5", "5: 5"),
        *(f"dim: {'9' * 9999}", "dim: !!python/object/apply:os.mkdir [x]"),
    ],
)
def test_a_tier_that_is_none_is_refused(tmp_path, text):
    notebooks = shutil.copytree(plan.NOTEBOOKS, tmp_path / "notebooks", ignore=shutil.ignore_patterns("*.csv"))
    (notebooks / "tiers" / "cct-own.yaml").write_text(text, encoding="latin1")
    with pytest.raises(plan.UsageError, match=r"cct-own\.yaml isn't a tier \(.*\)\.$") as caught:
        planned("cct", "--tier", "own", "--notebooks", str(notebooks))
    assert len(str(caught.value)) < 1000


def cell(source):
    return json.dumps({"cells": [{"metadata": {"tags": ["parameters"]}, "source": source}]})


@pytest.mark.parametrize(
    "text",
    ["", "5", "[]", '{"cells": 5}', '{"cells": [5]}', '{"cells": [{"metadata": 5}]}', "[" * 10**5, "\xff"]
    + [cell(source) for source in (5, "dim: int = f()", "dim: int = " + "9" * 9999, "dim: int =", "(" * 10**5)],
)
def test_a_notebook_without_a_parameters_cell_is_refused(tmp_path, text):
    (tmp_path / "cct.ipynb").write_text(text, encoding="latin1")
    with pytest.raises(
        plan.UsageError, match=r"cct\.ipynb isn't a notebook with one parameters cell \(.*\)\.$"
    ) as caught:
        planned("cct", "--notebooks", str(tmp_path))
    assert len(str(caught.value)) < 1000
