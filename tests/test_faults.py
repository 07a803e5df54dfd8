"""The power fails at every moment of a run: nothing that was reached is lost, and nothing half-written counts.

A disk is played by what a run does to its folder. Of a file, what wasn't flushed is lost, and it's empty. Of a folder's
entries, those changed since it was last flushed may be there or not; the two extremes are that all changes arrived, and
that removals alone did.
"""

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from test_training import RECIPE, changed, small_model, tiny

from patchlib import cards, files, runs


class Disk:
    """Records what is done below a folder, and keeps what a power failure could leave, before each deed and after."""

    def __init__(self, folder, states):
        self.folder, self.states, self.whole, self.epochs, self.busy = folder, states, {}, 0, False
        self.flushed = states / "flushed"  # the folder's entries when they were last flushed
        self.flushed.mkdir(parents=True)
        self.left = []

    def record(self, monkeypatch):
        for name in ("replace", "rename", "mkdir", "unlink", "rmdir", "fsync"):
            monkeypatch.setattr(os, name, self.around(getattr(os, name)))
        checkpoint = runs._checkpoint

        def counted(*arguments):
            checkpoint(*arguments)
            self.epochs += 1

        monkeypatch.setattr(runs, "_checkpoint", counted)

    def around(self, deed):
        def done(what, *arguments, dir_fd=None, **named):
            if dir_fd is not None:
                named["dir_fd"] = dir_fd
            opened = what if deed.__name__ == "fsync" else dir_fd
            path = Path("" if opened is None else os.readlink(f"/proc/self/fd/{opened}"))
            path = path if deed.__name__ == "fsync" else path / what
            if self.busy or self.folder not in (path, *path.parents):
                return deed(what, *arguments, **named)
            self.fail()
            result = deed(what, *arguments, **named)
            if deed.__name__ == "fsync":
                self.flush(path)
            self.fail()
            return result

        return done

    def flush(self, path):
        self.busy = True
        self.whole[path.stat().st_ino] = path.stat().st_mtime_ns
        if path == self.folder:
            _fresh(self.flushed)
            self.copy(path, self.flushed)
        self.busy = False

    def copy(self, source, target):
        """What is flushed of a folder; files that aren't are empty, and so are such folders."""
        for path in source.iterdir():
            status = path.stat()
            whole = self.whole.get(status.st_ino) == status.st_mtime_ns
            if path.is_dir():
                (target / path.name).mkdir()
                if whole:
                    self.copy(path, target / path.name)
            else:
                (target / path.name).write_bytes(path.read_bytes() if whole else b"")

    def fail(self):
        if not self.folder.exists():
            return
        self.busy = True
        all_arrived, removed = (self.states / f"{len(self.left):04}-{kind}" for kind in ("all", "removed"))
        all_arrived.mkdir()
        self.copy(self.folder, all_arrived)
        shutil.copytree(self.flushed, removed)
        for path in list(removed.iterdir()):
            if not (self.folder / path.name).exists():
                _fresh(path, stay=False)
        self.left += [(all_arrived, self.epochs), (removed, self.epochs)]
        self.busy = False


def _fresh(path, stay=True):
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if stay:
        path.mkdir()


def lost(folder, epochs, model):
    """What is wrong with what a power failure left, in words; or None."""
    if cards.finished(folder):
        try:
            cards.load_card(folder)
            with np.load(folder / cards.PREDICTIONS) as arrays:
                assert len(arrays["rank"]) == 12
            assert not zipfile.ZipFile(folder / cards.MODEL).testzip()
            return None
        except Exception as error:
            return f"finished, but {error!r}"
    identity = runs._identity(model, tiny(), RECIPE)
    try:
        progress, _ = runs._resume(folder, identity, model)
    except Exception as error:
        return f"after {epochs} epochs: {error!r}"
    return None if progress.epoch >= epochs else f"after {epochs} epochs, {progress.epoch} are left"


def failures(tmp_path, monkeypatch):
    """What the power failures of one run lost, and how many there were."""
    disk, model = Disk(tmp_path / "runs" / "run", tmp_path / "states"), small_model()
    (tmp_path / "runs").mkdir()
    with monkeypatch.context() as patch:
        disk.record(patch)
        runs.train(model, tiny(), RECIPE, disk.folder)
    return [words for left in disk.left if (words := lost(*left, model))], len(disk.left)


def test_a_power_failure_at_any_moment_loses_nothing(tmp_path, monkeypatch):
    found, tried = failures(tmp_path, monkeypatch)
    assert found == [] and tried > 100


def test_without_flushing_it_would(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "flush", lambda path: None)
    found, _ = failures(tmp_path, monkeypatch)
    assert len(found) > 10


def test_a_run_goes_on_from_what_a_power_failure_left(tmp_path, monkeypatch):
    disk, recipe = Disk(tmp_path / "run", tmp_path / "states"), changed(epochs=2)
    whole = runs.train(small_model(), tiny(), recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        disk.record(patch)
        runs.train(small_model(), tiny(), recipe, disk.folder)
    for folder, _ in disk.left[:: len(disk.left) // 6]:
        if not cards.finished(folder):
            again = runs.train(small_model(), tiny(), recipe, folder)
            assert (again["metrics"], again["weights"]) == (whole["metrics"], whole["weights"])


@pytest.mark.parametrize("name", ["notes.partial.txt", "my.partial"])
def test_what_is_not_ours_stays(tmp_path, name):
    (tmp_path / name).write_text("mine")
    runs.train(small_model(), tiny(), RECIPE, tmp_path)
    assert (tmp_path / name).read_text() == "mine"
