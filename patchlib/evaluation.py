"""What logits say of a classifier: ranks of the true class, accuracy by class, calibration, agreement with another.

NumPy and SciPy alone.
"""

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
    """
    places = np.argsort(np.argsort(-logits, axis=1, kind="stable"), axis=1, kind="stable")
    return places[np.arange(len(labels)), labels]


def accuracy_by_class(rank: np.ndarray, labels: np.ndarray, num_classes: int) -> list[float | None]:
    """The accuracy among each class' images; None where there's no image."""
    of_class = [rank[labels == label] for label in range(num_classes)]
    return [float((part == 0).mean()) if len(part) else None for part in of_class]


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Logits (N, classes), divided by the temperature, as float64 that add up to 1 in each row."""
    return special.softmax(logits.astype("float64") / temperature, axis=1)


def calibration_error(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """How far confidence and accuracy lie apart, on average over ``BINS`` bins of confidence of equal width.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (2017), eqs. 3 to 5.
    """
    confidence, right = probabilities(logits, temperature).max(axis=1), ranks(logits, labels) == 0
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs((confidence - right)[bins == b].sum()) for b in range(BINS)]
    return float(sum(gaps) / len(labels))


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
