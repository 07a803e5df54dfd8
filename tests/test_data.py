import itertools
import json
import os
import re
import time
import zipfile
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from patchlib import load_picture
from patchlib.data import Data, DataError, Split, load_data
from patchlib.schema import shown

RULES = ["stratified", "first", "last"]


def images(count, shape=(8, 8, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype="uint8")


def npz(path, **changes):
    arrays = {
        "x_train": images(40),
        "y_train": np.arange(40)[:, None] % 4,
        "x_test": images(8, seed=1),
        "y_test": np.arange(8)[:, None] % 4,
    }
    np.savez(path, **{key: value for key, value in (arrays | changes).items() if value is not None})
    return arrays | changes


def folder(path, per_class=5, size=(8, 8), classes=("cat", "dog"), splits=("train", "test")):
    pixels = iter(images(per_class * len(classes) * len(splits), (*size, 3)))
    for split in splits:
        for name in classes:
            (path / split / name).mkdir(parents=True)
            for i in range(per_class):
                Image.fromarray(next(pixels)).save(path / split / name / f"{i}.png")
    return path


def pairs(*splits):
    """How often each image stands in the splits under each label."""
    return Counter(
        (i.tobytes(), int(label)) for split in splits for i, label in zip(split.images, split.labels, strict=True)
    )


# Every way in which data can come: a function that makes it, and gives the name to load, the training images and the
# test images. In a folder without test/ all are training images. Class sizes differ, so that shares can be told apart.

SIZES = [10, 20, 30, 40]


def some_npz(path, order):
    labels = np.repeat(np.arange(4), SIZES)[order]
    arrays = npz(path, x_train=images(100), y_train=labels)
    return Split(arrays["x_train"], labels), Split(arrays["x_test"], arrays["y_test"][:, 0])


def shuffled_npz(path, monkeypatch):
    return path / "own.npz", *some_npz(path / "own.npz", np.random.default_rng(0).permutation(100))


def npz_in_class_order(path, monkeypatch):
    return path / "own.npz", *some_npz(path / "own.npz", np.arange(100))


def cifar(path, monkeypatch):
    monkeypatch.setenv("PATCHLIB_DATA", str(path))
    evenly = np.argsort(np.concatenate([np.linspace(0, 1, size) for size in SIZES]))  # each tenth has every class
    return "cifar10", *some_npz(path / "cifar10.npz", evenly)


def cifar_in_class_order(path, monkeypatch):
    monkeypatch.setenv("PATCHLIB_DATA", str(path))
    return "cifar100", *some_npz(path / "cifar100.npz", np.arange(100))


def pictures(path):
    files = sorted(path.glob("*/*.png"))
    names = sorted({file.parent.name for file in files})
    labels = np.array([names.index(file.parent.name) for file in files])
    return Split(np.stack([np.asarray(Image.open(file)) for file in files]), labels)


def folder_with_test(path, monkeypatch):
    folder(path, per_class=20, classes="abc")
    return path, pictures(path / "train"), pictures(path / "test")


def folder_without_test(path, monkeypatch):
    folder(path, per_class=20, classes="abc", splits=("train",))
    return path, pictures(path / "train"), None


def digits(path, monkeypatch):
    bunch = load_digits()
    small = [Image.fromarray((row * 255 / 16).round().astype("uint8")) for row in bunch.images]
    large = [np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)) for image in small]
    return "digits", Split(np.repeat(np.stack(large)[..., None], 3, axis=-1), bunch.target), None


