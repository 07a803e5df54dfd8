"""Augmentation by what it draws: each random quantity has the distribution its docstring says, for each image anew."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from scipy import stats

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
    shrink,
    trivial_augment,
)

IMAGES = np.random.default_rng(0).integers(1, 256, (200, 6, 5, 3), dtype="uint8")
CHANCE = 1e-4  # a p-value below it isn't one


def generator():
    return np.random.default_rng(0)


def assert_equally_likely(values, possible):
    counts = [(values == value).sum() for value in possible]
    assert sum(counts) == len(values)
    assert len(counts) == 1 or stats.chisquare(counts).pvalue > CHANCE, counts


def assert_independent(one, other):
    """Of each other, and each image's of the one before."""
    for a, b in ((one, other), (one[1:], one[:-1])):
        assert stats.spearmanr(a, b).pvalue > CHANCE


def places(count, size=32):
    """Images (count, size, size, 2) whose pixels tell their own row and column, counted from 1."""
    return np.broadcast_to(np.indices((size, size)).transpose(1, 2, 0) + 1, (count, size, size, 2)).astype("uint8")


@pytest.mark.parametrize(
    "change",
    [
        random_flip,
        lambda images, rng: random_pad_crop(images, rng, 2),
        lambda images, rng: random_zoom(images, rng, 0.3),
        trivial_augment,
        lambda images, rng: random_erasing(images, rng, 0.7),
        lambda images, rng: mixup(images, np.eye(len(images), dtype="float32"), rng, 1.0)[0],
        lambda images, rng: cutmix(images, np.eye(len(images), dtype="float32"), rng, 1.0)[0],
        Augmentation(zoom=0.1, pad=2, trivial_augment=True, erasing=0.5),
    ],
)
def test_every_change_repeats_itself_keeps_shape_and_dtype_and_leaves_its_input_alone(change):
    before = IMAGES.copy()
    once, again, otherwise = (change(IMAGES, np.random.default_rng(seed)) for seed in (7, 7, 8))
    np.testing.assert_array_equal(once, again)
    assert (once != otherwise).any()
    np.testing.assert_array_equal(IMAGES, before)
    assert once.shape == IMAGES.shape and once.dtype == IMAGES.dtype and not np.shares_memory(once, IMAGES)


def test_flip_mirrors_each_image_or_not():
    images = np.concatenate([IMAGES] * 10)
    flipped = random_flip(images, generator())
    same, mirrored = ((flipped == wanted).all((1, 2, 3)) for wanted in (images, images[:, :, ::-1]))
    assert (same != mirrored).all()
    assert_equally_likely(mirrored, (False, True))
    assert_independent(mirrored, np.arange(len(images)))


def test_pad_crop_moves_each_image_by_any_shift_and_fills_with_zeros():
    images = places(3000, 8)
    cropped = random_pad_crop(images, generator(), 2).astype(int)
    down, right = (cropped[:, 4, 4, axis] - images[:, 4, 4, axis] for axis in range(2))
    assert_equally_likely(5 * down + right, [5 * y + x for y in range(-2, 3) for x in range(-2, 3)])
    assert_independent(down, right)
    for shifted, y, x in zip(cropped[:100], down, right, strict=False):
        padded = np.pad(places(1, 8)[0], ((2, 2), (2, 2), (0, 0)))
        np.testing.assert_array_equal(shifted, padded[2 + y : 10 + y, 2 + x : 10 + x])


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


def test_zoom_draws_height_and_width_evenly():
    zoomed = random_zoom(4 * (places(400, 60) - 1), generator(), 0.3).astype(float)
    # How far apart two places are afterwards, well inside the image.
    factors = [(zoomed[:, 45, 30, 0] - zoomed[:, 15, 30, 0]) / 120, (zoomed[:, 30, 45, 1] - zoomed[:, 30, 15, 1]) / 120]
    for factor in factors:
        assert stats.kstest(factor, "uniform", (0.7, 0.6)).pvalue > CHANCE
    assert_independent(*factors)


