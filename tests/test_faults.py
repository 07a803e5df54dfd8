"""The power fails at every moment of a run, the process is killed, the disk is full: nothing that was reached is lost.

For the power, a disk is played by what a run does to its folder. Of a file, what wasn't flushed is lost, and it's
empty. Of a folder's entries, those changed since it was last flushed may be there or not; the two extremes are that all
changes arrived, and that removals alone did.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from test_fuzz import SIEGE
from test_runs import names
from test_training import RECIPE, changed, small_model, tiny

from patchlib import cards, files, runs

resource = pytest.importorskip("resource", reason="Windows has no limit for a file's size")
if not Path("/proc/self/fd").exists():
    pytest.skip("what's done to a disk is seen by Linux' /proc", allow_module_level=True)


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
        progress, *_ = runs._resume(folder, identity, model)
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


def test_a_power_failure_at_any_moment_loses_nothing(tmp_path, monkeypatch, record_property):
    found, tried = failures(tmp_path, monkeypatch)
    record_property("tried", tried)
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


LONGER = changed(epochs=8)


def trained(folder: Path, largest: int = resource.RLIM_INFINITY) -> int:
    """Train in a fork of this process, of which no file may become larger; the fork's process id."""
    if child := os.fork():
        return child
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
        runs.train(small_model(), tiny(), LONGER, folder)
        os._exit(0)
    except (OSError, cards.RunError):
        os._exit(1)
    finally:
        os._exit(2)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(root: str, kills: int) -> None:
    """Train runs, killed so many times in all, at random and just after checkpoints, until each is finished."""
    done, number = 0, 0
    while True:
        folder = Path(root, f"run-{number}")
        before, child, start = cards.progress(folder), trained(folder), time.monotonic()
        if done < kills:
            by_checkpoint, deadline = random.random() < 0.75, start + random.uniform(0, 4)
            while time.monotonic() < (start + 60 if by_checkpoint else deadline):
                if by_checkpoint and cards.progress(folder).get("history") != before.get("history"):
                    time.sleep(random.uniform(0, 0.2))
                    break
                time.sleep(0.002)
            os.kill(child, signal.SIGKILL)
        code = ended(child)
        done += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL), code
        reached = [len(progress.get("history", {}).get("loss", ())) for progress in (before, cards.progress(folder))]
        assert reached[0] <= reached[1], reached
        if code == 0:
            number += 1
            if done == kills:
                return


def fill(root: str, times: int) -> None:
    """Train a run where its files find too little room, so many times and for more and more bytes; then with enough."""
    sizes = np.geomspace(64, 40_000, times).astype(int).tolist()
    codes = [ended(trained(Path(root, "run-0"), size)) for size in [*sizes, resource.RLIM_INFINITY]]
    assert codes == [1] * times + [0], codes


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return runs.train(small_model(), tiny(), LONGER, tmp_path_factory.mktemp("whole"))


def assert_as_if_nothing_had_been(root, call, whole):
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_faults; test_faults.{call}"
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ)
    for folder in root.glob("run-*"):
        card = cards.load_card(folder)
        assert (card["metrics"], card["weights"]) == (whole["metrics"], whole["weights"])
        assert names(folder) == ["model.keras", "predictions.npz", "run.json"]


def test_killed_at_any_moment_a_run_ends_as_if_it_had_not_been(tmp_path, record_property, whole):
    kills = 60 if SIEGE else 2
    assert_as_if_nothing_had_been(tmp_path, f"kill({str(tmp_path)!r}, {kills})", whole)
    record_property("tried", kills)


def test_a_full_disk_loses_nothing(tmp_path, record_property, whole):
    times = 12 if SIEGE else 2
    assert_as_if_nothing_had_been(tmp_path, f"fill({str(tmp_path)!r}, {times})", whole)
    record_property("tried", times)
