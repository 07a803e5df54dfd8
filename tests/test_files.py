import os

import pytest

from patchlib import files


class Full(OSError):
    pass


def half(path):
    path.write_text("ha")
    raise Full


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "card.json"
    with pytest.raises(Full):
        files.put(path, half)
    assert not os.listdir(tmp_path)
    files.put(path, lambda partial: partial.write_text("whole"))
    with pytest.raises(Full):
        files.put(path, half)
    assert path.read_text() == "whole"
    files.put(path, lambda partial: partial.write_text("new"))
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["card.json"]


def test_a_partial_file_keeps_its_suffix_by_which_writers_know_its_kind(tmp_path):
    names = [files.partial(tmp_path / name).name for name in ("model.keras", "checkpoint-00001")]
    assert names == ["model.partial.keras", "checkpoint-00001.partial"]


def test_a_folder_appears_whole_and_leaves_whole(tmp_path, monkeypatch):
    path, seen = tmp_path / "checkpoint-00001", []

    def fill(partial):
        (partial / "a").write_text("a")
        seen.append(path.exists())

    files.put_folder(path, fill)
    assert seen == [False] and (path / "a").read_text() == "a"
    with pytest.raises(Full):
        files.put_folder(tmp_path / "other", lambda folder: half(folder / "a"))
    assert os.listdir(tmp_path) == ["checkpoint-00001"]
    monkeypatch.setattr(files.shutil, "rmtree", lambda folder: seen.append((path.exists(), folder.name)))
    files.discard_folder(path)
    assert seen[1] == (False, "checkpoint-00001.partial")