@pytest.mark.parametrize("side", [1, 3, 4, 5, 8])
def test_a_shrunk_pixel_is_the_mean_of_the_area_it_covers(side):
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype="uint8")
    fine = (
        images.repeat(side, axis=1).repeat(side, axis=2).astype(float)
    )  # in which each new pixel has 8 x 8 whole ones
    expected = fine.reshape(2, side, 8, side, 8, 3).mean(axis=(2, 4))
    shrunk = shrink(images, side)
    np.testing.assert_allclose(shrunk, expected, atol=0.501)
    assert shrunk.dtype == np.uint8


def test_images_are_not_enlarged_by_shrinking():
    for images, side in ((IMAGES[:, :4, :4], 8), (IMAGES[:, :4, :6], 2)):
        with pytest.raises(ValueError, match=f"Received: {side} for 4 x"):
            shrink(images, side)


def test_zoom_of_nothing_is_nothing():
    np.testing.assert_array_equal(random_zoom(IMAGES, generator(), 0.0), IMAGES)


def test_trivial_augment_gives_each_image_one_operation_and_strength(monkeypatch):
    drawn = []

    def recorder(i):
        return lambda image, strength: drawn.append((np.asarray(image), i, strength)) or image

    assert len(augment._OPERATIONS) == 14
    monkeypatch.setattr(augment, "_OPERATIONS", tuple(map(recorder, range(14))))
    images = np.concatenate([IMAGES] * 20)
    trivial_augment(images, generator())
    seen, chosen, strengths = (np.array(column) for column in zip(*drawn, strict=True))
    np.testing.assert_array_equal(seen, images)
    assert_equally_likely(chosen, range(14))
    assert_equally_likely(np.rint(30 * np.abs(strengths)), range(31))
    np.testing.assert_allclose(30 * strengths, np.rint(30 * strengths), atol=1e-9)
    assert_equally_likely(strengths[strengths != 0] > 0, (False, True))
    assert_independent(chosen, strengths)


PICTURE = np.random.default_rng(2).integers(20, 230, (40, 48, 3), dtype="uint8")
GREY = PICTURE @ [0.299, 0.587, 0.114]


def blend(base, strength):
    """From the base, at 0, by way of the picture, at 1, and on."""
    return base + (1 + 0.9 * strength) * (PICTURE - base)


def smooth():
    blurred = PICTURE.astype(float)
    around = sum(PICTURE[i : i + 38, j : j + 46].astype(float) for i in range(3) for j in range(3))
    blurred[1:-1, 1:-1] = (around + 4 * blurred[1:-1, 1:-1]) / 13
    return blurred


def warp(source):
    """Each pixel is the one at ``source(x, y)`` of the picture, in pixels from its middle; black where there's none."""
    y, x = np.indices((40, 48)) + 0.5
    x, y = source(x - 24, y - 20)
    x, y = np.floor(x + 24).astype(int), np.floor(y + 20).astype(int)
    inside = (x >= 0) & (x < 48) & (y >= 0) & (y < 40)
    return np.where(inside[..., None], PICTURE[np.clip(y, 0, 39), np.clip(x, 0, 47)], 0)


def rotated(s):
    cos, sin = np.cos(np.pi / 6 * s), np.sin(np.pi / 6 * s)
    return warp(lambda x, y: (cos * x - sin * y, sin * x + cos * y))


def contrasted():
    low, high = (getattr(PICTURE, end)((0, 1)).astype(float) for end in ("min", "max"))
    return (PICTURE - low) * 255 / (high - low)


