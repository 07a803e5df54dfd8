"""Files and folders that appear whole or not at all, and are still there when the power comes back.

A rename alone isn't enough: it may reach the disk before what was written into the file does. So the data is flushed,
then renamed, then the folder's own entries are flushed, and only after that may what it replaces be removed.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

MOST_BYTES = 2**26  # of a file of text; a card has a hundred thousand


class PathError(ValueError):
    """A text that can't be a path on this machine."""


def user_path(text: str | os.PathLike) -> Path:
    """A path that a user wrote, ``~`` for the home directory.

    Raises:
        PathError: there is no such user, a name is too long, or a character can't stand in one.
    """
    try:
        path = Path(text).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            path.stat()
        return path
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PathError(f"{str(text)[:80]!r} isn't a path ({reason}).") from None


def read_text(path: Path) -> str:
    """What stands in a file of text that anybody may have written.

    Raises:
        OSError: there's none, it's a pipe or a device, or has more than ``MOST_BYTES``.
        ValueError: it isn't UTF-8.
    """
    if not path.is_file():
        raise FileNotFoundError("there is no such file")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise OSError(f"{size:,} bytes, accepted: at most {MOST_BYTES:,}")
    return path.read_text(encoding="utf-8")


def partial(path: Path) -> Path:
    """What a file or a folder is called until it's whole, and from when it's being removed."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


def put(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file beside ``path``, or fill the folder there, and put it in its place."""
    try:
        write(partial(path))
        settle(partial(path), path)
    except BaseException:
        if partial(path).is_dir():
            shutil.rmtree(partial(path), ignore_errors=True)
        else:
            partial(path).unlink(missing_ok=True)
        raise


def put_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Let ``fill`` put files into a new folder beside ``path``, and rename it to that."""
    partial(path).mkdir()
    put(path, fill)


def discard_folder(path: Path) -> None:
    """Remove a folder, which is never seen half removed."""
    os.replace(path, partial(path))
    shutil.rmtree(partial(path))


def settle(finished: Path, path: Path) -> None:
    """Give a finished file or folder its name; a file that had it is replaced."""
    for made in (*finished.rglob("*"), finished):
        flush(made)
    os.replace(finished, path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Wait until a file's data, or a folder's entries, are on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows flushes them with the files
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
