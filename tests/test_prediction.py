"""Pictures to answers: the pixels, the probabilities, the order, and how much is decoded ahead."""

import threading

import numpy as np
import pytest
from PIL import Image
from scipy import special

import patchlib
from patchlib import prediction
from patchlib.data import load_data
from patchlib.pictures import DataError, load_picture


class Means:
    """Logits are the mean red, green and blue of each picture over 32, which says what it was shown."""

    def __init__(self, card=None, size=(8, 12)):
        self.card, self.input_shape, self.output_shape, self.batches = card, (None, *size, 3), (None, 3), []

    def predict_on_batch(self, images):
        self.batches.append(images)
        return images.mean(axis=(1, 2)).astype("float32") / 32


NAMED = {"dataset": {"classes": ["red", "green", "blue"]}, "calibration": {"temperature": 2.5}}


def some(count, shape=(16, 24, 3)):
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype="uint8")


def pictures_of_every_kind(folder):
    """A turned JPEG, a 16-bit PNG and a transparent one, of different sizes."""
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(some(1)[0]).save(folder / "turned.jpg", exif=turned)
    Image.fromarray(np.linspace(0, 65535, 20 * 30).astype("uint16").reshape(20, 30)).save(folder / "deep.png")
    Image.fromarray(some(1, (9, 31, 4))[0]).save(folder / "clear.png")
    return sorted(folder.iterdir())


def test_names_come_with_the_softmax_at_the_cards_temperature_the_most_probable_first(tmp_path):
    paths, model = pictures_of_every_kind(tmp_path), Means(NAMED)
    for path, answer in zip(paths, patchlib.classify(model, paths), strict=True):
        logits = load_picture(path, (8, 12)).mean(axis=(0, 1)) / 32
        expected = dict(zip(NAMED["dataset"]["classes"], special.softmax(logits / 2.5), strict=True))
        assert answer == pytest.approx(expected, rel=1e-5)
        assert list(answer) == sorted(expected, key=expected.get, reverse=True)
        assert all(type(share) is float for share in answer.values())


@pytest.mark.parametrize("card", [None, {}, {"dataset": {"name": "digits"}}])
def test_without_names_there_are_numbers_and_without_a_temperature_it_is_1(card):
    (answer,) = patchlib.classify(Means(card), some(1), top=2)
    shares = special.softmax(load_picture(some(1)[0], (8, 12)).mean(axis=(0, 1)) / 32)
    order = np.argsort(-shares)[:2]
    assert answer == pytest.approx({str(i): shares[i] for i in order}, rel=1e-5)


def test_one_picture_of_any_kind_is_several(tmp_path):
    pixels = some(1)[0]
    Image.fromarray(pixels).save(path := tmp_path / "a.png")
    expected = patchlib.classify(Means(NAMED), [pixels])
    with path.open("rb") as file:
        for one in (path, str(path), file, Image.open(path), pixels, pixels[None], iter([path])):
            assert patchlib.classify(Means(NAMED), one) == expected
    grey = pixels[..., 0]
    assert patchlib.classify(Means(), grey) == patchlib.classify(Means(), [grey[..., None]])
    assert patchlib.classify(Means(), []) == []


@pytest.mark.parametrize("thing", [5, None, object()])
def test_what_is_no_picture_is_refused(thing):
    with pytest.raises(DataError, match=f"this {type(thing).__name__} can't be read as a picture"):
        patchlib.classify(Means(), thing)


@pytest.mark.parametrize("top", [0, -1, 2.5, "3", None, True, pytest.param(-(10**9999), id="long")])
def test_a_top_that_makes_no_sense_is_refused(top):
    with pytest.raises(DataError, match="top: received .*accepted: a whole number from 1 on"):
        patchlib.classify(Means(), some(1), top=top)


def test_a_broken_picture_stops_classify_and_not_the_stream(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    given = [*some(2), tmp_path / "broken.png", *some(1)]
    with pytest.raises(DataError, match=r"broken\.png' can't be read"):
        patchlib.classify(Means(), given)
    kinds = [type(answer) for answer in prediction.answers(Means(), given)]
    assert kinds == [dict, dict, DataError, dict]
    assert [type(a) for a in prediction.answers(Means(), [tmp_path / "broken.png"])] == [DataError]


def test_answers_stand_in_the_pictures_order_and_batches_have_one_size():
    model, images = Means(size=(4, 4)), some(300, (4, 4, 3))
    answers = list(prediction.answers(model, images, top=3))
    assert [len(batch) for batch in model.batches] == [128, 128, 128]
    shares = special.softmax(images.mean(axis=(1, 2)) / 32, axis=1)
    np.testing.assert_allclose([[answer[str(i)] for i in range(3)] for answer in answers], shares, rtol=1e-5)
    few = Means(size=(4, 4))
    assert len(list(prediction.answers(few, images[:3]))) == len(few.batches[0]) == 3


def test_only_so_many_pictures_are_decoded_ahead_of_the_model():
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield np.zeros((4, 4), "uint8")

    stream = prediction.answers(Means(size=(4, 4)), endless())
    for asked in range(1000):
        next(stream)
        assert taken <= asked + prediction.BATCH + prediction.AHEAD
    threads = threading.active_count()
    stream.close()
    assert threading.active_count() < threads


def test_training_sees_the_pixels_that_classify_sees(tmp_path):
    for name in ("a", "b"):
        for part in ("train", "test"):
            (tmp_path / part / name).mkdir(parents=True)
            paths = pictures_of_every_kind(tmp_path / part / name)
    data, model = load_data(tmp_path, image_size=8), Means(size=(8, 8))
    patchlib.classify(model, paths)
    np.testing.assert_array_equal(model.batches[0], data.test.images[data.test.labels == 1])


def test_it_is_public():
    assert patchlib.classify is prediction.classify and "classify" in patchlib.__all__