SOURCES = [shuffled_npz, npz_in_class_order, cifar, cifar_in_class_order, folder_with_test, folder_without_test, digits]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("source", SOURCES)
def test_splits_are_a_partition_and_labels_stay_with_their_images(source, rule, tmp_path, monkeypatch):
    name, train, test = source(tmp_path, monkeypatch)
    data = load_data(name, validation=rule)
    if test:
        assert pairs(data.train, data.validation) == pairs(train)
        np.testing.assert_array_equal(data.test.images, test.images)
        np.testing.assert_array_equal(data.test.labels, test.labels)
    else:
        assert pairs(data.train, data.validation, data.test) == pairs(train)
    for split in (data.train, data.validation, data.test):
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int64 and len(split) > 0
        assert set(split.labels) == set(train.labels)  # no class is missing anywhere


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("source", [source for source in SOURCES if source is not digits])  # which would take seconds
def test_limit_draws_whatever_the_class_and_leaves_validation_and_test_alone(source, rule, tmp_path, monkeypatch):
    name, _, _ = source(tmp_path, monkeypatch)
    whole = load_data(name, validation=rule)
    for limit in (1, len(whole.train) // 2, 10**6):
        data = load_data(name, validation=rule, limit=limit)
        assert len(data.train) == min(limit, len(whole.train))
        assert pairs(data.train) <= pairs(whole.train)
        assert pairs(data.validation) == pairs(whole.validation) and pairs(data.test) == pairs(whole.test)
        assert limit == 1 or set(data.train.labels) == set(whole.train.labels)
    assert data.fingerprint == load_data(name, validation=rule).fingerprint  # the limit was no limit


def test_limit_draws_the_same_images_each_time(tmp_path):
    npz(tmp_path / "own.npz")
    assert len({load_data(tmp_path / "own.npz", limit=10).fingerprint for _ in range(3)}) == 1
    assert load_data("digits", limit=100).fingerprint.startswith("8cc7c69f")  # in every version


@pytest.mark.parametrize(
    "source", [shuffled_npz, npz_in_class_order, cifar, folder_with_test, folder_without_test, digits]
)
def test_a_tenth_of_each_class_validates(source, tmp_path, monkeypatch):
    name, _, test = source(tmp_path, monkeypatch)
    data = load_data(name)
    kept, held_out, tested = (np.bincount(s.labels, minlength=3) for s in (data.train, data.validation, data.test))
    np.testing.assert_allclose(held_out / (kept + held_out), 0.1, atol=0.5 / (kept + held_out).min())
    if test is None:  # a fifth of each class tests
        everything = kept + held_out + tested
        np.testing.assert_allclose(tested / everything, 0.2, atol=0.5 / everything.min())


def test_the_first_or_last_tenth_of_cifar_validates(tmp_path, monkeypatch, capsys):
    name, train, _ = cifar(tmp_path, monkeypatch)
    for rule, chosen in (("first", slice(None, 10)), ("last", slice(-10, None))):
        data = load_data(name, validation=rule)
        np.testing.assert_array_equal(data.validation.images, train.images[chosen])
        assert data.split == data.describe()["split"] == rule
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("rule", ["first", "last"])
@pytest.mark.parametrize("source", [s for s in SOURCES if s is not cifar])
def test_elsewhere_a_tenth_of_each_class_validates_and_a_line_says_so(source, rule, tmp_path, monkeypatch, capsys):
    name, _, _ = source(tmp_path, monkeypatch)
    data, (line,) = load_data(name, validation=rule), capsys.readouterr().out.splitlines()
    assert rule in line and "a tenth of each class validates" in line
    assert data.split == data.describe()["split"] == "stratified"
    assert data.fingerprint == load_data(name).fingerprint
    assert capsys.readouterr().out == ""


def test_mean_and_deviation_are_those_of_the_training_images_alone(tmp_path):
    dark, bright = images(50) // 4, 255 - images(50) // 4
    npz(tmp_path / "own.npz", x_train=dark, y_train=np.arange(50) % 2, x_test=bright, y_test=np.arange(50) % 2)
    data = load_data(tmp_path / "own.npz")
    pixels = data.train.images.reshape(-1, 3).astype("float64")
    np.testing.assert_allclose(data.mean, pixels.sum(axis=0) / len(pixels))
    np.testing.assert_allclose(data.std, ((pixels - pixels.mean(axis=0)) ** 2).mean(axis=0) ** 0.5)
    assert max(data.mean) < 64 and len(pixels) == 46 * 64


FINGERPRINT = "28ecc3e694a3da3a"


def test_digits_are_what_they_were(capsys):
    data = load_data("digits")
    assert data.train.images.dtype == np.uint8 and data.input_shape == (32, 32, 3)
    assert (len(data.train), len(data.validation), len(data.test)) == (1295, 143, 359)
    assert data.fingerprint.startswith(FINGERPRINT)
    assert (data.train.images.min(), data.train.images.max()) == (0, 255)
    assert capsys.readouterr().out == ""


def flipped_bit(array):
    changed = array.copy()
    changed.flat[0] ^= 1
    return changed


def first_swapped(array):
    return array[[1, 0, *range(2, len(array))]]


def exchanged(own, other):
    """The first image of ``own`` is now the first of ``other``."""
    return np.concatenate([other[:1], own[1:]])


def test_the_fingerprint_sees_every_change(tmp_path):
    base = npz(tmp_path / "base.npz", classes=np.array(["a", "b", "c", "d"]))
    x, y, x_test, y_test = base["x_train"], base["y_train"], base["x_test"], base["y_test"]
    variants = {
        "base": {},
        "training pixel": {"x_train": flipped_bit(x)},
        "test pixel": {"x_test": flipped_bit(x_test)},
        "training label": {"y_train": flipped_bit(y)},
        "test label": {"y_test": flipped_bit(y_test)},
        "shape": {"x_train": x.reshape(-1, 4, 16, 3), "x_test": x_test.reshape(-1, 4, 16, 3)},
        "order": {"x_test": first_swapped(x_test), "y_test": first_swapped(y_test)},
        "training order": {"x_train": x[::-1], "y_train": y[::-1]},
        "class name": {"classes": np.array(["a", "b", "c", "e"])},
        "class order": {"classes": np.array(["b", "a", "c", "d"])},
        "class names' border": {"classes": np.array(["ab", "", "c", "d"])},
        "split": {"x_train": exchanged(x, x_test), "x_test": exchanged(x_test, x)},
        "fewer": {"x_test": x_test[:-1], "y_test": y_test[:-1]},
    }
    seen = {}
    for i, (what, changes) in enumerate(variants.items()):
        npz(tmp_path / f"{i}.npz", **{"classes": base["classes"]} | changes)
        seen[what] = load_data(tmp_path / f"{i}.npz").fingerprint
    assert len(set(seen.values())) == len(variants), seen
    assert load_data(str(tmp_path / "base.npz")).fingerprint == seen["base"]
    assert load_data(tmp_path / "base.npz", limit=10).fingerprint not in seen.values()


def test_the_fingerprint_sees_where_a_split_ends(tmp_path, monkeypatch):
    name, _, _ = cifar(tmp_path, monkeypatch)
    assert len({load_data(name, validation=rule).fingerprint for rule in RULES}) == 3


def test_labels_of_any_integer_type_and_grey_images_are_the_same_data(tmp_path):
    grey = images(40, (8, 8))
    npz(tmp_path / "a.npz", x_train=grey, x_test=grey[:8], y_train=np.arange(40, dtype="uint8") % 4)
    colour = np.repeat(grey[..., None], 3, axis=-1)
    npz(tmp_path / "b.npz", x_train=colour, x_test=colour[:8], y_train=np.arange(40, dtype="int32")[:, None] % 4)
    assert len({load_data(tmp_path / f"{name}.npz").fingerprint for name in "ab"}) == 1


# From the data set's own page, https://www.cs.toronto.edu/~kriz/cifar.html: the fine labels below their superclasses.
# batches.meta numbers them in alphabetical order.
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SUPERCLASSES = """
    aquatic mammals: beaver, dolphin, otter, seal, whale
    fish: aquarium_fish, flatfish, ray, shark, trout
    flowers: orchid, poppy, rose, sunflower, tulip
    food containers: bottle, bowl, can, cup, plate
    fruit and vegetables: apple, mushroom, orange, pear, sweet_pepper
    household electrical devices: clock, keyboard, lamp, telephone, television
    household furniture: bed, chair, couch, table, wardrobe
    insects: bee, beetle, butterfly, caterpillar, cockroach
    large carnivores: bear, leopard, lion, tiger, wolf
    large man-made outdoor things: bridge, castle, house, road, skyscraper
    large natural outdoor scenes: cloud, forest, mountain, plain, sea
    large omnivores and herbivores: camel, cattle, chimpanzee, elephant, kangaroo
    medium-sized mammals: fox, porcupine, possum, raccoon, skunk
    non-insect invertebrates: crab, lobster, snail, spider, worm
    people: baby, boy, girl, man, woman
    reptiles: crocodile, dinosaur, lizard, snake, turtle
    small mammals: hamster, mouse, rabbit, shrew, squirrel
    trees: maple_tree, oak_tree, palm_tree, pine_tree, willow_tree
    vehicles 1: bicycle, bus, motorcycle, pickup_truck, train
    vehicles 2: lawn_mower, rocket, streetcar, tank, tractor
"""
CIFAR100 = sorted(name for line in SUPERCLASSES.strip().splitlines() for name in line.split(": ")[1].split(", "))


@pytest.mark.parametrize(("name", "classes"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_cifars_classes_are_named_in_the_order_of_its_labels(tmp_path, monkeypatch, name, classes):
    npz(tmp_path / f"{name}.npz")
    monkeypatch.setenv("PATCHLIB_DATA", str(tmp_path))
    data = load_data(name)
    assert data.classes == tuple(classes) and len(set(classes)) == int(name[5:])
    assert len(data.train) == 36


def test_classes_are_named_in_the_order_of_labels(tmp_path):
    assert load_data("digits").classes == tuple("0123456789")
    npz(tmp_path / "own.npz")
    assert load_data(tmp_path / "own.npz").classes == ("0", "1", "2", "3")
    for names in (np.array(["z", "a", "ü", "b"]), np.array([b"z", b"a", b"m", b"b"])):
        npz(tmp_path / "own.npz", classes=names)
        assert load_data(tmp_path / "own.npz").classes == tuple(
            n.decode() if isinstance(n, bytes) else n for n in names.tolist()
        )
    for value, name in enumerate(("zebra", "Ape", "10", "9")):
        for part in ("train", "test"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(3):
                Image.new("L", (8, 8), 50 * value + i).save(tmp_path / part / name / f"{i}.png")
    data = load_data(tmp_path)
    assert data.classes == ("10", "9", "Ape", "zebra")
    for split in (data.train, data.validation, data.test):
        shown = [("zebra", "Ape", "10", "9")[image[0, 0, 0] // 50] for image in split.images]
        assert [data.classes[label] for label in split.labels] == shown


@pytest.mark.parametrize("source", [shuffled_npz, cifar, folder_with_test, digits])
def test_image_size_brings_the_middle_square_to_one_size(source, tmp_path, monkeypatch):
    name, _, _ = source(tmp_path, monkeypatch)
    before, after = load_data(name), load_data(name, image_size=12)
    assert after.input_shape == (12, 12, 3)
    for small, large in zip(before.test.images, after.test.images, strict=True):
        expected = Image.fromarray(small).resize((12, 12), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(large, np.asarray(expected))
    np.testing.assert_array_equal(before.test.labels, after.test.labels)


@pytest.mark.parametrize("shape", [(10, 30), (30, 10)])
def test_image_size_crops_and_never_stretches(tmp_path, shape):
    pixels = images(40, (*shape, 3))
    middle = pixels[:, :, 10:20] if shape == (10, 30) else pixels[:, 10:20]
    npz(tmp_path / "own.npz", x_train=pixels, x_test=pixels[:8])
    np.testing.assert_array_equal(load_data(tmp_path / "own.npz", image_size=10).test.images, middle[:8])


def test_cifar_comes_from_keras_without_patchlib_data(monkeypatch):
    arrays = (images(40), np.arange(40)[:, None] % 4), (images(8, seed=1), np.arange(8)[:, None] % 4)
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: arrays)
    monkeypatch.delenv("PATCHLIB_DATA", raising=False)
    data = load_data("cifar10")
    assert pairs(data.train, data.validation) == pairs(Split(arrays[0][0], arrays[0][1][:, 0]))


@pytest.mark.parametrize("folder_set", [True, False])
def test_without_a_network_the_error_says_what_to_put_where(tmp_path, monkeypatch, folder_set):
    def fail():
        raise Exception("URL fetch failure: no network")

    monkeypatch.setattr(keras.datasets.cifar100, "load_data", fail)
    monkeypatch.delenv("PATCHLIB_DATA", raising=False)
    if folder_set:
        monkeypatch.setenv("PATCHLIB_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"cifar100\.npz.*PATCHLIB_DATA") as caught:
        load_data("cifar100")
    assert "no network" in str(caught.value)
    assert (str(tmp_path) in str(caught.value)) == folder_set


def some_duplicates(path, monkeypatch):
    """CIFAR-10, whose last tenth validates: 2 of it stand in train too; of test 1 stands in train, 2 in validation."""
    name, train, test = cifar(path, monkeypatch)
    x, x_test = train.images, test.images
    x[98], x[99], x[1], x_test[2], x_test[5], x_test[6] = x[0], x[3], x[0], x[98], x[97], x[7]
    npz(path / "cifar10.npz", x_train=x, y_train=train.labels, x_test=x_test, y_test=test.labels)
    return name


def test_images_in_more_than_one_split_are_counted(tmp_path, monkeypatch, capsys):
    data, out = load_data(some_duplicates(tmp_path, monkeypatch), validation="last"), capsys.readouterr().out

    def also_in(split, *others):
        return sum(any((image == other).all() for s in others for other in s.images) for image in split.images)

    counts = {
        "validation": also_in(data.validation, data.train),
        "test": also_in(data.test, data.train, data.validation),
    }
    assert data.duplicates == data.describe()["duplicates"] == counts == {"validation": 2, "test": 3}
    assert out == "duplicate images: 2 of validation are in train too, 3 of test in train or validation\n"


@pytest.mark.parametrize("source", SOURCES)
def test_nothing_is_said_where_no_image_stands_twice(source, tmp_path, monkeypatch, capsys):
    data = load_data(source(tmp_path, monkeypatch)[0])
    assert data.duplicates == {"validation": 0, "test": 0}
    assert capsys.readouterr().out == ""


def test_duplicates_of_cifars_size_are_counted_fast():
    pixels = np.arange(60_000 * 768, dtype="uint32").view("uint8").reshape(60_000, 32, 32, 3)
    splits = [Split(part, np.zeros(len(part), "int64")) for part in np.split(pixels, [45_000, 50_000])]
    data, start = Data("big", *splits, ("a",), ""), time.perf_counter()
    assert data.duplicates == {"validation": 0, "test": 0} and time.perf_counter() - start < 5


def test_describe_is_what_a_card_can_hold(tmp_path, monkeypatch):
    name, _, _ = shuffled_npz(tmp_path, monkeypatch)
    described = load_data(name).describe()
    assert described == json.loads(json.dumps(described))
    assert list(described) == ["name", "fingerprint", "train", "validation", "test", "split", "duplicates"]
    assert described["name"] == str(name)


def test_a_folder_gives_the_pixels_that_load_picture_gives(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            clear = Image.fromarray(images(1, (20, 30, 4))[0])
            deep = Image.fromarray(np.linspace(0, 65535, 600).astype("uint16").reshape(20, 30))
            clear.save(tmp_path / part / name / "clear.png")
            clear.convert("RGB").save(tmp_path / part / name / "turned.jpg", exif=turned)
            clear.convert("CMYK").save(tmp_path / part / name / "print.tif")
            deep.save(tmp_path / part / name / "deep.png")
    data = load_data(tmp_path, image_size=16)
    files = [
        tmp_path / "test" / name / file
        for name in "ab"
        for file in ("clear.png", "deep.png", "print.tif", "turned.jpg")
    ]
    np.testing.assert_array_equal(data.test.images, [load_picture(file, 16) for file in files])


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".ppm"])
def test_no_picture_vanishes_beside_pngs(tmp_path, suffix, capsys):
    folder(tmp_path)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "test" / "dog" / f"zz{suffix}")
    data = load_data(tmp_path)
    assert len(data.test) == 11 and capsys.readouterr().out == ""
    assert abs(data.test.images[-1] - np.array([255.0, 0, 0])).max() < 4 and data.test.labels[-1] == 1


def test_pictures_in_nested_folders_count_and_keep_one_order(tmp_path, monkeypatch):
    for path in ("b/2.png", "b/10.png", "a/deep/er/1.png", "z.png", "a.png"):
        (tmp_path / "test" / "dog" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 7 * len(path)).save(tmp_path / "test" / "dog" / path)
    folder(tmp_path, splits=("train",))
    (tmp_path / "test" / "cat").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "test" / "cat" / "0.png")
    data, walk = load_data(tmp_path), Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda *a, **k: reversed(list(walk(*a, **k))))  # another file system's order
    assert data.fingerprint == load_data(tmp_path).fingerprint
    ordered = ["a.png", "a/deep/er/1.png", "b/10.png", "b/2.png", "z.png"]
    assert data.test.images[1:, 0, 0, 0].tolist() == [7 * len(path) for path in ordered]


def test_what_is_skipped_is_counted_in_one_line(tmp_path, capsys):
    folder(tmp_path)
    for path in ("train/cat/a.txt", "train/dog/deep/b.TXT", "test/dog/c.csv", "test/cat/LICENSE"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("?")
    for hidden in (
        "train/.DS_Store",
        "train/cat/._0.png",
        "train/cat/.cache/thumbnail.png",
        "test/.ipynb_checkpoints/x",
    ):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_text("?")
    data = load_data(tmp_path)
    assert capsys.readouterr().out == "skipped 4 files that aren't pictures: .txt 2, .csv 1, without suffix 1\n"
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 2, 10)


def test_pictures_outside_of_the_class_folders_are_counted_too(tmp_path, capsys):
    folder(tmp_path)
    Image.new("L", (8, 8)).save(tmp_path / "train" / "loose.png")
    load_data(tmp_path)
    assert "1 picture(s) outside of the class folders" in capsys.readouterr().out


def test_pictures_of_other_sizes_are_fitted_when_asked(tmp_path):
    folder(tmp_path)
    Image.new("L", (20, 12), 200).save(tmp_path / "train" / "dog" / "0.png")
    with pytest.raises(DataError, match=r"0\.png is of 12 x 20 pixels, .*cat.0\.png of 8 x 8: give an image_size"):
        load_data(tmp_path)
    assert load_data(tmp_path, image_size=16).input_shape == (16, 16, 3)


@pytest.mark.parametrize("source", [shuffled_npz, cifar, folder_with_test, folder_without_test, digits])
def test_a_patch_that_doesnt_tile_the_images_is_refused(source, tmp_path, monkeypatch):
    name, train, _ = source(tmp_path, monkeypatch)
    side = train.images.shape[1]
    for size in (1, 2, side):
        assert load_data(name, patch_size=size).input_shape[0] == side
    assert load_data(name, patch_size=3, image_size=12).input_shape[0] == 12
    for size, given in ((3, 0), (side + 1, 0), (2 * side, 0), (5, 12), (3, side)):
        seen = given or side
        with pytest.raises(DataError) as caught:
            load_data(name, patch_size=size, image_size=given)
        words = [f"{seen} x {seen} pixels", f"patches of {size}", "accepted: 1, 2, ", f", {seen}", "image_size"]
        assert all(word in str(caught.value) for word in words), caught.value


def test_the_patch_sizes_that_fit_are_the_common_divisors(tmp_path):
    npz(tmp_path / "own.npz", x_train=images(40, (12, 18, 3)), x_test=images(8, (12, 18, 3)))
    with pytest.raises(DataError, match=r"12 x 18 pixels.*accepted: 1, 2, 3, 6\b(?!,)"):
        load_data(tmp_path / "own.npz", patch_size=4)
    assert load_data(tmp_path / "own.npz", patch_size=6).input_shape == (12, 18, 3)


def test_a_patch_is_refused_after_the_first_picture_of_a_folder(tmp_path, monkeypatch):
    folder(tmp_path)
    for file in sorted(tmp_path.glob("*/*/*.png")):
        if file != tmp_path / "train" / "cat" / "0.png":
            file.write_bytes(b"nobody reads this")
    with pytest.raises(DataError, match="patches of 3"):
        load_data(tmp_path, patch_size=3)
    with pytest.raises(DataError, match="patches of 3"):
        load_data(tmp_path / "nowhere" / "yet", patch_size=3, image_size=8)


def test_a_built_in_name_that_hides_a_folder_says_how_to_reach_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "digits")
    assert load_data("digits").num_classes == 10
    assert "./digits" in capsys.readouterr().out
    for name in ("./digits", "digits/", Path("digits"), tmp_path / "digits"):
        data = load_data(name)
        assert data.classes == ("cat", "dog") and data.name != "digits"
    assert capsys.readouterr().out == ""


def one_class(path):
    return folder(path, classes=("cat",))


def single_picture(path):
    folder(path)
    for i in range(1, 5):
        (path / "train" / "dog" / f"{i}.png").unlink()
    return path


def broken_picture(path):
    folder(path)
    file = path / "train" / "cat" / "3.png"
    file.write_bytes(file.read_bytes()[:60])
    return path


def empty_class(path):
    folder(path)
    (path / "train" / "eel").mkdir()
    return path


def class_only_in_test(path):
    folder(path)
    (path / "test" / "eel").mkdir()
    return path


def other_size_in_test(path):
    folder(path, splits=("train",))
    return folder(path, splits=("test",), size=(8, 9))


def truncated(path):
    npz(path / "own.npz")
    whole = (path / "own.npz").read_bytes()
    (path / "own.npz").write_bytes(whole[: len(whole) // 2])
    return path / "own.npz"


def changed(**changes):
    def write(path):
        npz(path / "own.npz", **changes)
        return path / "own.npz"

    return write


def encrypted(path):
    npz(path / "own.npz")
    content = bytearray((path / "own.npz").read_bytes())
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        for found in re.finditer(re.escape(signature), bytes(content)):
            content[found.start() + flags] |= 1
    (path / "own.npz").write_bytes(content)
    return path / "own.npz"


def claims_more_than_there_is(path):
    npz(path / "own.npz")
    with zipfile.ZipFile(path / "own.npz", "a") as archive, archive.open("x_more.npy", "w") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (10**11, 32, 32, 3)}
        np.lib.format.write_array_header_1_0(file, header)
    return path / "own.npz"


def strange_header(path):
    with zipfile.ZipFile(path / "own.npz", "w") as archive:
        archive.writestr("x_train.npy", b"\x93NUMPY\x02\0" + (9000).to_bytes(4, "little") + b"[" * 9000)
    return path / "own.npz"


def fifo(path):
    os.mkfifo(path / "own.npz")
    return path / "own.npz"


def test_what_would_not_fit_into_memory_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 10, "SC_PHYS_PAGES": 100}[name])
    monkeypatch.setattr(np, "load", None)
    with pytest.raises(DataError, match=r"own.npz unpacks to 0.0 GB, and this machine has 0.0 GB of memory\."):
        load_data(changed()(tmp_path))


@pytest.mark.parametrize("make", [folder, changed()])
def test_images_that_would_not_fit_into_memory_are_not_resized(tmp_path, make, monkeypatch):
    source = make(tmp_path)
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 1000, "SC_PHYS_PAGES": 100}[name])
    with pytest.raises(DataError, match=r"images of 300 x 300 pixels take 0.0 GB, and this machine has 0.0 GB"):
        load_data(source, image_size=300)


