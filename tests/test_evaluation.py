import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from patchlib import evaluation


def some(count=400, classes=7, seed=0):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(count, classes))
    labels = np.array([rng.choice(classes, p=np.exp(row) / np.exp(row).sum()) for row in logits])
    return logits, labels


def test_answers_that_are_no_numbers_are_refused():
    logits = np.zeros((1200, 2))
    logits[7, 1] = logits[1000, 0] = np.nan
    for count in (evaluation.probabilities, lambda logits: evaluation.ranks(logits, np.zeros(1200, int))):
        with pytest.raises(FloatingPointError, match="answers to 2 of 1,200 images aren't finite numbers"):
            count(logits)


def test_ranks_make_accuracies():
    logits, labels = some()
    rank = evaluation.ranks(logits, labels)
    assert (rank == 0).tolist() == (logits.argmax(axis=1) == labels).tolist()
    for k in (1, 3, 5):
        expected = metrics.top_k_accuracy_score(labels, logits, k=k, labels=range(7))
        assert (rank < k).mean() == pytest.approx(expected)


def test_of_equal_logits_the_first_comes_first():
    assert evaluation.ranks(np.zeros((3, 3)), np.arange(3)).tolist() == [0, 1, 2]


def test_accuracy_by_class_is_the_confusion_matrix_diagonal():
    logits, labels = some()
    labels[labels == 4] = 5
    found = evaluation.accuracy_by_class(evaluation.ranks(logits, labels), labels, 7)
    confusion = metrics.confusion_matrix(labels, logits.argmax(axis=1), labels=range(7))
    for label, accuracy in enumerate(found):
        assert (
            accuracy is None
            if label == 4
            else accuracy == pytest.approx(confusion[label, label] / confusion[label].sum())
        )


def test_calibration_error_is_the_mean_gap_between_confidence_and_accuracy():
    # Ten answers of confidence 0.8, of which six are right, and ten of 0.6, of which nine are.
    confident, unsure = np.log([[0.8, 0.2]] * 10), np.log([[0.6, 0.4]] * 10)
    labels = np.array([0] * 6 + [1] * 4 + [0] * 9 + [1])
    assert evaluation.calibration_error(np.concatenate([confident, unsure]), labels) == pytest.approx((0.2 + 0.3) / 2)


def rows(table):
    names, *values = table
    return [dict(zip(names, row, strict=True)) for row in values]


def answered(count=400, classes=7):
    logits, labels = some(count, classes)
    shares = evaluation.probabilities(logits)
    return labels, shares.argmax(axis=1), shares.max(axis=1)


def test_the_tables_count_what_was_taken_for_what():
    labels, predicted, confidence = answered()
    labels[labels == 4] = 5
    predicted[predicted == 2] = 3
    found = evaluation.tables(labels, predicted, confidence, list("abcdefg"))
    for row, taken in zip(rows(found["classes"]), rows(found["confusion"]), strict=True):
        own = "abcdefg".index(row["class"])
        assert taken == {"class": row["class"]} | {
            name: ((labels == own) & (predicted == other)).sum() for other, name in enumerate("abcdefg")
        }
        hits = taken[row["class"]]
        assert row["images"] == (labels == own).sum()
        assert row["recall"] == pytest.approx(hits / row["images"] if own != 4 else np.nan, nan_ok=True)
        of = (predicted == own).sum()
        assert row["precision"] == pytest.approx(hits / of if own != 2 else np.nan, nan_ok=True)


