import numpy as np

from patchlib.augment import Augmentation, random_flip, random_pad_crop, random_zoom

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


def test_zoom_is_bilinear_about_the_middle_with_reflected_borders():
    zoomed = random_zoom(IMAGES[:4], np.random.default_rng(3), 0.3)
    factors = np.random.default_rng(3).uniform(0.7, 1.3, (2, 4))
    (_, height, width, _), expected = IMAGES.shape, np.zeros(IMAGES[:4].shape)
    for n, row, column in np.ndindex(4, height, width):
        y = (row - (height - 1) / 2) * factors[0, n] + (height - 1) / 2
        x = (column - (width - 1) / 2) * factors[1, n] + (width - 1) / 2
        for i in (int(np.floor(y)), int(np.floor(y)) + 1):
            for j in (int(np.floor(x)), int(np.floor(x)) + 1):
                share = (1 - abs(y - i)) * (1 - abs(x - j))
                inside = IMAGES[n, min(max(i, -1 - i), 2 * height - 1 - i), min(max(j, -1 - j), 2 * width - 1 - j)]
                expected[n, row, column] += share * inside
    np.testing.assert_allclose(zoomed, expected, atol=0.51)
    assert (zoomed != IMAGES[:4]).any((1, 2, 3)).all() and zoomed.dtype == np.uint8


def test_zoom_of_nothing_is_nothing():
    np.testing.assert_array_equal(random_zoom(IMAGES, np.random.default_rng(0), 0.0), IMAGES)
