"""Data sets as arrays: train, validation and test images, whole in memory, with a fingerprint.

Nothing falls back from one data set to another: what can't be had is an error that says what to put where.
"""

import functools
import hashlib
import json
import math
import numbers
import os
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
from PIL import Image

from patchlib.files import PathError, user_path
from patchlib.parameters import SIZES, brief, nearest, shown
from patchlib.pictures import DataError, find_pictures, is_picture, load_picture

NAMES = tuple(SIZES)
RULES = ("stratified", "first", "last")

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
    """images: uint8 (N, H, W, 3), 0 to 255. labels: int64 (N,), 0 to classes - 1."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.labels)


@dataclass(frozen=True)
class Data:
    """Three splits of one data set, and its class names in the order of the labels.

    ``fingerprint`` is the sha256 of all shapes, pixels, labels and class names. ``split`` is the rule by which the
    validation images were chosen, "stratified", "first" or "last"; "own" where ``load_data`` didn't choose them.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    fingerprint: str
    split: str = "own"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return self.train.images.shape[1:]

    @property
    def mean(self) -> list[float]:
        """Mean of each channel over the training images, in units of 0 to 255."""
        return self.train.images.mean(axis=(0, 1, 2)).tolist()

    @property
    def std(self) -> list[float]:
        """Standard deviation of each channel over the training images, in units of 0 to 255."""
        return self.train.images.std(axis=(0, 1, 2)).tolist()

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @functools.cached_property
    def duplicates(self) -> dict[str, int]:
        """How many validation images stand in train too, and how many test images in train or validation."""
        train, validation, test = (
            [hashlib.sha256(image).digest() for image in np.ascontiguousarray(split.images)]
            for split in (self.train, self.validation, self.test)
        )
        seen, known = set(train), {*train, *validation}
        return {"validation": sum(i in seen for i in validation), "test": sum(i in known for i in test)}

    def describe(self) -> dict:
        """What a run card says of its data."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
            "split": self.split,
            "duplicates": self.duplicates,
        }


def load_data(
    name: str | os.PathLike, *, image_size: int = 0, limit: int = 0, validation: str = "stratified", patch_size: int = 0
) -> Data:
    """Load a data set into memory.

    Prints a line where something isn't as one might expect: files skipped, another rule for the validation images,
    images that stand in two splits.

    Args:
        name: "digits" (bundled with scikit-learn, brought to 32 x 32 x 3), "cifar10" or "cifar100"
            (``$PATCHLIB_DATA/<name>.npz`` if it's there, else Keras' download), the path of an ``.npz`` file in Keras'
            layout (x_train, y_train, x_test, y_test, and class names in ``classes`` if wanted), or the path of a folder
            ``train/<class>/`` of pictures, nested as they may be, with an optional ``test/<class>/``. Without it a
            fifth of each class tests. A ``Path`` is never a built-in name.
        image_size: bring every image to this many pixels a side (see ``load_picture``). 0 keeps the size, and a
            folder's images must then be of one size.
        limit: keep at most this many training images, the same ones each time; 0 keeps all. The others stay whole.
        validation: which tenth of the training images validates: "stratified" (of each class, the same ones each
            time), or the "first" or the "last" of them, as Keras' examples do with CIFAR. Where that leaves a class
            out, and for all other data, which may come in the order of classes, it's "stratified" nonetheless.
        patch_size: refuse images that squares of this many pixels a side don't tile; 0 takes all.

    Returns:
        A ``Data`` of uint8 images (N, H, W, 3) and int64 labels (N,).

    Raises:
        DataError: an argument isn't accepted, the name is unknown, or the data is missing or broken.
    """
    for key, value in {"image_size": image_size, "limit": limit, "patch_size": patch_size}.items():
        if not isinstance(value, numbers.Integral) or value < 0:
            raise DataError(f"{key}: received {shown(value)}, accepted: 0 or a positive whole number.")
    if validation not in RULES:
        raise DataError(f"validation: received {shown(validation)}, accepted: 'stratified', 'first' or 'last'.")
    if image_size:
        _refuse_untiled((image_size, image_size), patch_size)
    name = f"./{name}" if isinstance(name, os.PathLike) and str(name) in NAMES else str(name)
    data = _load(name, image_size, limit, validation, patch_size)
    if any(data.duplicates.values()):
        counts = "{validation} of validation are in train too, {test} of test in train or validation"
        print("duplicate images:", counts.format(**data.duplicates))
    return data


def _load(name, image_size, limit, validation, patch_size):
    train, test, classes = _source(name, image_size, patch_size)
    train, test = _resized(train, image_size), _resized(test, image_size)
    train, held_out, rule = _validation_apart(train, validation, name, classes)
    if limit:
        train = _take(train, np.sort(np.random.default_rng(0).permutation(len(train))[:limit]))
    splits = train, held_out, test
    return Data(str(name), *splits, tuple(classes), _fingerprint(splits, classes), rule)


def _source(name, image_size, patch_size):
    """The training images, the test images and the class names of a data set, before anything is done to them."""
    try:
        path = user_path(name)
    except PathError as error:
        raise DataError(f"data set {error}") from None
    if name in NAMES:
        if path.is_dir():
            print(f"{name!r} is the built-in data set; the folder of that name is './{name}'")
        train, test, classes = _digits() if name == "digits" else _cifar(name)
    elif path.is_dir():
        return _folder(path, image_size, patch_size)
    elif path.suffix == ".npz" and path.is_file():
        train, test, classes = _npz(path)
    elif path.suffix == ".npz" or "/" in name:
        raise DataError(
            f"data set {shown(name)}: there is no such file or folder (looked for {str(path.absolute())[:200]})."
        )
    else:
        raise DataError(
            f"unknown data set {shown(name)}: did you mean {nearest(name, NAMES)!r}? Accepted: {', '.join(NAMES)}, "
            "or the path of an .npz file or of a folder train/<class>/*.png."
        )
    if not image_size:
        _refuse_untiled(train.images.shape[1:3], patch_size)
    return train, test, classes


def _refuse_untiled(size, patch_size):
    if patch_size and any(side % patch_size for side in size):
        common = math.gcd(*size)
        fitting = ", ".join(str(patch) for patch in range(1, common + 1) if common % patch == 0)
        raise DataError(
            f"patch_size: images of {size[0]} x {size[1]} pixels aren't tiled by patches of {patch_size}, "
            f"accepted: {fitting}; image_size brings images to another size."
        )


def _validation_apart(train, rule, name, classes) -> tuple[Split, Split, str]:
    """The training images, the tenth of them that validates, and the rule by which it was really chosen."""
    if rule != "stratified":
        place, tenth = np.arange(len(train)), len(train) // 10
        chosen = place < tenth if rule == "first" else place >= len(train) - tenth
        parts, cifar = (_take(train, ~chosen), _take(train, chosen)), name in ("cifar10", "cifar100")
        if cifar and all(set(part.labels) == set(train.labels) for part in parts):
            return *parts, rule
        why = "leaves a class out" if cifar else "is CIFAR's published split"
        print(f"validation: {rule!r} {why}; here a tenth of each class validates instead")
    return *_split_off(train.images, train.labels, 0.1, classes), "stratified"


def _take(split: Split, index) -> Split:
    return Split(split.images[index], split.labels[index])


def _split_off(images, labels, fraction, classes) -> tuple[Split, Split]:
    """Split a fraction of every class off, at least one image of each, the same ones each time."""
    rng, chosen = np.random.default_rng(0), np.zeros(len(labels), bool)
    for label, name in enumerate(classes):
        members = np.flatnonzero(labels == label)
        if len(members) == 1:
            raise DataError(f"class {shown(name)} has too few images: at least 2 are needed, 3 without a test folder.")
        count = max(1, round(fraction * len(members))) if len(members) else 0
        chosen[rng.permutation(members)[:count]] = True
    whole = Split(images, labels)
    return _take(whole, ~chosen), _take(whole, chosen)


def _fingerprint(splits, classes) -> str:
    digest = hashlib.sha256(json.dumps([[split.images.shape for split in splits], classes]).encode())
    for split in splits:
        digest.update(np.ascontiguousarray(split.images))
        digest.update(split.labels.astype("<i8"))
    return digest.hexdigest()


def _resized(split: Split, size: int) -> Split:
    if not size or split.images.shape[1:3] == (size, size):
        return split
    _refuse_more_than_memory(f"{len(split):,} images of {size} x {size} pixels take", 3 * size**2 * len(split))
    return Split(np.stack([load_picture(Image.fromarray(image), size) for image in split.images]), split.labels)


def _digits():
    from sklearn.datasets import load_digits  # here, because scikit-learn takes a second to import

    digits = load_digits()
    small = (digits.images * 255 / 16).round().astype("uint8")  # 8 x 8, 0 to 16
    large = [Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC).convert("RGB") for image in small]
    classes = list("0123456789")
    images = np.stack([np.asarray(image) for image in large])
    return *_split_off(images, digits.target.astype("int64"), 0.2, classes), classes


def _cifar(name):
    classes = _CLASSES[name].split()
    folder = os.environ.get("PATCHLIB_DATA")
    if folder and (path := user_path(folder) / f"{name}.npz").is_file():
        train, test, _ = _npz(path, classes)
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
    return train, test, classes


def _npz(path, classes=None):
    arrays = _arrays(path)
    missing = [key for key in ("x_train", "y_train", "x_test", "y_test") if key not in arrays]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}: it holds {brief(', '.join(arrays) or 'nothing')}.")
    train, test = (_checked(path, part, arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test"))
    count, used = int(max(train.labels.max(), test.labels.max())) + 1, len(np.unique(train.labels))
    if used < 2:
        raise DataError(f"{path} has only label {train.labels[0]} in y_train: accepted are at least 2 classes.")
    if not classes and "classes" not in arrays and used < count:
        raise DataError(
            f"{path} has {used} different labels in y_train and labels up to {count - 1}: accepted are those from 0 to "
            f"{used - 1}, or an array `classes` with a name for each label from 0 to {count - 1}."
        )
    classes = classes or np.asarray(arrays.get("classes", range(count))).reshape(-1).astype(str).tolist()
    if len(classes) < count:
        raise DataError(
            f"{path} has labels from 0 to {count - 1} and {len(classes)} class name(s): accepted is a name for each."
        )
    if twice := [name for name, times in Counter(classes).items() if times > 1]:
        raise DataError(f"{path}: {shown(twice[0])} is the name of more than one class.")
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(f"{path}: x_train is of {train.images.shape}, x_test of {test.images.shape}.")
    return train, test, classes


def _arrays(path):
    """All arrays of an .npz file, if they fit into this machine's memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            _refuse_more_than_memory(f"{path} unpacks to", sum(member.file_size for member in archive.infolist()))
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except DataError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        MemoryError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise DataError(f"{path} is broken or isn't an .npz file ({brief(error)}).") from error


