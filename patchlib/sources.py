"""Where data comes from: digits, CIFAR, ``.npz`` files, pictures in folders or in a table; read and checked."""

import csv
import math
import os
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from patchlib.files import PathError, user_path
from patchlib.parameters import SIZES
from patchlib.pictures import DataError, find_pictures, is_picture, load_picture
from patchlib.schema import brief, nearest, shown

NAMES = tuple(SIZES)
PARTS = ("train", "val", "test")

# Keras and the npz files give numbers only; these are the data sets' own names, in the order of the labels.
_CLASSES = {
    "cifar10": "airplane automobile bird cat deer dog frog horse ship truck",
    "cifar100": """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
        camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
        dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
        lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
        pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
        shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
        television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm""",
}


@dataclass(frozen=True)
class Split:
    """images: uint8 (N, H, W, 3), 0 to 255. labels: int64 (N,), 0 to classes - 1. files: paths (N,) of pictures."""

    images: np.ndarray
    labels: np.ndarray
    files: np.ndarray | None = None

    def __len__(self):
        return len(self.labels)

    def take(self, index) -> "Split":
        """The images that a NumPy index chooses, with their labels and files."""
        return Split(self.images[index], self.labels[index], None if self.files is None else self.files[index])


def read(name: str, image_size: int, patch_size: int) -> tuple[tuple[Split, Split | None, Split | None], list[str]]:
    """A data set's own training, validation and test images, None where it has none, and the names of its classes.

    Arguments and errors are those of ``load_data``; arrays still have their own size, pictures have ``image_size``.
    """
    try:
        path = user_path(name)
    except PathError as error:
        raise DataError(f"data set {error}") from None
    if name in NAMES:
        if path.is_dir():
            print(f"{name!r} is the built-in data set; the folder of that name is './{name}'")
        splits, classes = _digits() if name == "digits" else _cifar(name)
    elif path.is_dir():
        return _folder(path, image_size, patch_size)
    elif path.suffix == ".csv" and path.is_file():
        return _table(path, image_size, patch_size)
    elif path.suffix == ".npz" and path.is_file():
        splits, classes = _npz(path)
    elif path.suffix in (".csv", ".npz") or "/" in name:
        raise DataError(
            f"data set {shown(name)}: there is no such file or folder (looked for {str(path.absolute())[:200]})."
        )
    else:
        raise DataError(
            f"unknown data set {shown(name)}: did you mean {nearest(name, NAMES)!r}? Accepted: {', '.join(NAMES)}, "
            "or the path of an .npz file, of a .csv file or of a folder train/<class>/*.png."
        )
    if not image_size:
        refuse_untiled(splits[0].images.shape[1:3], patch_size)
    return splits, classes


def refuse_untiled(size: tuple[int, int], patch_size: int) -> None:
    """Refuse images (height, width) that squares of ``patch_size`` don't tile; 0 takes all."""
    if patch_size and any(side % patch_size for side in size):
        common = math.gcd(*size)
        fitting = ", ".join(str(patch) for patch in range(1, common + 1) if common % patch == 0)
        raise DataError(
            f"patch_size: images of {size[0]} x {size[1]} pixels aren't tiled by patches of {shown(patch_size)}, "
            f"accepted: {fitting}; image_size brings images to another size."
        )


def _digits():
    from sklearn.datasets import load_digits  # here, because scikit-learn takes a second to import

    digits = load_digits()
    small = (digits.images * 255 / 16).round().astype("uint8")  # 8 x 8, 0 to 16
    large = [Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC).convert("RGB") for image in small]
    classes = list("0123456789")
    images = np.stack([np.asarray(image) for image in large])
    return (Split(images, digits.target.astype("int64")), None, None), classes


