"""The formats that data comes in, where test_data doesn't have them: MedMNIST's arrays, tables, validation images."""

import numpy as np
import pytest
from PIL import Image
from test_data import folder, images, npz, pairs, pictures

from patchlib.data import DataError, Split, load_data


def medmnist(path, **changes):
    """An .npz file as MedMNIST has it: (N, 28, 28) or (N, 28, 28, 3), and labels (N, 1) of uint8."""
    arrays = {}
    for seed, (part, count) in enumerate({"train": 40, "val": 9, "test": 8}.items()):
        arrays |= {f"{part}_images": images(count, (28, 28), seed)}
        arrays |= {f"{part}_labels": (np.arange(count)[:, None] % 4).astype("uint8")}
    np.savez(path, **{key: value for key, value in (arrays | changes).items() if value is not None})
    return {
        key: Split(np.repeat(arrays[f"{key}_images"][..., None], 3, axis=-1), arrays[f"{key}_labels"][:, 0])
        for key in ("train", "val", "test")
    }


def folder_with_val(path):
    folder(path, splits=("train", "val", "test"))
    return {part: pictures(path / part) for part in ("train", "val", "test")}


def table(path, lines, head="path,label,split"):
    path.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return path


def table_with_splits(path):
    """A table whose rows stand in no order, beside pictures in folders that say nothing."""
    made = folder_with_val(path / "there")
    files = sorted((path / "there").rglob("*.png"))
    rows = [f"there/{f.relative_to(path / 'there')},{f.parent.name},{f.parent.parent.name}" for f in files]
    order = np.random.default_rng(0).permutation(len(rows))
    table(path / "own.csv", [rows[i] for i in order])
    return made


def keras_with_val(path):
    made = npz(path, x_val=images(9, seed=2), y_val=np.arange(9) % 4)
    return {part: Split(made[f"x_{part}"], made[f"y_{part}"].reshape(-1)) for part in ("train", "val", "test")}


SOURCES = {
    "medmnist.npz": lambda path: medmnist(path / "medmnist.npz"),
    "keras.npz": lambda path: keras_with_val(path / "keras.npz"),
    "folder": lambda path: folder_with_val(path / "folder"),
    "own.csv": table_with_splits,
}


@pytest.mark.parametrize("rule", ["stratified", "first"])
@pytest.mark.parametrize("name", SOURCES)
def test_validation_images_in_the_data_validate_and_a_line_says_so(tmp_path, capsys, name, rule):
    expected = SOURCES[name](tmp_path)
    data = load_data(tmp_path / name, validation=rule)
    for part, split in {"train": data.train, "val": data.validation, "test": data.test}.items():
        assert pairs(split) == pairs(expected[part])
        assert split.labels.dtype == np.int64 and split.images.dtype == np.uint8
    assert data.split == data.describe()["split"] == "own"
    said = f"validation: not {rule!r}, since there are {len(expected['val'])} images of its own for that\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("name", SOURCES)
def test_image_size_and_patch_size_hold_for_every_format_and_split(tmp_path, name):
    expected = SOURCES[name](tmp_path)
    data = load_data(tmp_path / name, image_size=12)
    assert {split.images.shape[1:] for split in (data.train, data.validation, data.test)} == {(12, 12, 3)}
    side = expected["train"].images.shape[1]
    with pytest.raises(DataError, match=f"{side} x {side} pixels aren't tiled by patches of 5"):
        load_data(tmp_path / name, patch_size=5)


def test_limit_leaves_validation_images_of_their_own_alone(tmp_path):
    expected = medmnist(tmp_path / "own.npz")
    data = load_data(tmp_path / "own.npz", limit=7)
    assert (len(data.train), pairs(data.validation)) == (7, pairs(expected["val"]))


def test_medmnist_without_validation_images_is_split_as_all_data(tmp_path):
    medmnist(tmp_path / "own.npz", val_images=None, val_labels=None)
    data = load_data(tmp_path / "own.npz")
    assert (len(data.train), len(data.validation), data.split) == (36, 4, "stratified")


def test_a_table_without_splits_is_split_as_a_folder_is(tmp_path):
    folder(tmp_path, per_class=20, splits=("train",))
    files = sorted(tmp_path.rglob("*.png"))
    lines = [f"{file.relative_to(tmp_path)},{file.parent.name}" for file in files]
    made = load_data(table(tmp_path / "own.csv", lines, "path,label"))
    assert made.fingerprint == load_data(tmp_path).fingerprint
    table(tmp_path / "own.csv", [f"{name},{path}" for path, name in (line.split(",") for line in lines)], "label,path")
    assert load_data(tmp_path / "own.csv").fingerprint == made.fingerprint


