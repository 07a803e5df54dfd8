import numpy as np

from patchlib.augment import Augmentation, random_flip, random_pad_crop

IMAGES = np.random.default_rng(0).integers(1, 256, (200, 6, 5, 3), dtype="uint8")


def test_flip_mirrors_about_half_and_nothing_else():
    flipped = random_flip(IMAGES, np.random.default_rng(0))
    same = (flipped == IMAGES).all((1, 2, 3))
    mirrored = (flipped == IMAGES[:, :, ::-1]).all((1, 2, 3))
    assert (same | mirrored).all() and 70 < mirrored.sum() < 130
    assert flipped.dtype == np.uint8


def test_pad_crop_is_a_shift_of_each_image_and_every_shift_occurs():
    pad, (_, height, width, _) = 1, IMAGES.shape
    cropped = random_pad_crop(IMAGES, np.random.default_rng(0), pad)
    shifts = set()
    for before, after in zip(IMAGES, cropped, strict=True):
        padded = np.zeros((height + 2 * pad, width + 2 * pad, 3), "uint8")
        padded[pad:-pad, pad:-pad] = before
        found = [(y, x) for y in range(3) for x in range(3) if (padded[y : y + height, x : x + width] == after).all()]
        assert len(found) == 1
        shifts.add(found[0])
    assert len(shifts) == 9


def test_augmentation_leaves_its_input_alone_and_repeats_itself():
    before = IMAGES.copy()
    once, again = (Augmentation(pad=2)(IMAGES, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    np.testing.assert_array_equal(IMAGES, before)
    assert (once != IMAGES).any((1, 2, 3)).mean() > 0.9
    assert Augmentation(flip=False, pad=0)(IMAGES, np.random.default_rng(0)) is IMAGES