def equalized():
    """Each value by how many pixels are darker, in steps that leave the brightest out."""
    result = np.zeros(PICTURE.shape)
    for channel, out in zip(PICTURE.transpose(2, 0, 1), result.transpose(2, 0, 1), strict=True):
        step = (channel < channel.max()).sum() // 255
        out[:] = (step // 2 + (channel[..., None] > channel.ravel()).sum(-1)) // step
    return result


# By the paper's names and ranges, in the order of the operations.
DEFINITIONS = {
    "identity": lambda s: PICTURE,
    "auto contrast": lambda s: contrasted(),
    "equalize": lambda s: equalized(),
    "rotate": rotated,
    "solarize": lambda s: np.where(round(256 * (1 - abs(s))) > PICTURE, PICTURE, 255 - PICTURE),
    "posterize": lambda s: PICTURE >> round(4 * abs(s)) << round(4 * abs(s)),
    "color": lambda s: blend(np.rint(GREY)[..., None], s),
    "contrast": lambda s: blend(np.rint(GREY.mean()), s),
    "brightness": lambda s: blend(0, s),
    "sharpness": lambda s: blend(smooth(), s),
    "shear x": lambda s: warp(lambda x, y: (x + 0.3 * s * (y + 20), y)),
    "shear y": lambda s: warp(lambda x, y: (x, y + 0.3 * s * (x + 24))),
    "translate x": lambda s: warp(lambda x, y: (x + 10 / 32 * 48 * s, y)),
    "translate y": lambda s: warp(lambda x, y: (x, y + 10 / 32 * 40 * s)),
}


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize("strength", [0.6, -0.85, 0.83, -1.0, 0.0])
def test_trivial_augments_operations_equal_their_definitions(name, strength):
    operation = augment._OPERATIONS[list(DEFINITIONS).index(name)]
    changed = np.asarray(operation(Image.fromarray(PICTURE), strength)).astype(float)
    expected = np.clip(DEFINITIONS[name](strength), 0, 255)
    near = np.abs(changed - expected) <= 1.5
    assert near.mean() > 0.995  # a pixel on the edge between two may fall to either side
    if strength == 0 and name not in ("auto contrast", "equalize"):
        np.testing.assert_array_equal(changed, PICTURE)


def boxes(masks):
    """Top, left, height and width of the one rectangle in each (H, W) mask."""
    found = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        found.append((rows[0], columns[0], len(rows), len(columns)))
    return np.transpose(found)


def assert_placed_evenly(start, size, side):
    room = side - size
    some = room > 15
    noise = generator().random(some.sum())  # makes whole numbers as fine as real ones
    assert stats.kstest((start[some] + noise) / (room[some] + 1), "uniform").pvalue > CHANCE


def test_erasing_draws_areas_ratios_places_and_noise_as_it_says():
    images = np.full((1500, 60, 40, 3), 7, "uint8")
    erased = random_erasing(images, generator(), 1.0)
    top, left, height, width = boxes((erased != images).any(3))
    rng = np.random.default_rng(1)
    area, ratio = rng.uniform(0.02, 0.4, 20000) * 60 * 40, 10 ** rng.uniform(np.log10(0.3), np.log10(3.3), 20000)
    wanted = np.minimum(np.rint(np.sqrt(area * ratio)), 60), np.minimum(np.rint(np.sqrt(area / ratio)), 40)
    for found, expected in ((height, wanted[0]), (width, wanted[1]), (height * width, wanted[0] * wanted[1])):
        assert stats.ks_2samp(found, expected).pvalue > CHANCE
    assert_placed_evenly(top, height, 60), assert_placed_evenly(left, width, 40)
    assert_independent(height * width, height / width), assert_independent(top / (61 - height), left / (41 - width))
    assert_equally_likely(erased[(erased != 7).all(3)].ravel()[:50000], [v for v in range(256) if v != 7])


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_erasing_takes_the_given_share_of_the_images(probability):
    images = np.full((1000, 8, 8, 3), 7, "uint8")
    taken = (random_erasing(images, generator(), probability) != images).any((1, 2, 3))
    assert taken.mean() == pytest.approx(probability, abs=0.05 * (0 < probability < 1))


def labelled(count=64):
    """Images of one colour, which tells the class."""
    labels = np.arange(count) % 4
    images = np.broadcast_to((60 * labels)[:, None, None, None], (count, 10, 10, 3)).astype("uint8")
    return images, np.eye(4, dtype="float32")[labels], labels


def test_mixup_blends_images_as_it_blends_targets():
    images, targets, _ = labelled()
    mixed, soft = mixup(images, targets, generator(), 1.0)
    np.testing.assert_allclose(mixed[:, 0, 0, 0], soft @ [0, 60, 120, 180], atol=0.51)
    np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-6)
    assert mixed.dtype == np.uint8 and soft.dtype == np.float32
    assert len(np.unique(soft.max(1).round(4))) > 30  # every image has a share of its own


