"""Pictures to answers: threads decode ahead of the model, which doesn't wait for them, and memory stays flat."""

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from patchlib import evaluation, networks
from patchlib.pictures import DataError, load_picture
from patchlib.schema import shown, whole

if TYPE_CHECKING:
    from patchlib.backend import keras

BATCH = 128
CHUNK = 16  # pictures that a thread decodes in one go
AHEAD = 3 * BATCH  # pictures that may be decoded while the model is at others


def classify(model: "keras.Model", pictures, top: int = 5) -> list[dict[str, float]]:
    """What a model takes pictures for.

    Args:
        model: from images 0 to 255 to logits, as ``load_model`` gives it.
        pictures: one or several of what ``load_picture`` takes, of any size.
        top: how many classes to name, at most.

    Returns:
        For each picture the most probable classes, by name, with their probabilities, the most probable first. That's
        the softmax at the temperature in the model's card. Without a card the temperature is 1 and names are numbers.

    Raises:
        DataError: a picture can't be read, or ``top`` isn't accepted.
        FloatingPointError: the model's answers aren't finite numbers.
    """
    several = isinstance(pictures, Iterable) and not isinstance(pictures, str) and not hasattr(pictures, "read")
    if not several or getattr(pictures, "ndim", 4) < 4:
        pictures = [pictures]
    found = []
    for answer in answers(model, pictures, top):
        if isinstance(answer, DataError):
            raise answer
        found.append(answer)
    return found


def answers(model: "keras.Model", pictures: Iterable, top: int = 5) -> Iterator[dict[str, float] | DataError]:
    """What ``classify`` returns, picture by picture; the error in place of a picture that can't be read."""
    if not whole(top, 1):
        raise DataError(f"top: received {shown(top)}, accepted: a whole number from 1 on.")
    pictures, size = iter(pictures), 0
    ahead: deque = deque()
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        while True:
            while len(ahead) < (BATCH + AHEAD) // CHUNK and (chunk := list(itertools.islice(pictures, CHUNK))):
                ahead.append(pool.submit(_decoded, chunk, model.input_shape[1:3]))
            if not ahead:
                return
            batch = [one for _ in range(min(BATCH // CHUNK, len(ahead))) for one in ahead.popleft().result()]
            images = [one for one in batch if not isinstance(one, DataError)]
            size = max(size, len(images))  # a smaller batch is filled up, so that the backend compiles once
            named = iter(_named(model, np.resize(images, (size, *model.input_shape[1:])), top) if images else ())
            for one in batch:
                yield one if isinstance(one, DataError) else next(named)
    finally:
        pool.shutdown(cancel_futures=True)


def _decoded(pictures, size):
    found: list[np.ndarray | DataError] = []
    for picture in pictures:
        try:
            found.append(load_picture(picture, size))
        except DataError as error:
            found.append(error)
    return found


def _named(model, images, top):
    shares = evaluation.probabilities(model.predict_on_batch(images), networks.temperature(model))
    names, order = networks.classes(model), np.argsort(-shares, axis=1, kind="stable")[:, :top]
    return [{names[i]: float(row[i]) for i in first} for row, first in zip(shares, order, strict=True)]
