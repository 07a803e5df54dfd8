"""Picture files, found and read: one reader for training and prediction, so that both see the same pixels."""

import functools
import glob
import numbers
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from patchlib.files import user_path
from patchlib.schema import brief, shown, whole

# Data, films, and drawings that another program has to paint.
_NOT_PICTURES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_WHITE_IS_ZERO, _SIGNED = 0, (2,)
_PATH = str | os.PathLike
_MOST_PIXELS = 2**27  # of a picture that is asked for; Pillow refuses files of more than a third more


class DataError(ValueError):
    """A data set or a picture is unknown, missing or broken."""


@functools.cache
def _formats() -> tuple[str, ...]:
    """The formats that Pillow reads as pictures, in the order in which it tries them."""
    Image.init()
    return tuple(name for name in Image.ID if name not in _NOT_PICTURES)


@functools.cache
def suffixes() -> frozenset[str]:
    """The file name endings of pictures: ".png", ".jpg", ".webp" and whatever else Pillow reads, in lower case."""
    readable = {*_formats(), "MPO"}  # MPO: two JPEGs in one file, read by JPEG's plugin
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in readable)


def is_picture(file: Path) -> bool:
    """Whether it's a file with a picture's suffix, and not a hidden one."""
    return file.suffix.lower() in suffixes() and file.is_file() and not file.name.startswith(".")


def find_pictures(folder: Path) -> tuple[list[Path], Counter[str]]:
    """All pictures below a folder, sorted by their paths, and how many other files there are of each suffix.

    Hidden files and folders are passed over.

    Raises:
        DataError: there's no picture.
    """
    others: Counter[str] = Counter()
    pictures = []
    for file in sorted(folder.rglob("*"), key=Path.as_posix):
        if any(part.startswith(".") for part in file.relative_to(folder).parts) or not file.is_file():
            continue
        if is_picture(file):
            pictures.append(file)
        else:
            others[file.suffix.lower() or "without suffix"] += 1
    if not pictures:
        raise DataError(f"{folder} has no picture: accepted are .png, .jpg, .webp and whatever else Pillow reads.")
    return pictures, others


def expand(words: Iterable[str | os.PathLike]) -> list[Path]:
    """The files meant by paths, folders and patterns such as ``photos/**/*.jpg``, each once.

    A folder stands for the pictures below it. Whether the other files are pictures isn't looked at.

    Raises:
        DataError: there's nothing at one of them, or no picture in a folder.
        PathError: one can't be a path.
    """
    found: dict[Path, None] = {}
    for word in words:
        path = user_path(word)
        paths = [path] if path.exists() else [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        if not paths:
            raise DataError(f"received {str(word)!r}: there is no such file or folder, and no file of that pattern.")
        for path in paths:
            found |= dict.fromkeys(find_pictures(path)[0] if path.is_dir() else [path])
    return list(found)


def load_picture(picture, size: int | tuple[int, int] | None = None) -> np.ndarray:
    """A picture's pixels, as training and prediction see them.

    The picture stands as the camera was held (EXIF's orientation), transparency lies on white, and grey of 16 bits
    keeps its high byte, as Pillow does with 16-bit colour. Of several frames or pages it's the first.

    Args:
        picture: a path, an open binary file, a PIL image, which is left as it was, or an array (H, W) or (H, W, 1, 3
            or 4): uint8, or uint16 for grey of 16 bits.
        size: pixels a side of a square, or (height, width) such as ``model.input_shape[1:3]``: the largest middle
            part of that shape is cut out and resized (bicubic), never stretched. None keeps the size.

    Returns:
        uint8 of shape (H, W, 3): red, green, blue, 0 to 255.

    Raises:
        DataError: the picture can't be read, its pixels don't say what is white, or ``size`` isn't accepted.
    """
    height_width = None if size is None else _height_width(size)
    try:
        if isinstance(picture, np.ndarray):
            if not picture.size:
                raise ValueError(f"shape {picture.shape}, which has no pixel")
            picture = Image.fromarray(picture[..., 0] if picture.shape[2:] == (1,) else picture)
        image = _rgb(picture) if isinstance(picture, Image.Image) else _opened(picture)
    except Exception as error:  # broken bytes make decoders raise nearly anything
        name = shown(os.fspath(picture)) if isinstance(picture, _PATH) else f"this {type(picture).__name__}"
        raise DataError(f"{name} can't be read as a picture ({brief(error)}).") from error
    if height_width and height_width != image.size[::-1]:
        image = ImageOps.fit(image, height_width[::-1])
    return np.array(image)


def photographs(size: int) -> np.ndarray:
    """Two colour photographs that scikit-learn ships, a temple and a flower: uint8 (2, size, size, 3)."""
    from sklearn.datasets import load_sample_image  # here, because scikit-learn takes a second to import

    return np.stack([load_picture(load_sample_image(name), size) for name in ("china.jpg", "flower.jpg")])


def _height_width(size):
    sides = (size, size) if isinstance(size, numbers.Integral) else size
    try:
        height, width = sides
        if not (whole(height, 1) and whole(width, 1)) or int(height) * int(width) > _MOST_PIXELS:
            raise ValueError
    except (TypeError, ValueError):
        accepted = "None, or whole numbers from 1 on: one for a square, or (height, width)"
        most = f"at most {_MOST_PIXELS:,} pixels in all"
        raise DataError(f"size: received {shown(size)}, accepted: {accepted}; {most}.") from None
    return int(height), int(width)


def _opened(file):
    if isinstance(file, _PATH) and not (file := user_path(file)).is_file():  # of a pipe or a device there's no end
        raise FileNotFoundError("there is no such file")
    with Image.open(file, formats=_formats()) as image:
        return _rgb(image)


def _rgb(image):
    tags, stored = getattr(image, "tag_v2", {}), {str(tile[3]) for tile in getattr(image, "tile", ())}
    if image.mode == "L" and tags.get(_SAMPLE_FORMAT) == _SIGNED:
        raise ValueError("grey of 8 bits with a sign, accepted is grey from 0 to 255")
    if "transparency" in image.info and stored & {"L;2", "L;4", "RGB;16B"}:  # which Pillow takes for one of 8 bits
        raise ValueError("a transparent colour of 2, 4 or 16 bits, accepted is one of 8, or an alpha channel")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return _from_deep_grey(image, tags)
    if image.mode == "F":
        raise ValueError("mode F: floating-point pixels don't say what is white, accepted are whole numbers")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _from_deep_grey(image, tags):
    values, depth = np.asarray(image), 12 if tags.get(_BITS_PER_SAMPLE) == (12,) else 16
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise ValueError(f"mode {image.mode}: grey from {low} to {high}, accepted are 8 bits, or 16: 0 to 65535")
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = 65535 - values
    hidden = values == image.info.get("transparency", -1)
    return Image.fromarray(np.where(hidden, 255, values >> (depth - 8)).astype("uint8")).convert("RGB")
