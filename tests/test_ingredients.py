"""tools/ingredients.py: starts that do what they say, and a table that adds up."""

import keras
import numpy as np
import pytest
from ingredients import (
    EVERY,
    INGREDIENTS,
    Average,
    Freeze,
    Repeat,
    covariance,
    local,
    mimetic,
    nonzero_mean,
    orthogonal,
    table,
)
from test_training import changed, small_model, tiny

from patchlib import models, training
from patchlib.parameters import ARCHITECTURES

pytestmark = pytest.mark.usefixtures("eagerly")


def started(architecture, start, **arguments):
    """{path: (value before, value after)} of the weights that a start changed."""
    keras.utils.set_random_seed(0)
    model = getattr(models, architecture)(**arguments)
    before = [np.array(w) for w in model.weights]
    start(model, np.random.default_rng(0))
    pairs = zip(model.weights, before, strict=True)
    return {w.path: (b, np.array(w)) for w, b in pairs if not np.array_equal(w, b)}


def test_mimetic_attention_looks_at_what_is_alike():
    kernels = {path: after for path, (_, after) in started("vit", mimetic, dim=64, heads=2, depth=1).items()}
    query, key, value, output = (kernels[f"block_0/attention/{n}/kernel"] for n in ("query", "key", "value", "output"))
    assert len(kernels) == 4
    for head in (slice(0, 32), slice(32, 64)):
        product = query[:, head] @ key[:, head].T
        assert np.diag(product).mean() > 0.3 and np.abs(product - np.diag(np.diag(product))).mean() < 0.1
    assert np.diag(value @ output).mean() == pytest.approx(-0.4, abs=0.1)


def test_kernels_start_smooth_and_wider_in_later_blocks():
    kernels = [after[..., 0] for _, after in started("convmixer", covariance, dim=500, depth=3).values()]
    shares, neighbours = [], []
    for kernel in kernels:
        energy = (kernel**2).mean(axis=-1)
        shares.append(energy[2, 2] / energy.sum())
        neighbours.append(np.corrcoef(kernel[2, 2], kernel[2, 3])[0, 1])
    assert len(kernels) == 3 and shares == sorted(shares, reverse=True) and shares[0] > 1.5 * shares[2]
    assert neighbours == sorted(neighbours) and neighbours[2] > 0.7


@pytest.mark.parametrize(("architecture", "count"), [("mlp_mixer", 2), ("gmlp", 1)])
def test_local_weights_reach_the_neighbours(architecture, count):
    changed = (
        started(architecture, local, depth=1, tokens_dim=64) if count == 2 else started(architecture, local, depth=1)
    )
    assert len(changed) == count
    for before, after in changed.values():
        largest = np.abs(after).max(axis=1)
        assert after.std() == pytest.approx(before.std(), rel=1e-3)
        assert np.median(np.abs(after)) < 0.05 * np.median(largest)


@pytest.mark.parametrize("architecture", EVERY)
def test_the_first_weights_get_a_mean(architecture):
    changed = started(architecture, nonzero_mean, depth=2)
    assert len(changed) == 2
    for before, after in changed.values():
        np.testing.assert_allclose(after - before, before.std() / 2, rtol=1e-4)


def test_matrices_start_orthogonal_and_as_long_as_before():
    changed = started("gmlp", orthogonal, depth=2, dim=64, hidden_dim=128)
    assert len(changed) == 2 * 3  # expand, gate, project
    for before, after in changed.values():
        smaller = after if after.shape[0] <= after.shape[1] else after.T
        product = smaller @ smaller.T
        assert after.std() == pytest.approx(before.std(), rel=1e-3)
        np.testing.assert_allclose(product / product[0, 0], np.eye(len(product)), atol=1e-4)


def test_an_average_is_judged_and_training_goes_on_from_the_weights_themselves():
    recipe, data = changed(), tiny()
    usual, averaged = small_model(recipe.seed), small_model(recipe.seed)
    ends = [usual.get_weights() for _ in training.epochs(usual, data, recipe, training.Progress())]
    steps, progress = [], training.Progress()
    look = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: steps.append(averaged.get_weights()))
    for end, _ in zip(
        ends, training.epochs(averaged, data, recipe, progress, [look, Average(data.train)]), strict=True
    ):
        for reached, expected in zip(averaged.get_weights(), end, strict=True):
            np.testing.assert_array_equal(reached, expected)
    kept = steps[0]
    for weights in steps[: (progress.best_epoch + 1) * training.count_steps(data.train, recipe)]:
        kept = [0.98 * old + 0.02 * new for old, new in zip(kept, weights, strict=True)]
    for reached, expected in zip(averaged.get_weights(), kept, strict=True):
        np.testing.assert_allclose(reached, expected, rtol=1e-5, atol=1e-7)


def test_the_images_of_least_loss_give_their_places_to_others():
    recipe, data = changed(epochs=2), tiny()
    model, whole, seen = small_model(recipe.seed), np.array(data.train.images), []
    repeat = Repeat(data.train)

    def losses(epoch, logs):
        seen.append(keras.losses.sparse_categorical_crossentropy(repeat.whole.labels, model(whole), from_logits=True))

    look = keras.callbacks.LambdaCallback(on_epoch_end=losses)
    labels = {image.tobytes(): label for image, label in zip(whole, data.train.labels, strict=True)}
    list(training.epochs(model, data, recipe, training.Progress(), [look, repeat]))
    assert len(labels) == len(whole)
    easiest = np.argsort(np.array(seen[0]))[: len(whole) // 3]
    trained = {image.tobytes(): label for image, label in zip(data.train.images, data.train.labels, strict=True)}
    assert set(trained) == set(labels) - {whole[index].tobytes() for index in easiest}
    assert all(labels[image] == label for image, label in trained.items())


def test_the_first_half_keeps_its_weights_in_the_last_epoch():
    recipe, data = changed(epochs=2), tiny()
    model, ends = small_model(recipe.seed, depth=2), []
    for _ in training.epochs(model, data, recipe, training.Progress(), [Freeze(data.train)]):
        ends.append({weight.path: np.array(weight) for weight in model.trainable_weights})
    same = {path for path in ends[0] if np.array_equal(ends[0][path], ends[1][path])}
    later = {path for path in ends[0] if path.startswith(("block_1", "head"))}
    assert same and later and same == set(ends[0]) - later, set(ends[0])


def test_every_parameter_of_an_ingredient_exists():
    for change, architectures in INGREDIENTS.values():
        for architecture in architectures:
            if isinstance(change, dict):
                assert set(change) <= set(ARCHITECTURES[architecture].model_fields)


def test_gains_are_paired_by_seed():
    def card(ingredient, seed, accuracy):
        return {
            "architecture": "cct",
            "ingredient": ingredient,
            "seed": seed,
            "metrics": {"val_accuracy": accuracy},
        }

    usual = [card("unchanged", 0, 0.5), card("unchanged", 1, 0.6), card("unchanged", 2, 0.9)]
    found = table([*usual, card("no decay", 1, 0.63), card("no decay", 0, 0.51)])
    rows = {row.split("|")[1].strip(): row for row in found.splitlines()}
    assert "| 66.7 (3) |" in rows["unchanged"] and "| +2.0 ± 1.0 (2) |" in rows["no decay"]
    assert "(" not in rows["non-zero mean"]
