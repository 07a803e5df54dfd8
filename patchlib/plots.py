"""Figures. Each function returns a closed ``Figure``: a notebook shows it once, a script can save it."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator

from patchlib.parameters import ARCHITECTURES
from patchlib.sources import refuse_untiled

TIERS = {"baseline": "D", "fast": "o", "tuned": "s"}  # and their markers


def grid(pictures, titles=(), columns=8, size=1.1, **imshow) -> Figure:
    """Pictures (N, H, W) or (N, H, W, 3) in rows of ``columns``, ``size`` inches wide; ``imshow`` is Matplotlib's."""
    rows, (height, width) = -(-len(pictures) // columns), pictures[0].shape[:2]
    tall = size * (height / width + (0.25 if len(titles) else 0))
    figure, axes = plt.subplots(rows, columns, figsize=(size * columns, tall * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, picture in zip(axes.flat, pictures, strict=False):
        ax.imshow(picture, **imshow)
    for ax, title in zip(axes.flat, titles, strict=False):
        ax.set_title(title, fontsize=9, parse_math=False)  # a class may be called "$"
    figure.tight_layout(pad=0.3)
    plt.close(figure)
    return figure


def resized(images, size: int) -> np.ndarray:
    """uint8 images (N, H, W, 3) as a model with this ``resize`` sees them, (N, size, size, 3); at 0 as they are."""
    if not size:
        return images
    from patchlib.backend import keras  # here, because comparing runs needs figures but not Keras

    layer = keras.layers.Resizing(size, size, dtype="float32")
    return np.rint(keras.ops.convert_to_numpy(layer(images))).astype("uint8")


def patches(image, patch_size: int, size=4.0) -> Figure:
    """An image (H, W, 3), 0 to 255, beside the patches that a model with this patch size cuts it into.

    Raises:
        DataError: the patches don't tile the image.
    """
    height, width, channels = image.shape
    refuse_untiled((height, width), patch_size)
    rows, columns, gap = height // patch_size, width // patch_size, max(1, patch_size // 4)
    cut = np.full((rows, patch_size + gap, columns, patch_size + gap, channels), 255, "uint8")
    cut[:, gap:, :, gap:] = image.reshape(rows, patch_size, columns, patch_size, channels)
    cut = cut.reshape(rows * (patch_size + gap), columns * (patch_size + gap), channels)
    titles = f"{height} x {width} pixels", f"{rows} x {columns} patches"
    return grid([image, cut], titles, columns=2, size=size)


def attention(images, maps: dict[str, np.ndarray], query: tuple[int, int] | None = None) -> Figure:
    """Images beside maps of shares over their positions, all on one scale: {title: (N, rows, columns)}.

    Args:
        images: (N, H, W, 3), 0 to 255.
        maps: at least one; of each image a row.
        query: row and column of the position that asks; marked by a square on the images.
    """
    most = max(shares.max() for shares in maps.values())
    shape = len(images), 1 + len(maps)
    figure, axes = plt.subplots(*shape, figsize=(1.7 * shape[1] + 0.8, 1.7 * shape[0]), layout="constrained")
    axes = np.reshape(axes, shape)
    for image, row in zip(images, axes, strict=True):
        row[0].imshow(image)
    rows, columns = next(iter(maps.values())).shape[1:]
    if query:
        height, width = images.shape[1] / rows, images.shape[2] / columns
        corner = query[1] * width - 0.5, query[0] * height - 0.5
        for ax in axes[:, 0]:
            ax.add_patch(plt.Rectangle(corner, width, height, fill=False, edgecolor="red", linewidth=1.5))
    for column, (title, shares) in zip(axes[:, 1:].T, maps.items(), strict=True):
        column[0].set_title(title, fontsize=9)
        for ax, share in zip(column, shares, strict=True):
            shown = ax.imshow(share, cmap="viridis", vmin=0, vmax=most)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    figure.colorbar(shown, ax=axes, shrink=0.9, aspect=30, label="share")
    plt.close(figure)
    return figure


def similarity(vectors) -> Figure:
    """Vectors (rows, columns, dim) of a grid of positions: for positions down the diagonal, the cosine with all others.

    As figure 7 of Dosovitskiy et al. (2021) shows position embeddings; a dot marks the position. Where the grid isn't
    square, the diagonal takes as many steps as the shorter side has positions.
    """
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    steps = np.arange(min(unit.shape[:2]))
    down, across = (steps * cells // len(steps) for cells in unit.shape[:2])
    title = f"cosine with row 0, column 0, and so on down the diagonal to row {down[-1]}, column {across[-1]}"
    figure = filters({title: unit @ unit[down, across].T}, columns=8, size=1)
    for ax, row, column in zip(figure.axes, down, across, strict=False):  # the last one is the scale's
        ax.plot(column, row, "w.", markersize=4)
    return figure


def filters(kernels, columns=16, size=0.5) -> Figure:
    """Convolution kernels (k, k, N) or (k, k, 3, N) as pictures; zero is the middle of the scale.

    Args:
        kernels: one such array, or several by name: each gets a title, and a scale that ends at its largest magnitude.
        columns: pictures in a row.
        size: of a picture, in inches.
    """
    named = kernels if isinstance(kernels, dict) else {"": kernels}
    lines = {name: -(-values.shape[-1] // columns) for name, values in named.items()}
    figure = plt.figure(figsize=(size * columns + 0.7, size * sum(lines.values()) + 0.3 * len(lines)))
    parts = figure.subfigures(len(named), 1, squeeze=False, height_ratios=[n + 0.3 / size for n in lines.values()])
    for part, (name, values) in zip(parts[:, 0], named.items(), strict=True):
        largest = np.abs(values).max() or 1.0
        pictures = np.moveaxis((values / largest + 1) / 2, -1, 0)
        space = {"left": 0.01, "right": 0.9, "bottom": 0.02, "top": 1 - 0.3 / (size * lines[name] + 0.3)}
        axes = part.subplots(lines[name], columns, squeeze=False, gridspec_kw=space | {"wspace": 0.08, "hspace": 0.08})
        for ax, picture in zip(axes.flat, pictures, strict=False):
            ax.imshow(picture, cmap="RdBu", vmin=0, vmax=1)
        for ax in axes.flat:
            ax.axis("off")
        part.suptitle(name, x=0.01, y=0.99, ha="left", va="top", fontsize=9)
        if values.ndim == 3:
            bar = part.add_axes([0.92, 0.05, 0.01, space["top"] - 0.08])
            scale = plt.cm.ScalarMappable(plt.Normalize(-largest, largest), "RdBu")
            figure.colorbar(scale, cax=bar, ticks=[-largest, 0, largest], format="%.2g").ax.tick_params(labelsize=6)
    plt.close(figure)
    return figure


def influence(images, heard: dict[str, np.ndarray]) -> Figure:
    """Who hears whom: for two images and each network a matrix over positions, and below them their difference.

    Row i of a matrix is who position i hears, column j is who hears position j. A network's three matrices share one
    scale, which ends where only a hundredth of its pairs of two positions and most of the diagonal go beyond. Below the
    difference stands how large it is: the mean of its magnitudes over the mean of both matrices, without the diagonals;
    0 if both are the same, 2 if no pair is heard in both.

    Args:
        images: (2, H, W, 3), 0 to 255.
        heard: for each network's name (2, positions, positions), from ``explain.influence``.
    """
    shape = 3, 1 + len(heard)
    figure, axes = plt.subplots(*shape, figsize=(1.9 * shape[1] + 0.6, 6.4), squeeze=False, layout="constrained")
    for ax, image in zip(axes[:, 0], images, strict=False):
        ax.imshow(image)
    axes[2, 0].text(0.5, 0.5, "the second\nless the first", ha="center", va="center")
    for column, (name, matrices) in zip(axes[:, 1:].T, heard.items(), strict=True):
        first, second = matrices
        pairs = matrices[:, ~np.eye(len(first), dtype=bool)]
        most = np.quantile(pairs, 0.99)
        for ax, matrix in zip(column, matrices, strict=False):
            grey = ax.imshow(matrix, cmap="Greys", vmin=0, vmax=most)
        red = column[2].imshow(second - first, cmap="RdBu_r", vmin=-most, vmax=most)
        column[0].set_title(name)
        column[1].set_xlabel("is heard")
        column[2].set_xlabel(f"they differ by {np.abs(pairs[1] - pairs[0]).mean() / pairs.mean():.2f}")
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[], frame_on=ax not in axes[:, 0])
    for ax in axes[:, 1]:
        ax.set_ylabel("hears")
    for shown, row, ends in ((grey, axes[:2], ("silent", "loud")), (red, axes[2:], ("less", "more"))):
        bar = figure.colorbar(shown, ax=row, ticks=shown.get_clim(), aspect=30 * len(row), pad=0.01)
        bar.ax.set_yticklabels(ends)
    plt.close(figure)
    return figure


def mistakes(images, found: dict[str, list]) -> Figure:
    """The confusion matrix, in shares of its rows, the calibration curve, and the surest wrong answers, 16 at most.

    Args:
        images: (N, H, W, 3), 0 to 255.
        found: of ``evaluation.tables``.
    """
    wrong = found["mistakes"][1:17]
    rows_below = max(1, -(-len(wrong) // 8))
    figure = plt.figure(figsize=(9, 4.7 + 1.5 * rows_below), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(4.7, 1.5 * rows_below))  # type: ignore[misc]  # it is an array
    left, right = upper.subplots(1, 2)
    (_, *classes), *rows = found["confusion"]
    counts = np.array([row[1:] for row in rows])
    left.imshow(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    left.set(xlabel="taken for", ylabel="class", xticks=[], yticks=[])
    if len(classes) <= 20:
        left.set_xticks(range(len(classes)), classes, rotation="vertical")
        left.set_yticks(range(len(classes)), classes)
    confidence, accuracy, answers = zip(*found["calibration"][1:], strict=True)
    right.plot([0, 1], [0, 1], "--", color="grey", label="as sure as right")
    sizes = 10 + 400 * np.array(answers) / sum(answers)
    right.scatter(confidence, accuracy, sizes, clip_on=False, label="this network, larger for more answers")
    right.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    right.grid(alpha=0.3)
    right.legend(loc="lower center", bbox_to_anchor=(0.5, 1.02))
    axes = lower.subplots(rows_below, 8).ravel()
    for ax in axes:
        ax.axis("off")
    for ax, (image, name, other, share, *_) in zip(axes, wrong, strict=False):
        ax.imshow(images[image])
        ax.set_title(f"{name}\ntaken for {other}\n{share:.0%}", fontsize=7)
    plt.close(figure)
    return figure


def learning_curves(cards: dict[str, dict]) -> Figure:
    """Loss and accuracy over epochs for each named run card: training dashed, validation solid."""
    figure, (losses, accuracies) = plt.subplots(1, 2, figsize=(9, 3.2))
    for number, (name, card) in enumerate(cards.items()):
        history, color = card["history"], f"C{number}"
        epochs = range(1, len(history["loss"]) + 1)
        for ax, quantity in ((losses, "loss"), (accuracies, "accuracy")):
            ax.plot(epochs, history[quantity], "--", color=color, marker=".")
            ax.plot(epochs, history[f"val_{quantity}"], color=color, marker=".", label=name)
    losses.set(xlabel="epoch", ylabel="cross-entropy")
    accuracies.set(xlabel="epoch", ylabel="accuracy", ylim=(0, 1))
    for ax in (losses, accuracies):
        ax.grid(alpha=0.3)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    accuracies.legend(title="solid: validation, dashed: training")
    figure.tight_layout()
    plt.close(figure)
    return figure


def scatter(rows: dict[str, dict[str, list]], ylabel: str) -> Figure:
    """Points, {row: {x axis: [(network, tier, x, ys)]}}, at the mean of ys with a bar of a standard deviation each way.

    Networks have their colours and tiers their markers. The panels of a row share their y axis.
    """
    figure, panels = _panels(rows, ylabel)
    found = [point for row in rows.values() for points in row.values() for point in points]
    colors = _colors(network for network, *_ in found)
    for (row, xlabel), ax in panels.items():
        points = rows[row].get(xlabel, [])
        for network, tier, x, ys in points:
            bar = np.std(ys, ddof=1) if len(ys) > 1 else None
            ax.errorbar(x, np.mean(ys), bar, fmt=TIERS.get(tier, "^"), color=colors[network], capsize=3, alpha=0.8)
        ax.set(xlabel=xlabel, xlim=(0, 1.1 * max((x for *_, x, _ in points), default=1)))
        ax.xaxis.set_major_formatter(EngFormatter())
        ax.xaxis.set_major_locator(MaxNLocator(4))
    tiers = sorted({tier for _, tier, *_ in found})
    shapes = {tier: Line2D([], [], color="grey", marker=TIERS.get(tier, "^"), linestyle="") for tier in tiers}
    return _closed(figure, {name: Patch(color=color) for name, color in colors.items()} | shapes)


def bands(rows: dict[str, dict[str, list]], xlabel: str, ylabel: str) -> Figure:
    """Lines over 1, 2, ..., {row: {tier: [(name, runs)]}}: the mean of the runs, in a band of a standard deviation.

    Where runs are of different lengths, the shortest one ends the line. Names are networks, or else begin with a tier,
    which have their colours. The panels of a row share their y axis.
    """
    figure, panels = _panels(rows, ylabel)
    names = [name for row in rows.values() for lines in row.values() for name, _ in lines]
    colors = _colors(names)
    for (row, tier), ax in panels.items():
        for name, runs in rows[row].get(tier, []):
            values = np.array([run[: min(map(len, runs))] for run in runs])
            x, mean = range(1, values.shape[1] + 1), values.mean(axis=0)
            ax.plot(x, mean, color=colors[name], marker=TIERS.get(tier, "^"), markersize=3)
            if len(runs) > 1:
                spread = values.std(axis=0, ddof=1)
                ax.fill_between(x, mean - spread, mean + spread, color=colors[name], alpha=0.2, linewidth=0)
        ax.set(xlabel=xlabel, title=tier)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _closed(figure, {name: Patch(color=color) for name, color in colors.items()})


def _colors(names):
    """A colour for each name, in order; of networks and of tiers it's always the same one."""
    names = sorted(set(names))
    tiers = any(name.partition(",")[0] in TIERS for name in names)
    order = list(dict.fromkeys([*(TIERS if tiers else (kind.title for kind in ARCHITECTURES.values())), *names]))
    return {name: f"C{number}" for number, name in enumerate(order) if name in names}


def _panels(rows, ylabel):
    """A figure, and {(row, column): axis}."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    columns.sort(key=[*TIERS, *columns].index)
    shape = len(rows), len(columns)
    figure, axes = plt.subplots(
        *shape, figsize=(max(3.3 * shape[1], 6), 3.2 * shape[0]), sharey="row", squeeze=False, layout="constrained"
    )
    for row, line in zip(rows, axes, strict=True):
        line[0].set_ylabel(f"{row}\n{ylabel}", parse_math=False)  # data may be called "$"
    for ax in axes.flat:
        ax.grid(alpha=0.3)
    return figure, dict(zip(itertools.product(rows, columns), axes.flat, strict=True))


def _closed(figure, handles):
    """The figure, closed, with a legend in as many columns as it's wide enough for, and higher by its lines."""
    columns = max(1, int(figure.get_figwidth() / (0.08 * max(map(len, handles)) + 0.6)))
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(handles) // columns) + 0.2)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, fontsize=9)
    plt.close(figure)
    return figure
