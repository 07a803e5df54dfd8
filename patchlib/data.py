"""Data sets as arrays: train, validation and test images, whole in memory, with a fingerprint.

Nothing falls back from one data set to another: what can't be had is an error that says what to put where.
"""

import hashlib
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from patchlib.parameters import nearest

NAMES = ("digits", "cifar10", "cifar100")
SUFFIXES = (".png", ".jpg", ".jpeg")

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


class DataError(ValueError):
    """A data set is unknown, missing or broken."""


@dataclass(frozen=True)
class Split:
    """images: uint8 (N, H, W, 3), 0 to 255. labels: int64 (N,), 0 to classes - 1."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.labels)


@dataclass(frozen=True)
class Data:
    """Three splits of one data set, its class names, and the sha256 of all their pixels and labels."""

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    fingerprint: str

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

    def describe(self) -> dict:
        """What a run card says of its data."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
        }


def load_data(name: str, *, image_size: int = 0, limit: int = 0, validation: str = "stratified") -> Data:
    """Load a data set into memory.

    Args:
        name: "digits" (bundled with scikit-learn, brought to 32 x 32 x 3), "cifar10" or "cifar100"
            (``$PATCHLIB_DATA/<name>.npz`` if it's there, else Keras' download), the path of an ``.npz`` file in Keras'
            layout (x_train, y_train, x_test, y_test, and class names in ``classes`` if wanted), or the path of a folder
            ``train/<class>/*.png|jpg`` with an optional ``test/<class>/``. Without it a fifth of each class tests.
        image_size: bring every image to this many pixels a side (the middle square, bicubic). 0 keeps the size, and
            a folder's images must then be of one size.
        limit: keep at most this many training images, the same ones each time; 0 keeps all. The others stay whole.
        validation: which tenth of the training images validates: "stratified" (of each class, the same ones each time),
            or the "first" or the "last" of them, as Keras' examples do.

    Returns:
        A ``Data`` of uint8 images (N, H, W, 3) and int64 labels (N,).

    Raises:
        DataError: the name is unknown, the data isn't to be had, or it's broken; the sentence says which.
    """
    path = Path(name).expanduser()
    if name == "digits":
        train, test, classes = _digits()
    elif name in NAMES:
        train, test, classes = _cifar(name)
    elif path.is_dir():
        train, test, classes = _folder(path, image_size)
    elif path.suffix == ".npz" and path.is_file():
        train, test, classes = _npz(path)
    elif path.suffix == ".npz" or "/" in str(name):
        raise DataError(f"data set {name!r}: there is no such file or folder (looked for {path.absolute()}).")
    else:
        raise DataError(
            f"unknown data set {name!r}: did you mean {nearest(name, NAMES)!r}? Accepted: {', '.join(NAMES)}, "
            "or the path of an .npz file or of a folder train/<class>/*.png."
        )
    train, test = _resized(train, image_size), _resized(test, image_size)
    tenth = len(train) // 10
    if validation == "stratified":
        train, held_out = _split_off(train.images, train.labels, 0.1, classes)
    elif validation == "first" and tenth:
        held_out, train = _take(train, slice(None, tenth)), _take(train, slice(tenth, None))
    elif validation == "last" and tenth:
        held_out, train = _take(train, slice(-tenth, None)), _take(train, slice(None, -tenth))
    else:
        raise DataError(
            f"validation: received {validation!r} for {len(train)} training images, accepted: 'stratified', "
            "or 'first' or 'last' for 10 images and more."
        )
    if limit:
        train = _take(train, np.sort(np.random.default_rng(0).permutation(len(train))[:limit]))
    return Data(str(name), train, held_out, test, tuple(classes), _fingerprint(train, held_out, test))


def _take(split: Split, index) -> Split:
    return Split(split.images[index], split.labels[index])


def _split_off(images, labels, fraction, classes) -> tuple[Split, Split]:
    """Split a fraction of every class off, at least one image of each, the same ones each time."""
    rng, chosen = np.random.default_rng(0), np.zeros(len(labels), bool)
    for label, name in enumerate(classes):
        members = np.flatnonzero(labels == label)
        if len(members) == 1:
            raise DataError(
                f"class {name!r} has too few images: at least 2 are needed, 3 where there's no test folder."
            )
        count = max(1, round(fraction * len(members))) if len(members) else 0
        chosen[rng.permutation(members)[:count]] = True
    whole = Split(images, labels)
    return _take(whole, ~chosen), _take(whole, chosen)