def _cifar(name):
    classes = _CLASSES[name].split()
    folder = os.environ.get("PATCHLIB_DATA")
    if folder and (path := user_path(folder) / f"{name}.npz").is_file():
        (train, _, test), _ = _npz(path, classes)
    else:
        from patchlib.backend import keras  # here, because it takes seconds to import

        try:
            (x, y), (x_test, y_test) = getattr(keras.datasets, name).load_data()
        except Exception as error:  # keras.utils.get_file raises a bare Exception
            tried = f"{path} isn't there" if folder else "PATCHLIB_DATA isn't set"
            raise DataError(
                f"data set {name!r} can't be had: {tried}, and the download failed ({error}). Put {name}.npz with "
                "x_train, y_train, x_test and y_test into a folder and set PATCHLIB_DATA to it."
            ) from error
        train, test = Split(x, y[:, 0].astype("int64")), Split(x_test, y_test[:, 0].astype("int64"))
    return (train, None, test), classes


def _npz(path, classes=None):
    arrays = load_arrays(path)
    form = ("{}_images", "{}_labels") if "train_images" in arrays else ("x_{}", "y_{}")  # MedMNIST's or Keras' keys
    keys = {part: [key.format(part) for key in form] for part in PARTS}
    if not set(keys["val"]) & set(arrays):
        del keys["val"]
    if missing := [key for pair in keys.values() for key in pair if key not in arrays]:
        raise DataError(f"{path} lacks {', '.join(missing)}: it holds {brief(', '.join(arrays) or 'nothing')}.")
    splits = {part: _checked(path, pair, *(arrays[key] for key in pair)) for part, pair in keys.items()}
    images, labels = keys["train"]
    train = splits["train"]
    count, used = int(max(split.labels.max() for split in splits.values())) + 1, len(np.unique(train.labels))
    if used < 2:
        raise DataError(f"{path} has only label {train.labels[0]} in {labels}: accepted are at least 2 classes.")
    if not classes and "classes" not in arrays and used < count:
        raise DataError(
            f"{path} has {used} different labels in {labels} and labels up to {count - 1}: accepted are those from 0 "
            f"to {used - 1}, or an array `classes` with a name for each label from 0 to {count - 1}."
        )
    classes = classes or np.asarray(arrays.get("classes", range(count))).reshape(-1).astype(str).tolist()
    if len(classes) < count:
        raise DataError(
            f"{path} has labels from 0 to {count - 1} and {len(classes)} class name(s): accepted is a name for each."
        )
    if twice := [name for name, times in Counter(classes).items() if times > 1]:
        raise DataError(f"{path}: {shown(twice[0])} is the name of more than one class.")
    for part, split in splits.items():
        if split.images.shape[1:] != train.images.shape[1:]:
            raise DataError(f"{path}: {images} is of {train.images.shape}, {keys[part][0]} of {split.images.shape}.")
    return (splits["train"], splits.get("val"), splits.get("test")), classes


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file, which may be anybody's.

    Raises:
        DataError: it's broken, has Python objects in it, or unpacks to more than the machine's memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            refuse_more_than_memory(f"{path} unpacks to", sum(member.file_size for member in archive.infolist()))
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except DataError:
        raise
    except Exception as error:  # broken bytes make decoders raise nearly anything
        raise DataError(f"{path} is broken or isn't an .npz file ({brief(error)}).") from error


def refuse_more_than_memory(what, size):
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
    if size > memory:
        raise DataError(f"{what} {size / 1e9:,.1f} GB, and this machine has {memory / 1e9:,.1f} GB of memory.")


def _checked(path, keys, images, labels) -> Split:
    pixels, classes = keys
    if images.ndim == 3:  # grey
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
        raise DataError(
            f"{path}: {pixels} is {brief(images.dtype)} of shape {images.shape}, accepted: uint8 of shape (N, H, W, 3)."
        )
    count = len(images)
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape not in ((count,), (count, 1)):
        raise DataError(
            f"{path}: {classes} is {brief(labels.dtype)} of shape {labels.shape}, accepted: {count} integers from 0, "
            f"of shape ({count},) or ({count}, 1), which one-hot labels become by argmax(axis=1)."
        )
    if labels.min() < 0 or labels.max() >= 2**31:
        raise DataError(
            f"{path}: {classes} goes from {labels.min()} to {labels.max()}, accepted: integers from 0 to {2**31 - 1}."
        )
    return Split(np.broadcast_to(images, (*images.shape[:3], 3)), labels.reshape(-1).astype("int64"))


