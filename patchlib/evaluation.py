"""What logits say of a classifier: ranks of the true class, accuracy by class, calibration. NumPy and SciPy alone."""

import numpy as np
from scipy import optimize, special

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


def calibration_error(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """How far confidence and accuracy lie apart, on average over ``BINS`` bins of confidence of equal width.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (2017), eqs. 3 to 5.
    """
    probabilities = special.softmax(logits.astype("float64") / temperature, axis=1)
    confidence, right = probabilities.max(axis=1), ranks(logits, labels) == 0
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs((confidence - right)[bins == b].sum()) for b in range(BINS)]
    return float(sum(gaps) / len(labels))


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The number that logits are best divided by, for the least cross-entropy (Guo et al., 2017, section 4.2)."""

    def loss(log_temperature):
        shares = special.log_softmax(logits.astype("float64") / np.exp(log_temperature), axis=1)
        return -shares[np.arange(len(labels)), labels].mean()

    return float(np.exp(optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))
