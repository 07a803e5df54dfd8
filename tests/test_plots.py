import numpy as np
import pytest
from matplotlib import pyplot as plt

from patchlib import evaluation, models, plots, surgery


def drawn(figure):
    return [ax.images[0].get_array() for ax in figure.axes if ax.images]


def test_a_title_is_text_and_no_formula():
    assert plots.grid(np.zeros((1, 4, 4)), titles=[r"$\frac$"]).axes[0].get_title() == r"$\frac$"


def test_grid_shows_every_picture_with_its_title():
    pictures = np.random.default_rng(0).random((5, 4, 4))
    figure = plots.grid(pictures, titles="abcde", columns=3)
    np.testing.assert_array_equal(drawn(figure), pictures)
    assert [ax.get_title() for ax in figure.axes] == [*"abcde", ""]
    assert not plt.get_fignums()  # closed, so a notebook doesn't show it twice


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 12), (4, 16)])
def test_patches_are_the_image_cut_along_its_grid(height, width):
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype="uint8")
    _, cut = drawn(plots.patches(image, 4))
    assert (cut[::5] == 255).all() and (cut[:, ::5] == 255).all()
    kept = [np.flatnonzero(np.arange(size) % 5) for size in cut.shape[:2]]
    np.testing.assert_array_equal(cut[np.ix_(*kept)], image)


def test_patches_that_do_not_tile_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="images of 32 x 20 pixels aren't tiled by patches of 8, accepted: 1, 2, 4;"):
        plots.patches(np.zeros((32, 20, 3), "uint8"), 8)


@pytest.mark.parametrize("size", [0, 6, 24])
def test_resized_images_are_those_that_a_model_sees(size):
    images = np.random.default_rng(0).integers(0, 256, (2, 10, 16, 3), dtype="uint8")
    model = models.mlp_mixer((10, 16, 3), 2, resize=size, patch_size=2, dim=4, depth=1)
    seen = 255 * np.array(surgery.intermediates(model)(images)["resize" if size else "rescale"])
    np.testing.assert_allclose(plots.resized(images, size), seen, atol=0.51)


def test_a_grid_gives_pictures_the_room_of_their_shape():
    for height, width in ((4, 4), (4, 8), (9, 3)):
        across, down = plots.grid(np.zeros((3, height, width)), columns=3).get_size_inches()
        np.testing.assert_allclose(down / (across / 3), height / width)


def test_filters_share_one_scale_with_zero_in_its_middle():
    kernels = np.zeros((3, 3, 2))
    kernels[0, 0, 0], kernels[1, 1, 1] = -2, 1
    first, second = drawn(plots.filters(kernels))[:2]
    assert (first[0, 0], second[1, 1], first[2, 2]) == (0, 0.75, 0.5)
    assert len(drawn(plots.filters(np.ones((2, 2, 3, 6))))) == 6


def test_named_filters_have_a_title_and_a_scale_of_their_own():
    figure = plots.filters(
        {"small": np.full((2, 2, 3), 0.5), "large": -np.full((2, 2, 20), 4.0), "none": np.zeros((1, 1, 1))}
    )
    assert [part._suptitle.get_text() for part in figure.subfigs] == ["small", "large", "none"]
    pictures = [[ax.images[0].get_array() for ax in part.axes if ax.images] for part in figure.subfigs]
    assert [len(of) for of in pictures] == [3, 20, 1]
    assert [float(of[0][0, 0]) for of in pictures] == [1.0, 0.0, 0.5]
    ticks = [part.axes[-1].get_yticklabels()[-1].get_text() for part in figure.subfigs]
    assert ticks == ["0.5", "4", "1"]


def test_influence_shows_both_images_and_their_difference_on_one_scale_for_each_network():
    rng = np.random.default_rng(0)
    images, heard = rng.random((2, 4, 4, 3)), {"a": rng.random((2, 5, 5)) + 9 * np.eye(5), "b": rng.random((2, 3, 3))}
    figure = plots.influence(images, heard)
    shown = [ax.images[0] for ax in figure.axes if ax.images]
    wanted = [images[0], *(pair[0] for pair in heard.values()), images[1], *(pair[1] for pair in heard.values())]
    wanted += [second - first for first, second in heard.values()]
    for picture, expected in zip(shown, wanted, strict=True):
        np.testing.assert_allclose(picture.get_array(), expected)
    assert [picture.axes.get_title() for picture in shown[1:3]] == ["a", "b"]
    limits = [picture.get_clim() for picture in (shown[1], shown[4], shown[6])]
    assert limits[0] == limits[1] == (0, limits[2][1]) and limits[2][0] == -limits[2][1]
    assert 0.9 < limits[2][1] < 1, "the diagonal has no say in the scale"