def refuse_unsorted(folder: Path) -> None:
    """Refuse a folder of pictures that has no ``train/``, and say what goes where."""
    if not (folder / "train").is_dir():
        there = ", ".join(_subfolders(folder))
        hint = f"; it has {brief(there)}, which may belong there" if there else ""
        raise DataError(f"{folder} has no folder 'train': expected are pictures {folder}/train/<class>/*.png{hint}.")


def _folder(path, size, patch_size):
    refuse_unsorted(path)
    classes, parts = _subfolders(path / "train"), [part for part in PARTS if (path / part).is_dir()]
    _refuse_classes(path, {part: _subfolders(path / part) for part in parts})
    found = {part: [find_pictures(path / part / name) for name in classes] for part in parts}
    if skipped := sum((others for each in found.values() for _, others in each), Counter()):
        kinds = ", ".join(f"{suffix} {count}" for suffix, count in sorted(skipped.items(), key=lambda s: (-s[1], s[0])))
        print(f"skipped {skipped.total()} files that aren't pictures: {kinds}")
    if loose := sum(is_picture(file) for part in parts for file in (path / part).iterdir()):
        print(f"skipped {loose} picture(s) outside of the class folders")
    pairs = {part: [(f, label) for label, (files, _) in enumerate(each) for f in files] for part, each in found.items()}
    return _pictures(pairs, size, patch_size), classes


def _table(path, size, patch_size):
    """Pictures named by a CSV file, relative to its folder."""
    rows: dict[str, list] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            columns = table.fieldnames or []
            if {*columns} - {"split"} != {"path", "label"}:
                raise DataError(f"{path} has the columns {shown(columns)}, accepted: path, label and maybe split.")
            for row in table:
                part, known = row.get("split", "train"), ", ".join(PARTS)
                if None in row or not all(row.values()) or part not in PARTS:
                    received = f"line {table.line_num}: received {shown([*row.values()])}"
                    raise DataError(f"{path}, {received}, accepted: a path, a label, and for split {known}.")
                rows.setdefault(part, []).append((path.parent / row["path"], row["label"]))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is broken or isn't a .csv file ({brief(error)}).") from error
    _refuse_classes(path, {"train": []} | {part: {name for _, name in pairs} for part, pairs in rows.items()})
    classes = sorted({name for _, name in rows["train"]})
    pairs = {part: [(f, classes.index(name)) for f, name in found] for part, found in rows.items()}
    return _pictures(pairs, size, patch_size), classes


def _refuse_classes(path, names):
    """Refuse the classes' names in each part if there's but one in train, or another elsewhere."""
    train = set(names["train"])
    if len(train) < 2:
        raise DataError(
            f"{path}: train has {len(train)} class(es) ({brief(', '.join(train) or 'none')}): at least 2 are needed."
        )
    for part, found in names.items():
        if others := set(found) - train:
            raise DataError(f"{path}: {part} has {brief(', '.join(sorted(others)))}, which train has not.")


def _subfolders(path):
    return sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _pictures(pairs, size, patch_size):
    """A split for each of ``PARTS`` that has pairs of a picture and its label, else None.

    The pictures must be of the first one's size, or are brought to (size, size).
    """
    files, labels = zip(*(pair for part in pairs.values() for pair in part), strict=True)
    for i, file in enumerate(files):
        picture = load_picture(file, size or None)
        if i == 0:
            height, width, _ = picture.shape
            refuse_untiled((height, width), patch_size)
            what = f"{len(files):,} images of {height} x {width} pixels take"
            refuse_more_than_memory(what, picture.nbytes * len(files))
            images = np.empty((len(files), *picture.shape), "uint8")
        if picture.shape != images.shape[1:]:
            other, first = (" x ".join(map(str, shape[:2])) for shape in (picture.shape, images.shape[1:]))
            raise DataError(f"{file} is of {other} pixels, {files[0]} of {first}: give an image_size to fit both.")
        images[i] = picture
    whole = Split(images, np.array(labels), np.array([str(file) for file in files]))
    ends = np.cumsum([0, *map(len, pairs.values())])
    splits = {part: whole.take(slice(*ends[i : i + 2])) for i, part in enumerate(pairs)}
    return splits["train"], splits.get("val"), splits.get("test")