def test_the_accuracy_has_wilsons_interval():
    labels = np.zeros(20, int)
    found = evaluation.tables(labels, np.arange(20) // 18, np.full(20, 0.9), ["a", "b"])
    (row,) = rows(found["accuracy"])
    share, z, count = 0.9, stats.norm.ppf(0.975), 20
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    expected = {"accuracy": share, "low": middle - half, "high": middle + half, "calibration_error": 0.0}
    assert row == pytest.approx({"images": 20} | expected, abs=1e-9)
    said = f"accuracy 0.9000 on 20 test images, 95% interval {middle - half:.4f} to {middle + half:.4f}; "
    assert evaluation.headline(found).startswith(said)


def test_the_calibration_in_the_tables_is_that_of_its_error():
    logits, labels = some()
    shares = evaluation.probabilities(logits, 0.5)
    found = evaluation.tables(labels, shares.argmax(axis=1), shares.max(axis=1), list("abcdefg"))
    bins = rows(found["calibration"])
    assert sum(row["images"] for row in bins) == len(labels) and len(bins) > 5
    assert sorted(row["confidence"] for row in bins) == [row["confidence"] for row in bins]
    gap = sum(row["images"] * abs(row["confidence"] - row["accuracy"]) for row in bins) / len(labels)
    assert rows(found["accuracy"])[0]["calibration_error"] == pytest.approx(gap)
    assert gap == pytest.approx(evaluation.calibration_error(logits, labels, 0.5))


def test_the_mistakes_are_the_wrong_answers_the_surest_first():
    labels, predicted, confidence = answered()
    found = rows(evaluation.tables(labels, predicted, confidence.astype("float16"), list("abcdefg"))["mistakes"])
    assert sorted(row["image"] for row in found) == np.flatnonzero(labels != predicted).tolist()
    assert [row["confidence"] for row in found] == sorted((row["confidence"] for row in found), reverse=True)
    for row in found:
        wanted = labels[row["image"]], predicted[row["image"]], confidence[row["image"]]
        assert ("abcdefg".index(row["class"]), "abcdefg".index(row["taken_for"])) == wanted[:2]
        assert row["confidence"] == pytest.approx(wanted[2], abs=1e-3)


def test_who_is_never_wrong_has_no_mistakes():
    labels = np.arange(6) % 2
    assert rows(evaluation.tables(labels, labels, np.ones(6), ["a", "b"])["mistakes"]) == []


def test_temperature_undoes_overconfidence():
    logits, labels = some(20_000)
    assert evaluation.temperature(logits, labels) == pytest.approx(1, abs=0.05)
    found = evaluation.temperature(3 * logits, labels)
    assert found == pytest.approx(3, rel=0.05)
    assert evaluation.calibration_error(3 * logits, labels) > 0.1
    assert evaluation.calibration_error(3 * logits, labels, found) < 0.02
    same = evaluation.calibration_error(logits, labels)
    assert evaluation.calibration_error(3 * logits, labels, 3.0) == pytest.approx(same, abs=1e-3)


def test_agreement_counts_who_is_right_where():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 3, 500), rng.integers(0, 2, 500)
    second[:200] = first[:200]
    found = evaluation.agreement(first, second)
    both, neither = ((first == 0) & (second == 0)).sum(), ((first > 0) & (second > 0)).sum()
    assert (found["both"], found["neither"]) == (both, neither)
    assert (
        found["both"] + found["first"] == (first == 0).sum() and found["both"] + found["second"] == (second == 0).sum()
    )
    assert found["kappa"] == pytest.approx(metrics.cohen_kappa_score(first == 0, second == 0))
    alike = np.sort(first == 0), np.sort(second == 0)  # as many right, and as often together as can be
    assert found["most"] == pytest.approx(metrics.cohen_kappa_score(*alike))
    fewer = min(found["first"], found["second"])
    tail = stats.binom.cdf(fewer, found["first"] + found["second"], 0.5)
    assert found["p"] == pytest.approx(2 * tail)


def test_agreement_with_itself_and_where_nobody_errs():
    rank = np.arange(10) % 3
    alike = evaluation.agreement(rank, rank)
    assert (alike["first"], alike["second"], alike["kappa"], alike["most"], alike["p"]) == (0, 0, 1, 1, 1)
    assert np.isnan(evaluation.agreement(np.zeros(5), np.zeros(5))["kappa"])