def test_mistakes_shows_confusion_calibration_and_the_surest_wrong_answers():
    rng = np.random.default_rng(0)
    labels, predicted, confidence = rng.integers(0, 3, 200), rng.integers(0, 3, 200), rng.random(200)
    images, found = rng.random((200, 4, 4, 3)), evaluation.tables(labels, predicted, confidence, ["a", "b", "c"])
    figure = plots.mistakes(images, found)
    matrix, *pictures = drawn(figure)
    counts = np.array([[((labels == i) & (predicted == j)).sum() for j in range(3)] for i in range(3)])
    np.testing.assert_allclose(matrix, counts / counts.sum(axis=1, keepdims=True))
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["a", "b", "c"]
    (bins,) = figure.axes[1].collections
    np.testing.assert_array_equal(bins.get_offsets(), [row[:2] for row in found["calibration"][1:]])
    assert (np.diff(bins.get_sizes()) > 0).tolist() == (
        np.diff([row[2] for row in found["calibration"][1:]]) > 0
    ).tolist()
    wrong = found["mistakes"][1:17]
    np.testing.assert_array_equal(pictures, [images[row[0]] for row in wrong])
    titles = [ax.get_title() for ax in figure.axes[2:]]
    assert titles == [f"{name}\ntaken for {other}\n{share:.0%}" for _, name, other, share in wrong]
    assert not plt.get_fignums()