def _fingerprint(*splits: Split) -> str:
    digest = hashlib.sha256()
    for split in splits:
        digest.update(np.ascontiguousarray(split.images))
        digest.update(split.labels.astype("<i8"))
    return digest.hexdigest()


def _resized(split: Split, size: int) -> Split:
    if not size or split.images.shape[1:3] == (size, size):
        return split
    fitted = [ImageOps.fit(Image.fromarray(image), (size, size)) for image in split.images]
    return Split(np.stack([np.asarray(image) for image in fitted]), split.labels)


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
    if folder and (path := Path(folder).expanduser() / f"{name}.npz").is_file():
        train, test, _ = _npz(path, classes)
    else:
        import keras  # here, because it takes seconds to import

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
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, TypeError, ValueError) as error:
        raise DataError(f"{path} is broken or isn't an .npz file ({error}).") from error
    missing = [key for key in ("x_train", "y_train", "x_test", "y_test") if key not in arrays]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}: it holds {', '.join(arrays) or 'nothing'}.")
    train, test = (_checked(path, part, arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test"))
    count = int(max(train.labels.max(), test.labels.max())) + 1
    classes = classes or [str(c) for c in arrays.get("classes", range(count))]
    if count < 2 or len(classes) < count:
        raise DataError(
            f"{path} has labels from 0 to {count - 1} and {len(classes)} class name(s): "
            "accepted are at least 2 classes, with a name for each label."
        )
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(f"{path}: x_train is of {train.images.shape}, x_test of {test.images.shape}.")
    return train, test, classes


def _checked(path, part, images, labels) -> Split:
    if images.ndim == 3:  # grey
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
        raise DataError(
            f"{path}: x_{part} is {images.dtype} of shape {images.shape}, accepted: uint8 of shape (N, H, W, 3)."
        )
    labels = labels.reshape(-1)
    if not np.issubdtype(labels.dtype, np.integer) or len(labels) != len(images) or labels.min() < 0:
        raise DataError(
            f"{path}: y_{part} is {labels.dtype} of shape {labels.shape}, accepted: {len(images)} integers from 0 on."
        )
    return Split(np.broadcast_to(images, (*images.shape[:3], 3)), labels.astype("int64"))


def _folder(path, size):
    if not (path / "train").is_dir():
        raise DataError(f"{path} has no folder 'train': expected {path}/train/<class>/*.png or .jpg.")
    classes = sorted(p.name for p in (path / "train").iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(classes) < 2:
        raise DataError(f"{path}/train has {len(classes)} class(es) ({', '.join(classes)}): at least 2 are needed.")
    images, labels = _pictures(path / "train", classes, size)
    if not (path / "test").is_dir():
        return *_split_off(images, labels, 0.2, classes), classes
    others = {p.name for p in (path / "test").iterdir() if p.is_dir() and not p.name.startswith(".")} - set(classes)
    if others:
        raise DataError(f"{path}/test has {', '.join(sorted(others))}, which {path}/train has not.")
    test = Split(*_pictures(path / "test", classes, size))
    if test.images.shape[1:] != images.shape[1:]:
        raise DataError(f"{path}: train is of {images.shape[1:]}, test of {test.images.shape[1:]}; give an image_size.")
    return Split(images, labels), test, classes


def _pictures(folder, classes, size):
    """Every picture of a folder <class>/*, brought to (size, size) where a size is given."""
    images, labels, first = [], [], None
    for label, name in enumerate(classes):
        files = sorted(p for p in (folder / name).glob("*") if p.suffix.lower() in SUFFIXES)
        if not files:
            raise DataError(f"{folder / name} has no picture: accepted are files ending in {', '.join(SUFFIXES)}.")
        for file in files:
            try:
                with Image.open(file) as picture:
                    picture = ImageOps.exif_transpose(picture).convert("RGB")
            except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
                raise DataError(f"{file} can't be read as a picture ({error}).") from error
            if size:
                picture = ImageOps.fit(picture, (size, size))
            first = first or (file, picture.size)
            if picture.size != first[1]:
                raise DataError(
                    f"{file} has {picture.size} pixels, {first[0]} has {first[1]}: give an image_size to fit both."
                )
            images.append(np.asarray(picture))
            labels.append(label)
    return np.stack(images), np.array(labels, "int64")