def test_cutmix_pastes_a_rectangle_and_counts_its_pixels():
    images, targets, labels = labelled()
    mixed, soft = cutmix(images, targets, generator(), 1.0)
    for image, target, label in zip(mixed[..., 0], soft, labels, strict=True):
        shares = np.bincount(image.ravel() // 60, minlength=4) / image.size
        np.testing.assert_allclose(target, shares, atol=1e-6)
        pasted = image != 60 * label
        if pasted.any():
            assert pasted[np.ix_(pasted.any(1), pasted.any(0))].all()
    assert 0.3 < soft.max(1).min() < 0.6 and soft.dtype == np.float32


@pytest.mark.parametrize("mix", [mixup, cutmix])
@pytest.mark.parametrize("alpha", [0.4, 2.0])
def test_mixing_gives_each_image_a_partner_and_a_share_from_a_beta_distribution(mix, alpha):
    count = 1000
    images = np.zeros((count, 64, 64, 1), "uint8")
    _, soft = mix(images, np.eye(count, dtype="float32"), generator(), alpha)
    np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-6)
    own = soft.diagonal()
    mixed = (own > 0.01) & (own < 0.99)
    partner = (soft - np.diag(own)).argmax(1)[mixed]
    assert len(np.unique(partner)) == mixed.sum()  # a permutation
    share = np.random.default_rng(1).beta(alpha, alpha, 20000)
    if mix is cutmix:
        share = 1 - (np.rint(64 * np.sqrt(1 - share)) / 64) ** 2  # a rectangle is of whole pixels
    assert stats.ks_2samp(own, share).pvalue > CHANCE
    assert_independent(own[mixed], partner)


def test_cutmix_pastes_anywhere_and_keeps_the_images_shape():
    images = np.repeat(np.arange(2, dtype="uint8"), 600)[:, None, None, None] * np.ones((1, 60, 40, 1), "uint8")
    mixed, _ = cutmix(images, np.eye(1200, dtype="float32"), generator(), 1.0)
    pasted = (mixed != images)[..., 0]
    top, left, height, width = boxes(pasted[pasted.any((1, 2))])
    np.testing.assert_allclose(height / 60, width / 40, atol=0.5 / 60 + 0.5 / 40)
    assert_placed_evenly(top, height, 60), assert_placed_evenly(left, width, 40)


STEPS = {  # by field: the function that it calls, and with what
    "zoom": ("random_zoom", 0.1),
    "pad": ("random_pad_crop", 3),
    "flip": ("random_flip", True),
    "trivial_augment": ("trivial_augment", True),
    "erasing": ("random_erasing", 0.7),
}


def recorded(monkeypatch, names):
    """What the functions of these names are called with from now on."""
    calls = []
    for name in names:
        monkeypatch.setattr(augment, name, lambda *given, name=name: calls.append((name, given)) or given[0] + 1)
    return calls


def test_augmentation_calls_what_its_fields_name_in_order(monkeypatch):
    assert [field.name for field in dataclasses.fields(Augmentation)] == list(STEPS)
    off = dict.fromkeys(STEPS, 0)
    assert Augmentation(**off)(IMAGES, generator()) is IMAGES
    assert Augmentation() == Augmentation(**off | {"flip": True})
    calls, rng = recorded(monkeypatch, [name for name, _ in STEPS.values()]), generator()
    on = {field: value for field, (_, value) in STEPS.items()}
    for fields in [[field] for field in STEPS] + [list(STEPS)]:
        calls.clear()
        images = Augmentation(**off | {field: on[field] for field in fields})(np.zeros(1), rng)
        assert images == len(fields)  # each is given what the one before returned
        for (name, given), field, before in zip(calls, fields, range(len(fields)), strict=True):
            assert name == STEPS[field][0] and given[0] == before and given[1] is rng
            assert given[2:] == (() if on[field] is True else (on[field],))


def test_mixing_takes_what_the_recipe_names_each_for_half_of_the_batches(monkeypatch):
    calls, rng, targets = recorded(monkeypatch, ["mixup", "cutmix"]), generator(), np.eye(4)
    same = Mixing()(IMAGES, targets, rng)
    assert same[0] is IMAGES and same[1] is targets and not calls
    for fields in ({"mixup": 0.3}, {"cutmix": 0.6}, {"mixup": 0.3, "cutmix": 0.6}):
        calls.clear()
        for _ in range(400):
            Mixing(**fields)(np.zeros(1), targets, rng)
        assert all(given[1] is targets and given[2] is rng and given[3] == fields[name] for name, given in calls)
        assert_equally_likely(np.array([name for name, _ in calls]), list(fields))