def test_a_table_may_come_from_a_spreadsheet(tmp_path):
    folder(tmp_path, splits=("train",), classes=("cat", "dog"))
    lines = [f'{tmp_path / "train" / name / f"{i}.png"},"{name}, große"' for name in ("cat", "dog") for i in range(5)]
    (tmp_path / "own.csv").write_text("\r\n".join(["path,label", *lines, ""]), encoding="utf-8-sig")
    assert load_data(tmp_path / "own.csv").classes == ("cat, große", "dog, große")


def tabled(*lines, head="path,label,split"):
    def write(path):
        folder(path, splits=("train",))
        return table(path / "own.csv", ["train/cat/0.png,cat,train", "train/dog/0.png,dog,train", *lines], head)

    return write


def labelled(**changes):
    def write(path):
        medmnist(path / "own.npz", **changes)
        return path / "own.npz"

    return write


def no_text(path):
    (path / "own.csv").write_bytes(b"path,label\n\xff\xfe\x00")
    return path / "own.csv"


def class_only_in_val(path):
    folder(path, splits=("train", "val"))
    (path / "val" / "eel").mkdir()
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            tabled("a.png,cat,valid"),
            ["own.csv, line 4: received ['a.png', 'cat', 'valid']", "for split train, val, test"],
        ),
        (tabled("a.png,,train"), ["own.csv, line 4: received ['a.png', '', 'train']", "accepted: a path, a label"]),
        (tabled("a.png,cat"), ["own.csv, line 4: received ['a.png', 'cat', None]", "accepted: a path, a label"]),
        (tabled("a.png,cat,train,more"), ["own.csv, line 4", "['more']", "accepted: a path, a label"]),
        (tabled("a.png,cat,train"), ["a.png' can't be read", "no such file"]),
        (tabled("train/dog/1.png,eel,test"), ["test has eel, which train has not"]),
        (tabled(head="file,label,split"), ["['file', 'label', 'split']", "accepted: path, label and maybe split"]),
        (tabled(head="path,label,splits"), ["'splits'", "accepted: path, label and maybe split"]),
        (lambda path: table(path / "own.csv", []), ["train has 0 class(es)", "at least 2"]),
        (lambda path: table(path / "own.csv", ["a.png,a,val", "b.png,b,val"]), ["train has 0 class(es)"]),
        (no_text, ["own.csv is broken or isn't a .csv file"]),
        (lambda path: path / "nowhere.csv", ["nowhere.csv", "no such file"]),
        (class_only_in_val, ["val has eel, which train has not"]),
        (labelled(val_labels=None), ["lacks val_labels", "val_images"]),
        (labelled(test_images=None), ["lacks test_images"]),
        (labelled(train_labels=np.eye(4, dtype="uint8")[np.arange(40) % 4]), ["train_labels", "(40, 4)", "argmax"]),
        (labelled(val_images=images(9, (28, 28, 28))), ["val_images is uint8 of shape (9, 28, 28, 28)"]),
        (
            labelled(val_images=images(9, (14, 14))),
            ["train_images is of (40, 28, 28, 3)", "val_images of (9, 14, 14, 3)"],
        ),
        (labelled(val_labels=np.full((9, 1), 4)), ["4 different labels in train_labels", "up to 4"]),
    ],
)
def test_what_is_wrong_with_a_format_is_named(tmp_path, make, words):
    with pytest.raises(DataError) as caught:
        load_data(make(tmp_path))
    assert all(word in str(caught.value) for word in words), caught.value
    assert str(caught.value).endswith(".")


def test_a_table_says_what_pixels_there_are_as_a_folder_does(tmp_path):
    folder(tmp_path, splits=("train",))
    Image.new("L", (20, 12), 200).save(tmp_path / "train" / "dog" / "0.png")
    lines = [f"{file.relative_to(tmp_path)},{file.parent.name}" for file in sorted(tmp_path.rglob("*.png"))]
    with pytest.raises(DataError, match=r"0\.png is of 12 x 20 pixels, .*cat.0\.png of 8 x 8: give an image_size"):
        load_data(table(tmp_path / "own.csv", lines, "path,label"))
