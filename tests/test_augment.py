import numpy as np
from PIL import Image

from patchlib import augment
from patchlib.augment import (
    Augmentation,
    Mixing,
    cutmix,
    mixup,
    random_erasing,
    random_flip,
    random_pad_crop,
    random_zoom,
    trivial_augment,
)

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


def picture(size=16):
    return np.random.default_rng(2).integers(0, 256, (size, size, 3), dtype="uint8")


def apply(index, strength, image):
    return np.asarray(augment._OPERATIONS[index](Image.fromarray(image), strength)).astype(int)


def test_trivial_augment_changes_each_image_by_one_operation_of_its_own():
    images = np.stack([picture()] * 300)
    changed = trivial_augment(images, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, 14, 300)
    strengths = rng.integers(0, 31, 300) / 30 * rng.choice((-1, 1), 300)
    assert set(chosen) == set(range(14)) and np.abs(strengths).max() == 1
    for image, index, strength in zip(changed, chosen, strengths, strict=True):
        np.testing.assert_array_equal(image, apply(index, strength, picture()))
    assert len(np.unique(changed, axis=0)) > 100 and changed.dtype == np.uint8


def test_trivial_augments_operations_do_what_they_are_called():
    image = picture().astype(int)
    grey = np.rint(image @ [0.299, 0.587, 0.114])[..., None]
    np.testing.assert_allclose(apply(8, 0.5, picture()), np.clip(image * 1.45, 0, 255), atol=1)  # brightness
    np.testing.assert_allclose(apply(6, -1.0, picture()), np.clip(grey + 0.1 * (image - grey), 0, 255), atol=1.5)
    np.testing.assert_array_equal(apply(4, 0.5, picture()), np.where(image < 128, image, 255 - image))  # solarize
    np.testing.assert_array_equal(apply(5, -1.0, picture()), image // 16 * 16)  # posterize to 4 bits
    np.testing.assert_array_equal(apply(12, 0.2, picture())[:, :-1], image[:, 1:])  # a pixel of the 16 to the left
    np.testing.assert_array_equal(apply(13, -0.2, picture())[1:], image[:-1])
    for index in (0, 3, 4, 5, *range(6, 14)):  # what has a strength does nothing at strength 0
        np.testing.assert_array_equal(apply(index, 0.0, picture()), image)


def test_erasing_fills_one_rectangle_of_some_images_with_noise():
    images = np.full((400, 32, 32, 3), 7, "uint8")
    erased = random_erasing(images, np.random.default_rng(0), 0.5)
    changed = (erased != images).any(axis=3)
    assert 160 < changed.any((1, 2)).sum() < 240
    for mask in changed[changed.any((1, 2))]:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.mean() > 0.9 and 0.01 < box.size / mask.size < 0.42
    assert len(np.unique(erased)) == 256
    np.testing.assert_array_equal(random_erasing(images, np.random.default_rng(0), 0.0), images)


def labelled(count=64):
    """Images of one colour, which tells the class."""
    labels = np.arange(count) % 4
    images = np.broadcast_to((60 * labels)[:, None, None, None], (count, 10, 10, 3)).astype("uint8")
    return images, np.eye(4, dtype="float32")[labels], labels


def test_mixup_blends_images_as_it_blends_targets():
    images, targets, _ = labelled()
    mixed, soft = mixup(images, targets, np.random.default_rng(0), 1.0)
    np.testing.assert_allclose(mixed[:, 0, 0, 0], soft @ [0, 60, 120, 180], atol=0.51)
    np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-6)
    assert mixed.dtype == np.uint8 and soft.dtype == np.float32
    assert len(np.unique(soft.max(1).round(4))) > 30  # every image has a share of its own


def test_cutmix_pastes_a_rectangle_and_counts_its_pixels():
    images, targets, labels = labelled()
    mixed, soft = cutmix(images, targets, np.random.default_rng(0), 1.0)
    for image, target, label in zip(mixed[..., 0], soft, labels, strict=True):
        shares = np.bincount(image.ravel() // 60, minlength=4) / image.size
        np.testing.assert_allclose(target, shares, atol=1e-6)
        pasted = image != 60 * label
        if pasted.any():
            assert pasted[np.ix_(pasted.any(1), pasted.any(0))].all()
    assert 0.3 < soft.max(1).min() < 0.6 and soft.dtype == np.float32


def test_mixing_takes_what_the_recipe_names():
    images, targets, _ = labelled()
    same = Mixing()(images, targets, np.random.default_rng(0))
    assert same[0] is images and same[1] is targets
    kinds = {len(np.unique(Mixing(1.0, 1.0)(images, targets, np.random.default_rng(s))[0])) > 4 for s in range(8)}
    assert kinds == {True, False}  # blended colours, and pasted ones
