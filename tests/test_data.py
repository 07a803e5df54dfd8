import keras
import numpy as np
import pytest
from PIL import Image

from patchlib.data import DataError, load_data


def npz(path, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (40, 8, 8, 3), dtype="uint8"),
        "y_train": np.arange(40)[:, None] % 4,
        "x_test": rng.integers(0, 256, (8, 8, 8, 3), dtype="uint8"),
        "y_test": np.arange(8)[:, None] % 4,
    }
    np.savez(path, **{key: value for key, value in (arrays | changes).items() if value is not None})
    return arrays | changes


def folder(path, per_class=5, size=(8, 8), classes=("cat", "dog"), splits=("train", "test")):
    rng = np.random.default_rng(0)
    for split in splits:
        for name in classes:
            (path / split / name).mkdir(parents=True)
            for i in range(per_class):
                picture = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype="uint8"))
                picture.save(path / split / name / f"{i}.png")
    return path


def test_digits_are_what_they_were():
    data = load_data("digits")
    assert data.train.images.dtype == np.uint8 and data.input_shape == (32, 32, 3)
    assert (len(data.train), len(data.validation), len(data.test)) == (1295, 143, 359)
    assert data.fingerprint.startswith("80259fac454b8d17")
    assert (data.train.images.min(), data.train.images.max()) == (0, 255)


def test_npz_splits_share_no_image_and_lose_none(tmp_path):
    arrays = npz(tmp_path / "own.npz")
    data = load_data(str(tmp_path / "own.npz"))
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 8)
    assert sorted(data.validation.labels) == [0, 1, 2, 3]
    both = np.concatenate([data.train.images, data.validation.images])
    assert len(np.unique(both, axis=0)) == 40
    where = [int((arrays["x_train"] == image).all((1, 2, 3)).argmax()) for image in data.train.images]
    np.testing.assert_array_equal(data.train.labels, arrays["y_train"][where, 0])


def test_first_and_last_tenth_validate_as_asked(tmp_path):
    arrays = npz(tmp_path / "own.npz")
    for rule, chosen in (("first", slice(None, 4)), ("last", slice(-4, None))):
        data = load_data(str(tmp_path / "own.npz"), validation=rule)
        np.testing.assert_array_equal(data.validation.images, arrays["x_train"][chosen])
    with pytest.raises(DataError, match="received 'middle'"):
        load_data(str(tmp_path / "own.npz"), validation="middle")


def test_limit_takes_the_same_training_images_and_leaves_the_rest_whole(tmp_path):
    npz(tmp_path / "own.npz")
    once, again = (load_data(str(tmp_path / "own.npz"), limit=10) for _ in range(2))
    assert len(once.train) == 10 and len(once.validation) == 4 and len(once.test) == 8
    assert once.fingerprint == again.fingerprint != load_data(str(tmp_path / "own.npz"), limit=11).fingerprint


def test_fingerprint_sees_one_pixel_and_one_label(tmp_path):
    arrays = npz(tmp_path / "a.npz")
    pixels, labels = arrays["x_test"].copy(), arrays["y_test"].copy()
    pixels[0, 0, 0, 0] ^= 1
    labels[0] = 1
    npz(tmp_path / "b.npz", x_test=pixels)
    npz(tmp_path / "c.npz", y_test=labels)
    assert len({load_data(str(tmp_path / f"{name}.npz")).fingerprint for name in "abc"}) == 3


def test_cifar_comes_from_patchlib_data(tmp_path, monkeypatch):
    npz(tmp_path / "cifar10.npz")
    monkeypatch.setenv("PATCHLIB_DATA", str(tmp_path))
    data = load_data("cifar10")
    assert len(data.train) == 36 and data.classes[:3] == ("airplane", "automobile", "bird")


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


def test_both_cifars_have_as_many_names_as_classes():
    from patchlib.data import _CLASSES

    assert {name: len(set(classes.split())) for name, classes in _CLASSES.items()} == {"cifar10": 10, "cifar100": 100}


def test_folder_of_pictures(tmp_path):
    data = load_data(str(folder(tmp_path)))
    assert data.classes == ("cat", "dog") and data.input_shape == (8, 8, 3)
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 2, 10)
    first = np.asarray(Image.open(tmp_path / "test" / "cat" / "0.png"))
    np.testing.assert_array_equal(data.test.images[0], first)


def test_folder_without_test_holds_a_fifth_of_each_class_back(tmp_path):
    data = load_data(str(folder(tmp_path, per_class=10, splits=("train",))))
    assert sorted(data.test.labels) == [0, 0, 1, 1] and len(data.train) == 14


def test_pictures_of_other_sizes_are_fitted_when_asked(tmp_path):
    folder(tmp_path)
    Image.new("L", (20, 12), 200).save(tmp_path / "train" / "dog" / "0.png")
    with pytest.raises(DataError, match=r"0\.png has \(20, 12\) pixels.*image_size"):
        load_data(str(tmp_path))
    assert load_data(str(tmp_path), image_size=16).input_shape == (16, 16, 3)


def one_class(path):
    folder(path, classes=("cat",))
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


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (one_class, ["1 class(es) (cat)", "at least 2"]),
        (broken_picture, ["3.png", "can't be read"]),
        (empty_class, ["eel", ".png"]),
        (truncated, ["own.npz is broken"]),
        (changed(y_test=None), ["lacks y_test", "x_train"]),
        (changed(x_train=np.zeros((40, 8, 8, 3), "float32")), ["x_train is float32", "uint8"]),
        (changed(y_train=np.zeros(40)), ["y_train is float64", "40 integers"]),
        (changed(y_train=np.zeros(39, int)), ["y_train is int64 of shape (39,)", "40 integers"]),
        (lambda path: path / "nowhere.npz", ["nowhere.npz", "no such file"]),
        (lambda path: path, ["no folder 'train'", "<class>"]),
        (lambda path: "cifar11", ["unknown data set 'cifar11'", "'cifar10'", "digits"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path, make, words):
    with pytest.raises(DataError) as caught:
        load_data(str(make(tmp_path)))
    assert all(word in str(caught.value) for word in words), caught.value