def test_pipes_devices_and_what_macs_leave_behind_are_passed_over(tmp_path):
    expected = pairs(load_data(folder(tmp_path)).train)
    place = tmp_path / "train" / "cat"
    os.mkfifo(place / "pipe.png")
    (place / "device.png").symlink_to("/dev/zero")
    (place / "._0.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / "train" / "._cat").mkdir()
    assert pairs(load_data(tmp_path).train) == expected


def test_labels_with_gaps_are_taken_where_each_has_a_name(tmp_path):
    data = load_data(changed(y_train=np.arange(40) % 2 * 3, classes=np.array(list("abcd")))(tmp_path))
    assert data.num_classes == 4 and set(data.train.labels) == {0, 3}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (one_class, ["1 class(es) (cat)", "at least 2"]),
        (single_picture, ["class 'dog' has too few images", "at least 2"]),
        (broken_picture, ["3.png", "can't be read"]),
        (empty_class, ["eel", ".png"]),
        (class_only_in_test, ["eel", "train has not"]),
        (other_size_in_test, ["test", "8 x 9", "8 x 8", "image_size"]),
        (truncated, ["own.npz is broken"]),
        (changed(y_test=None), ["lacks y_test", "x_train"]),
        (changed(x_train=np.zeros((40, 8, 8, 3), "float32")), ["x_train is float32", "uint8"]),
        (changed(x_test=images(8, (9, 8, 3))), ["(40, 8, 8, 3)", "(8, 9, 8, 3)"]),
        (changed(x_train=np.zeros(40, [("a" * 9000, "u1")])), ["x_train is [('aaa", "uint8"]),
        (changed(y_train=np.zeros(40)), ["y_train is float64", "40 integers"]),
        (changed(y_train=np.zeros(39, int)), ["y_train is int64 of shape (39,)", "40 integers"]),
        (changed(y_train=np.arange(40) - 3), ["y_train", "from -3", "from 0 to"]),
        (changed(y_train=np.eye(4, dtype=int)[np.arange(40) % 4]), ["of shape (40, 4)", "40 integers", "argmax"]),
        (changed(y_train=np.eye(4)[np.arange(40) % 4]), ["float64 of shape (40, 4)", "40 integers", "argmax"]),
        (changed(classes=np.array(["a", "b", "c"])), ["labels from 0 to 3", "3 class name"]),
        (changed(classes=np.array(["a", "b", "a", "d"])), ["'a'", "more than one class"]),
        (
            changed(y_train=(np.arange(40) % 4).astype("uint64") + np.uint64(2**63)),
            ["from 9223372036854775808", "from 0 to 2147483647"],
        ),
        (changed(y_train=np.full(40, 255)), ["only label 255", "at least 2 classes"]),
        (
            changed(y_train=np.arange(40) % 2 * 20_000_000),
            ["2 different labels", "up to 20000000", "0 to 1", "classes"],
        ),
        (
            changed(x_train=np.zeros((40, 0, 8, 3), "uint8")),
            ["x_train is uint8 of shape (40, 0, 8, 3)", "(N, H, W, 3)"],
        ),
        (strange_header, ["own.npz is broken"]),
        (encrypted, ["own.npz is broken", "encrypted"]),
        (claims_more_than_there_is, ["own.npz is broken"]),
        (fifo, ["no such file"]),
        (lambda path: "~nobody-of-this-name/own.npz", ["~nobody", "isn't a path"]),
        (lambda path: "x" * 5000 + ".npz", ["data set 'xxx", "File name too long"]),
        (lambda path: "a\0b.npz", ["isn't a path", "null"]),
        (lambda path: "/dev/zero", ["/dev/zero", "no such file"]),
        (lambda path: path / "nowhere.npz", ["nowhere.npz", "no such file"]),
        (lambda path: path, ["no folder 'train'", "<class>"]),
        (lambda path: "cifar11", ["unknown data set 'cifar11'", "'cifar10'", "digits"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path, make, words):
    with pytest.raises(DataError) as caught:
        load_data(make(tmp_path))
    assert all(word in str(caught.value) for word in words), caught.value
    assert len(str(caught.value)) < 1000
    assert re.search(r"\w\.$", str(caught.value)) or str(caught.value).endswith((").", "'."))


def test_a_folders_name_that_is_no_unicode_is_a_classes_name_escaped(tmp_path):
    for part, name in itertools.product(("train", "test"), ("cat", "\udcff")):
        (tmp_path / part / name).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(images(9)[number + 3 * (part == "test")]).save(tmp_path / part / name / f"{number}.png")
    assert load_data(tmp_path).classes == ("cat", r"\udcff")


@pytest.mark.parametrize("argument", ["limit", "image_size", "patch_size"])
@pytest.mark.parametrize("value", [-5, 2.5, "8", None, True, pytest.param(-(10**9999), id="long")])
def test_numbers_that_make_no_sense_are_refused_before_anything_is_read(tmp_path, argument, value):
    with pytest.raises(DataError, match=f"{argument}: received {re.escape(shown(value))}, accepted: 0 "):
        load_data(tmp_path / "nowhere.npz", **{argument: value})


@pytest.mark.parametrize("word", ["middle", "", None])
def test_an_unknown_rule_is_refused_before_anything_is_read(tmp_path, word):
    with pytest.raises(DataError, match=f"validation: received {word!r}, accepted: 'stratified', 'first' or 'last'"):
        load_data(tmp_path / "nowhere.npz", validation=word)
