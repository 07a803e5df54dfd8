"""What answers say of a classifier: ranks of the true class, accuracy, calibration, errors, agreement with another."""

from collections.abc import Sequence

import numpy as np
from scipy import optimize, special, stats

BINS = 15  # of confidence, as Guo et al. have


def ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes come before the true one, by logit and then by number: 0 where the answer is right.

    Args:
        logits: float (N, classes).
        labels: int (N,).

    Returns:
        int (N,). The share of zeros is the accuracy, the share below five the top-5 accuracy.

    Raises:
        FloatingPointError: a logit isn't a finite number.
    """
    _refuse_unfinite(logits)
    places = np.argsort(np.argsort(-logits, axis=1, kind="stable"), axis=1, kind="stable")
    return places[np.arange(len(labels)), labels]


def accuracy_by_class(rank: np.ndarray, labels: np.ndarray, num_classes: int) -> list[float | None]:
    """The accuracy among each class' images; None where there's no image."""
    of_class = [rank[labels == label] for label in range(num_classes)]
    return [float((part == 0).mean()) if len(part) else None for part in of_class]


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Logits (N, classes), divided by the temperature, as float64 that add up to 1 in each row.

    Raises:
        FloatingPointError: a logit isn't a finite number.
    """
    _refuse_unfinite(logits)
    return special.softmax(logits.astype("float64") / temperature, axis=1)


def _refuse_unfinite(logits):
    if broken := int((~np.isfinite(logits)).any(axis=1).sum()):
        raise FloatingPointError(
            f"the network's answers to {broken:,} of {len(logits):,} images aren't finite numbers."
        )


def calibration_error(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """How far confidence and accuracy lie apart, on average over ``BINS`` bins of confidence of equal width.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (2017), eqs. 3 to 5.
    """
    return _error(calibration(probabilities(logits, temperature).max(axis=1), ranks(logits, labels) == 0))


def calibration(confidence: np.ndarray, right: np.ndarray) -> list[tuple[float, float, int]]:
    """For each bin of confidence that has images: their mean confidence, their accuracy, and how many there are."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    chosen = [bins == b for b in np.unique(bins)]
    return [(float(confidence[c].mean()), float(right[c].mean()), int(c.sum())) for c in chosen]


def _error(calibrated):
    confidence, accuracy, images = np.array(calibrated).T
    return float((images * abs(confidence - accuracy)).sum() / images.sum())


def tables(
    labels: np.ndarray,
    predicted: np.ndarray,
    confidence: np.ndarray,
    classes: Sequence[str],
    files: np.ndarray | None = None,
) -> dict[str, list]:
    """Where a classifier is right and where it is wrong, as tables, each a list of rows under a row of names.

    Args:
        labels, predicted: int (N,), what each image is and what it's taken for.
        confidence: float (N,), the probability of the latter.
        classes: names, in the order of the labels.
        files: (N,), the images' paths, if they have any.

    Returns:
        ``accuracy``: with its 95% interval (Wilson, 1927) and the error of calibration. ``classes``: precision and
        recall of each; nan where nothing is taken for it, or nothing belongs to it. ``confusion``: how many images of
        a row's class are taken for a column's. ``calibration``: as the function has it. ``mistakes``: the wrong
        answers by the number of the image, and its file, the surest first.
    """
    from sklearn import metrics  # here, because it takes a second to import

    numbers, names, right = range(len(classes)), np.array(classes), labels == predicted
    interval = stats.binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    calibrated, wrong = calibration(confidence.astype("float64"), right), np.flatnonzero(~right)
    accuracy = len(right), right.mean(), interval.low, interval.high, _error(calibrated)
    precision, recall, _, images = metrics.precision_recall_fscore_support(
        labels, predicted, labels=numbers, zero_division=np.nan
    )
    matrix = metrics.confusion_matrix(labels, predicted, labels=numbers).tolist()
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
    mistakes = [wrong, names[labels[wrong]], names[predicted[wrong]], confidence[wrong]]
    mistakes += [] if files is None else [files[wrong]]
    return {
        "accuracy": [("images", "accuracy", "low", "high", "calibration_error"), accuracy],
        "classes": [("class", "images", "precision", "recall"), *zip(classes, images, precision, recall, strict=True)],
        "confusion": [("class", *classes), *((name, *row) for name, row in zip(classes, matrix, strict=True))],
        "calibration": [("confidence", "accuracy", "images"), *calibrated],
        "mistakes": [
            ("image", "class", "taken_for", "confidence", "file")[: len(mistakes)],
            *zip(*mistakes, strict=True),
        ],
    }


def headline(found: dict[str, list]) -> str:
    """The accuracy in ``tables``, its interval and the error of calibration, in a line."""
    _, (images, accuracy, low, high, error) = found["accuracy"]
    return (
        f"accuracy {accuracy:.4f} on {images:,} test images, 95% interval {low:.4f} to {high:.4f}; "
        f"calibration error {error:.4f}"
    )


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The number that logits are best divided by, for the least cross-entropy (Guo et al., 2017, section 4.2)."""

    def loss(log_temperature):
        shares = special.log_softmax(logits.astype("float64") / np.exp(log_temperature), axis=1)
        return -shares[np.arange(len(labels)), labels].mean()

    return float(np.exp(optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def agreement(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Whether two classifiers err on the same images.

    Args:
        first, second: int (N,), the true class' ranks by each of them, for the same images.

    Returns:
        How many images both get right, the first alone, the second alone, and neither. ``kappa``: error consistency, 1
        if they err on the same images, 0 if as often on the same ones as by chance (Cohen's kappa of being right;
        Geirhos et al., "Beyond accuracy", 2020); nan if neither ever errs, or ever is right. ``most``: the largest
        kappa of two classifiers of these accuracies, 1 if they are equal. ``p``: the probability of a difference in
        accuracy this large or larger, were both equally good (McNemar's exact test).
    """
    one, other = first == 0, second == 0
    alone = int((one & ~other).sum()), int((other & ~one).sum())
    same, chance = (one == other).mean(), one.mean() * other.mean() + (~one).mean() * (~other).mean()
    alike = 1 - abs(one.mean() - other.mean())  # of how many both could be right, or both wrong
    return {
        "both": int((one & other).sum()),
        "first": alone[0],
        "second": alone[1],
        "neither": int((~one & ~other).sum()),
        "kappa": float((same - chance) / (1 - chance)) if chance < 1 else float("nan"),
        "most": float((alike - chance) / (1 - chance)) if chance < 1 else float("nan"),
        "p": float(stats.binomtest(alone[0], sum(alone)).pvalue) if sum(alone) else 1.0,
    }