def _refuse_more_than_memory(what, size):
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
    if size > memory:
        raise DataError(f"{what} {size / 1e9:,.1f} GB, and this machine has {memory / 1e9:,.1f} GB of memory.")


def _checked(path, part, images, labels) -> Split:
    if images.ndim == 3:  # grey
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
        raise DataError(
            f"{path}: x_{part} is {brief(images.dtype)} of shape {images.shape}, accepted: uint8 of shape (N, H, W, 3)."
        )
    count = len(images)
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape not in ((count,), (count, 1)):
        raise DataError(
            f"{path}: y_{part} is {brief(labels.dtype)} of shape {labels.shape}, accepted: {count} integers from 0 on, "
            f"of shape ({count},) or ({count}, 1), which one-hot labels become by argmax(axis=1)."
        )
    if labels.min() < 0 or labels.max() >= 2**31:
        raise DataError(
            f"{path}: y_{part} goes from {labels.min()} to {labels.max()}, accepted: integers from 0 to {2**31 - 1}."
        )
    return Split(np.broadcast_to(images, (*images.shape[:3], 3)), labels.reshape(-1).astype("int64"))


def _folder(path, size, patch_size):
    if not (path / "train").is_dir():
        raise DataError(f"{path} has no folder 'train': expected {path}/train/<class>/*.png.")
    classes = _subfolders(path / "train")
    if len(classes) < 2:
        raise DataError(
            f"{path}/train has {len(classes)} class(es) ({brief(', '.join(classes))}): at least 2 are needed."
        )
    parts = [path / part for part in ("train", "test") if (path / part).is_dir()]
    if others := set(_subfolders(parts[-1])) - set(classes):
        raise DataError(f"{parts[-1]} has {brief(', '.join(sorted(others)))}, which {path}/train has not.")
    found = [[find_pictures(part / name) for name in classes] for part in parts]
    if skipped := sum((others for part in found for _, others in part), Counter()):
        kinds = ", ".join(f"{suffix} {count}" for suffix, count in sorted(skipped.items(), key=lambda s: (-s[1], s[0])))
        print(f"skipped {skipped.total()} files that aren't pictures: {kinds}")
    if loose := sum(is_picture(file) for part in parts for file in part.iterdir()):
        print(f"skipped {loose} picture(s) outside of the class folders")
    images = _read([file for part in found for files, _ in part for file in files], size, patch_size)
    labels = np.concatenate([np.full(len(files), label) for part in found for label, (files, _) in enumerate(part)])
    if len(parts) == 1:
        return *_split_off(images, labels, 0.2, classes), classes
    whole, count = Split(images, labels), sum(len(files) for files, _ in found[0])
    return _take(whole, slice(count)), _take(whole, slice(count, None)), classes


def _subfolders(path):
    return sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _read(files, size, patch_size):
    """Pictures as one array; they must be of the first one's size, or are brought to (size, size)."""
    for i, file in enumerate(files):
        picture = load_picture(file, size or None)
        if i == 0:
            height, width, _ = picture.shape
            _refuse_untiled((height, width), patch_size)
            _refuse_more_than_memory(
                f"{len(files):,} images of {height} x {width} pixels take", picture.nbytes * len(files)
            )
            images = np.empty((len(files), *picture.shape), "uint8")
        if picture.shape != images.shape[1:]:
            other, first = (" x ".join(map(str, shape[:2])) for shape in (picture.shape, images.shape[1:]))
            raise DataError(f"{file} is of {other} pixels, {files[0]} of {first}: give an image_size to fit both.")
        images[i] = picture
    return images