def test_mistakes_takes_few_and_classes_that_are_many_or_empty():
    labels = np.zeros(50, int)
    found = evaluation.tables(labels, np.arange(50) // 48, np.ones(50), [str(i) for i in range(30)])
    figure = plots.mistakes(np.zeros((50, 4, 4, 3)), found)
    matrix, *pictures = drawn(figure)
    assert len(pictures) == 2 and not matrix[1:].any() and not figure.axes[0].get_yticklabels()


def test_influence_says_how_much_the_matrices_differ_without_their_diagonals():
    first, second = np.array([[9.0, 1.0], [2.0, 9.0]]), np.array([[0.0, 3.0], [2.0, 0.0]])
    figure = plots.influence(np.zeros((2, 4, 4, 3)), {"a": np.array([first, second])})
    assert "they differ by 0.50" in [ax.get_xlabel() for ax in figure.axes]  # (2 + 0) / 2 over (1 + 2 + 3 + 2) / 4


def test_curves_are_the_histories():
    history = {"loss": [2.0, 1.0], "val_loss": [2.2, 1.5], "accuracy": [0.2, 0.6], "val_accuracy": [0.1, 0.5]}
    losses, accuracies = plots.learning_curves({"a": {"history": history}}).axes
    assert [list(line.get_ydata()) for line in losses.lines] == [history["loss"], history["val_loss"]]
    assert [list(line.get_ydata()) for line in accuracies.lines] == [history["accuracy"], history["val_accuracy"]]


@pytest.mark.parametrize("grid", [(2, 2), (2, 4), (3, 1)])
def test_attention_is_shown_beside_each_image_on_one_scale_with_the_query_marked(grid):
    rng = np.random.default_rng(0)
    images, maps = (
        rng.random((2, 2 * grid[0], 3 * grid[1], 3)),
        {"a": rng.random((2, *grid)), "b": rng.random((2, *grid))},
    )
    figure = plots.attention(images, maps, query=(1, 0))
    shown = drawn(figure)
    wanted = [images[0], maps["a"][0], maps["b"][0], images[1], maps["a"][1], maps["b"][1]]
    for picture, expected in zip(shown[:6], wanted, strict=True):
        np.testing.assert_array_equal(picture, expected)
    most = max(shares.max() for shares in maps.values())
    assert {ax.images[0].get_clim() for ax in figure.axes[1:3]} == {(0, most)}
    (square,) = figure.axes[3].patches
    assert square.get_bbox().bounds == (-0.5, 1.5, 3, 2)
    assert [ax.get_title() for ax in figure.axes[:3]] == ["", "a", "b"]
    assert not plots.attention(images, maps).axes[0].patches


@pytest.mark.parametrize("grid", [(3, 3), (2, 4), (5, 2), (1, 4)])
def test_similarity_is_one_at_the_place_itself_and_the_cosine_elsewhere(grid):
    vectors = np.random.default_rng(0).normal(size=(*grid, 5))
    figure = plots.similarity(vectors)
    pictures = drawn(figure)
    assert len(pictures) == min(grid)
    places = [np.unravel_index(picture.argmax(), grid) for picture in pictures]
    dots = [line.get_xydata()[0][::-1] for ax in figure.axes for line in ax.lines]
    np.testing.assert_array_equal(dots, places)
    assert places[0] == (0, 0) and all(np.diff([row for row, _ in places]) > 0)
    corner, other = vectors[0, 0], vectors[-1, -1]
    cosine = corner @ other / np.linalg.norm(corner) / np.linalg.norm(other)
    np.testing.assert_allclose(2 * pictures[0][-1, -1] - 1, cosine)


def test_scatter_has_means_with_their_spread_in_a_panel_each():
    rows = {"first": {"x": [("CCT", "baseline", 10, [1.0, 3.0]), ("CCT", "tuned", 20, [4.0])]}}
    rows["second"] = {"x": [("gMLP", "tuned", 5, [6.0])], "z": [("new", "mine", 1, [0.0])]}
    figure = plots.scatter(rows, "y")
    assert [ax.get_xlabel() for ax in figure.axes] == ["x", "z"] * 2
    assert [ax.get_ylabel() for ax in figure.axes] == ["first\ny", "", "second\ny", ""]
    marks = [[bar.lines[0] for bar in ax.containers] for ax in figure.axes]
    points = [[tuple(mark.get_xydata()[0]) for mark in panel] for panel in marks]
    assert points == [[(10, 2), (20, 4)], [], [(5, 6)], [(1, 0)]]
    (bar,) = [c for c in figure.axes[0].containers if c.has_yerr]
    np.testing.assert_allclose(bar.lines[2][0].get_segments()[0][:, 1], [2 - 2**0.5, 2 + 2**0.5])
    looks = [(mark.get_color(), mark.get_marker()) for panel in marks for mark in panel]
    assert looks == [("C1", "D"), ("C1", "s"), ("C4", "s"), ("C6", "^")]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["CCT", "gMLP", "new", "baseline", "mine", "tuned"]


def test_bands_are_means_with_their_spread():
    three = [[1.0, 2.0], [2.0, 3.0, 9.0], [3.0, 4.0]]
    figure = plots.bands({"x": {"tuned": [("CCT", three)], "fast": [("CCT", [[0.0, 99.0]])]}, "y": {}}, "epoch", "y")
    fast, tuned, *empty = figure.axes
    assert [ax.get_title() for ax in figure.axes] == ["fast", "tuned"] * 2 and not any(ax.lines for ax in empty)
    assert [list(ax.lines[0].get_ydata()) for ax in (fast, tuned)] == [[0, 99], [2, 3]]
    (band,) = tuned.collections
    assert set(map(tuple, band.get_paths()[0].vertices)) == {(1, 1), (2, 2), (2, 4), (1, 3)}
    assert fast.get_ylim() == tuned.get_ylim() != empty[0].get_ylim()


@pytest.mark.parametrize(
    ("names", "colors"),
    [
        (["ViT", "CCT", "new"], ["C5", "C1", "C6"]),
        (["tuned, pad 0", "tuned", "fast, flip False"], ["C4", "C2", "C3"]),
    ],
)
def test_networks_and_tiers_have_a_colour_of_their_own_and_other_names_the_next_ones(names, colors):
    (ax,) = plots.bands({"x": {"tuned": [(name, [[1.0]]) for name in names]}}, "epoch", "y").axes
    assert [line.get_color() for line in ax.lines] == colors
