"""Files and folders that appear whole or not at all, and are still there when the power comes back.

A rename alone isn't enough: it may reach the disk before what was written into the file does. So the data is flushed,
then renamed, then the folder's own entries are flushed, and only after that may what it replaces be removed.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


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
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PathError(f"{os.fspath(text)[:80]!r} isn't a path ({reason}).") from None


def partial(path: Path) -> Path:
    """What a file or a folder is called until it's whole, and from when it's being removed."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


def put(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file beside ``path``, and put it in its place."""
    write(partial(path))
    settle(partial(path), path)


def put_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Let ``fill`` put files into a new folder beside ``path``, and rename it to that."""
    partial(path).mkdir()
    fill(partial(path))
    for file in partial(path).iterdir():
        flush(file)
    settle(partial(path), path)


def discard_folder(path: Path) -> None:
    """Remove a folder, which is never seen half removed."""
    os.replace(path, partial(path))
    shutil.rmtree(partial(path))


def settle(finished: Path, path: Path) -> None:
    """Give a finished file or folder its name; a file that had it is replaced."""
    flush(finished)
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
