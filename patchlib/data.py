"""Data sets as arrays: train, validation and test images, whole in memory, with a fingerprint.

Nothing falls back from one data set to another: what can't be had is an error that says what to put where.
"""

import functools
import hashlib
import json
import os
from dataclasses import dataclass

import numpy as np

from patchlib.pictures import DataError, load_picture
from patchlib.schema import printable, shown, whole
from patchlib.sources import NAMES, Split, read, refuse_more_than_memory, refuse_untiled

RULES = ("stratified", "first", "last")


@dataclass(frozen=True)
class Data:
    """Three splits of one data set, and its class names in the order of the labels.

    ``fingerprint`` is the sha256 of all shapes, pixels, labels and class names. ``split`` is the rule by which the
    validation images were chosen, "stratified", "first" or "last"; "own" where they came as such.
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
            (``$PATCHLIB_DATA/<name>.npz`` if it's there, else Keras' download), or a path; a ``Path`` is never a
            built-in name. An ``.npz`` file has Keras' arrays (x_train, y_train, x_test, y_test) or MedMNIST's
            (train_images, train_labels, test_images, test_labels), and class names in ``classes`` if wanted. A folder
            has pictures in ``train/<class>/``, nested as they may be, and ``test/<class>/`` if wanted. A ``.csv`` file
            has columns path (from its folder) and label, and split (train, val or test) if wanted. Each may have
            validation images of its own, in x_val and y_val, val_images and val_labels, or ``val/``. Without test
            images a fifth of each class tests.
        image_size: bring every image to this many pixels a side (see ``load_picture``). 0 keeps the size, and a
            folder's images must then be of one size.
        limit: keep at most this many training images, the same ones each time; 0 keeps all. The others stay whole.
        validation: which tenth of the training images validates: "stratified" (of each class, the same ones each
            time), or the "first" or the "last" of them, as Keras' examples do with CIFAR. Where that leaves a class
            out, and for all other data, which may come in the order of classes, it's "stratified" nonetheless, and
            where there are validation images in the data it's those.
        patch_size: refuse images that squares of this many pixels a side don't tile; 0 takes all.

    Returns:
        A ``Data`` of uint8 images (N, H, W, 3) and int64 labels (N,).

    Raises:
        DataError: an argument isn't accepted, the name is unknown, or the data is missing or broken.
    """
    for key, value in {"image_size": image_size, "limit": limit, "patch_size": patch_size}.items():
        if not whole(value):
            raise DataError(f"{key}: received {shown(value)}, accepted: 0 or a positive whole number.")
    if validation not in RULES:
        raise DataError(f"validation: received {shown(validation)}, accepted: 'stratified', 'first' or 'last'.")
    if image_size:
        refuse_untiled((image_size, image_size), patch_size)
    name = f"./{name}" if isinstance(name, os.PathLike) and str(name) in NAMES else str(name)
    data = _load(name, image_size, limit, validation, patch_size)
    if any(data.duplicates.values()):
        counts = "{validation} of validation are in train too, {test} of test in train or validation"
        print("duplicate images:", counts.format(**data.duplicates))
    return data


def _load(name, image_size, limit, validation, patch_size):
    (train, *others), classes = read(name, image_size, patch_size)
    classes = [printable(name) for name in classes]
    held_out, test = (split and _resized(split, image_size) for split in others)
    train = _resized(train, image_size)
    if test is None:
        train, test = _split_off(train, 0.2, classes)
    if held_out:
        print(f"validation: not {validation!r}, since there are {len(held_out)} images of its own for that")
        rule = "own"
    else:
        train, held_out, rule = _validation_apart(train, validation, name, classes)
    if limit:
        train = train.take(np.sort(np.random.default_rng(0).permutation(len(train))[:limit]))
    fingerprint = _fingerprint((train, held_out, test), classes)
    return Data(str(name), train, held_out, test, tuple(classes), fingerprint, rule)


def _validation_apart(train, rule, name, classes) -> tuple[Split, Split, str]:
    """The training images, the tenth of them that validates, and the rule by which it was really chosen."""
    if rule != "stratified":
        place, tenth = np.arange(len(train)), len(train) // 10
        chosen = place < tenth if rule == "first" else place >= len(train) - tenth
        parts, cifar = (train.take(~chosen), train.take(chosen)), name in ("cifar10", "cifar100")
        if cifar and all(set(part.labels) == set(train.labels) for part in parts):
            return *parts, rule
        why = "leaves a class out" if cifar else "is CIFAR's published split"
        print(f"validation: {rule!r} {why}; here a tenth of each class validates instead")
    return *_split_off(train, 0.1, classes), "stratified"


def _split_off(whole, fraction, classes) -> tuple[Split, Split]:
    """Split a fraction of every class off, at least one image of each, the same ones each time."""
    rng, chosen = np.random.default_rng(0), np.zeros(len(whole), bool)
    for label, name in enumerate(classes):
        members = np.flatnonzero(whole.labels == label)
        if len(members) == 1:
            raise DataError(f"class {shown(name)} has too few images: at least 2 are needed, 3 without test images.")
        count = max(1, round(fraction * len(members))) if len(members) else 0
        chosen[rng.permutation(members)[:count]] = True
    return whole.take(~chosen), whole.take(chosen)


def _fingerprint(splits, classes) -> str:
    digest = hashlib.sha256(json.dumps([[split.images.shape for split in splits], classes]).encode())
    for split in splits:
        digest.update(np.ascontiguousarray(split.images).data)
        digest.update(split.labels.astype("<i8"))
    return digest.hexdigest()


def _resized(split: Split, size: int) -> Split:
    if not size or split.images.shape[1:3] == (size, size):
        return split
    refuse_more_than_memory(f"{len(split):,} images of {size} x {size} pixels take", 3 * size**2 * len(split))
    return Split(np.stack([load_picture(image, size) for image in split.images]), split.labels)
