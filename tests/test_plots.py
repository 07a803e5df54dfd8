import numpy as np
from matplotlib import pyplot as plt

from patchlib import plots


def drawn(figure):
    return [ax.images[0].get_array() for ax in figure.axes if ax.images]


def test_grid_shows_every_picture_with_its_title():
    pictures = np.random.default_rng(0).random((5, 4, 4))
    figure = plots.grid(pictures, titles="abcde", columns=3)
    np.testing.assert_array_equal(drawn(figure), pictures)
    assert [ax.get_title() for ax in figure.axes] == [*"abcde", ""]
    assert not plt.get_fignums()  # closed, so a notebook doesn't show it twice


def test_patches_are_the_image_cut_along_its_grid():
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype="uint8")
    _, cut = drawn(plots.patches(image, 4))
    assert cut.shape == (10, 10, 3)
    np.testing.assert_array_equal(cut[1:5, 6:10], image[:4, 4:])
    assert (cut[5] == 255).all() and (cut[:, 0] == 255).all()


def test_filters_share_one_scale_with_zero_in_its_middle():
    kernels = np.zeros((3, 3, 2))
    kernels[0, 0, 0], kernels[1, 1, 1] = -2, 1
    first, second = drawn(plots.filters(kernels))[:2]
    assert (first[0, 0], second[1, 1], first[2, 2]) == (0, 0.75, 0.5)
    assert len(drawn(plots.filters(np.ones((2, 2, 3, 6))))) == 6


def test_curves_are_the_histories():
    history = {"loss": [2.0, 1.0], "val_loss": [2.2, 1.5], "accuracy": [0.2, 0.6], "val_accuracy": [0.1, 0.5]}
    losses, accuracies = plots.learning_curves({"a": {"history": history}}).axes
    assert [list(line.get_ydata()) for line in losses.lines] == [history["loss"], history["val_loss"]]
    assert [list(line.get_ydata()) for line in accuracies.lines] == [history["accuracy"], history["val_accuracy"]]


def test_heat_is_brightest_where_the_share_is_largest():
    images, shares = np.zeros((1, 4, 4, 3), "uint8"), np.array([[0.1, 0.2, 0.4, 0.3]])
    (picture,) = plots.heat(images, shares)
    np.testing.assert_allclose(picture[::2, ::2, 0], 0.9 * np.array([[0.25, 0.5], [1, 0.75]]))
    assert (picture[2:, :2] == picture[2, 0]).all()


def test_scatter_has_means_with_their_spread_in_a_panel_each():
    panels = {"first": {"a baseline": (10, [1.0, 3.0]), "a tuned": (20, [4.0])}, "second": {"b tuned": (5, [6.0])}}
    figure = plots.scatter(panels, "x", "y")
    first, second = figure.axes
    assert (first.get_title(), second.get_title()) == ("first", "second")
    marks = {bar.get_label(): bar.lines[0] for ax in figure.axes for bar in ax.containers}
    assert {name: tuple(mark.get_xydata()[0]) for name, mark in marks.items()} == {
        "a baseline": (10, 2),
        "a tuned": (20, 4),
        "b tuned": (5, 6),
    }
    (bar,) = [c for c in first.containers if c.has_yerr]
    np.testing.assert_allclose(bar.lines[2][0].get_segments()[0][:, 1], [2 - 2**0.5, 2 + 2**0.5])
    assert marks["a baseline"].get_color() == marks["a tuned"].get_color() != marks["b tuned"].get_color()
    assert marks["a baseline"].get_marker() != marks["a tuned"].get_marker() == marks["b tuned"].get_marker()


def test_bands_are_means_with_their_spread():
    runs = {"one": [[1.0, 2.0]], "three": [[1.0, 2.0], [2.0, 3.0, 9.0], [3.0, 4.0]]}
    figure = plots.bands({("a", "x"): runs, ("b", "x"): {"one": [[0.0, 99.0]]}, ("a", "y"): runs}, "epoch", "y")
    a, b, other = figure.axes
    assert [list(line.get_ydata()) for line in a.lines] == [[1, 2], [2, 3]]
    (band,) = a.collections
    assert set(map(tuple, band.get_paths()[0].vertices)) == {(1, 1), (2, 2), (2, 4), (1, 3)}
    assert a.get_ylim() == b.get_ylim() != other.get_ylim() and a.get_ylim()[1] > 99
