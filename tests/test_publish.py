"""tools/publish.py: what it takes, which networks, and what they are stored as."""

import json
import shlex

import keras
import numpy as np
import publish
import pytest
import yaml
from test_cards import card

from patchlib import cards, cli, explain, models, networks, notebook, plan, runs
from patchlib.data import load_data
from patchlib.parameters import ARCHITECTURES

FOLDERS = sorted(path.parent for path in (publish.ROOT / "results").glob("*/run.json"))
EXAMPLES = yaml.safe_load((publish.ROOT / "tools" / "examples.yaml").read_text())


def of_tier(architecture, tier, seed=0, test=0.5, **changes):
    """A card of a run as the tier's file has it, but for the changes."""
    values = yaml.safe_load((publish.TIERS / f"{architecture}-{tier}.yaml").read_text())
    parameters = ARCHITECTURES[architecture](**values | changes | {"seed": seed}).model_dump(exclude={"run_dir"})
    return card(test, seed, tier, architecture) | {"parameters": parameters}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of a small network on the digits."""
    folder = tmp_path_factory.mktemp("runs") / "convmixer-fast-digits-seed0"
    p = ARCHITECTURES["convmixer"](
        tier="fast", dataset="digits", dim=16, depth=1, patch_size=4, epochs=2, learning_rate=0.01, batch_size=64
    )
    data = load_data(p.dataset)
    keras.utils.set_random_seed(0)
    model = models.convmixer(data.input_shape, 10, dim=16, depth=1, patch_size=4, dtype="mixed_bfloat16")
    return folder, runs.train(model, data, p, folder)


def test_make_full_makes_every_run_of_the_results():
    lines = (publish.ROOT / "results" / "full.txt").read_text().splitlines()
    asked = [run for line in lines for run in plan.plan(cli._parser().parse_args(["run", *shlex.split(line)]))]
    makes = [run.parameters.model_dump(exclude={"run_dir"}) for run in asked]
    for path in cards.card_files(publish.ROOT / "results"):
        made = cards.load_card(path)
        assert any(not cards.difference(cards.parameters(made), values) for values in makes), path
        assert path.parent.name in {run.folder.name for run in asked}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_kept_answers_give_what_the_card_says(folder):
    made = json.loads((folder / "run.json").read_text())
    with np.load(folder / "predictions.npz") as kept:
        label, predicted, rank = (kept[name].astype(int) for name in ("label", "predicted", "rank"))
        confidence = kept["confidence"].astype(float) if "confidence" in kept else None
    right, classes = predicted == label, len(made["dataset"]["classes"])
    assert len(label) == made["dataset"]["test"] and ((rank == 0) == right).all() and rank.max() < classes
    assert set(label) == set(range(classes)) and set(predicted) <= set(label)
    assert made["metrics"]["test_accuracy"] == right.mean()
    assert made["metrics"]["test_top5"] == (rank < 5).mean()
    assert made["test_accuracy_by_class"] == [right[label == number].mean() for number in range(classes)]
    if confidence is not None:
        bins = np.minimum(np.floor(confidence * 15), 14)
        apart = [abs((confidence - right)[bins == number].sum()) for number in range(15)]
        assert made["calibration"]["error_at_temperature"] == pytest.approx(sum(apart) / len(label), abs=1e-3)


def test_the_answers_to_one_data_set_are_to_the_same_images():
    """Else networks couldn't be compared image by image."""
    labels = {}
    for folder in FOLDERS:
        data = json.loads((folder / "run.json").read_text())["dataset"]
        with np.load(folder / "predictions.npz") as kept:
            known = labels.setdefault(data["name"], kept["label"])
            np.testing.assert_array_equal(kept["label"], known)
    assert sorted(labels) == ["cifar10", "cifar100"]


@pytest.mark.bfloat16
def test_finished_runs_are_taken_and_nothing_is_replaced(trained, tmp_path, capsys):
    folder, made = trained
    (folder.parent / "smoke").mkdir(exist_ok=True)
    (folder.parent / "smoke" / cards.CARD).write_text(json.dumps(card(tier="smoke")))
    (folder.parent / "going on" / "checkpoint-00001").mkdir(parents=True, exist_ok=True)
    (folder.parent / "going on" / cards.CARD).write_text(json.dumps(card()))
    for _ in range(2):
        publish.collect(folder.parent, tmp_path)
    assert capsys.readouterr().out == "taken: convmixer-fast-digits-seed0\n"
    assert [path.name for path in tmp_path.iterdir()] == [folder.name] and cards.load_card(
        tmp_path / folder.name
    ) == made
    assert sorted(path.name for path in (tmp_path / folder.name).iterdir()) == ["predictions.npz", "run.json"]
    (tmp_path / folder.name / cards.CARD).write_text(json.dumps(card()))
    with pytest.raises(SystemExit, match="holds another card than"):
        publish.collect(folder.parent, tmp_path)


def test_the_tuned_networks_are_published_and_fast_ones_while_they_are_missing():
    found = [of_tier("cct", "fast"), of_tier("cct", "tuned", seed=1, test=0.9), of_tier("vit", "baseline")]
    assert publish.wanted(found) == {"cct": found[0]}
    found += [
        of_tier("cct", "tuned", epochs=3),
        of_tier("cct", "tuned"),
        of_tier("gmlp", "tuned"),
        of_tier("gmlp", "fast"),
    ]
    assert publish.wanted(found) == {"cct": found[4], "gmlp": found[5]}


def test_a_command_makes_the_run_again():
    words = publish.command(of_tier("vit", "tuned", seed=2, epochs=7))
    assert words == "patchlib run vit --tier tuned --seed 2 --set epochs=7"


@pytest.mark.bfloat16
def test_a_network_is_stored_small_and_computes_in_float32(trained, tmp_path, capsys):
    folder, made = trained
    publish.publish(made, folder / cards.MODEL, tmp_path)
    capsys.readouterr()
    model, data = networks.load_model(tmp_path / "convmixer-digits.keras"), load_data("digits")
    before = networks.load_model(folder / cards.MODEL)
    assert {layer.compute_dtype for layer in model.layers} == {"float32"} and model.card == made
    assert before.get_layer("stem").compute_dtype == "bfloat16"
    for weight, exact in zip(model.get_weights(), before.get_weights(), strict=True):
        assert weight.dtype == np.float32
        np.testing.assert_array_equal(weight, exact.astype("float16").astype("float32"))
    accuracy = (model.predict(data.validation.images, verbose=0).argmax(1) == data.validation.labels).mean()
    text = (tmp_path / "convmixer-digits.md").read_text()
    assert f"validation accuracy is {100 * accuracy:.2f}% with them" in text
    assert "stored as float16" in " ".join(text.split())
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "mit" and front["datasets"] == ["uoft-cs/digits"]
    answers = np.load(tmp_path / "logits.npz")["convmixer-digits"]
    np.testing.assert_allclose(model.predict(publish.noise(), verbose=0), answers, atol=1e-5)
    rows = notebook.published_lesions(tmp_path / notebook.LESIONS)
    assert [row["without"] for row in rows] == ["nothing", *explain.lesions(model)]
    assert rows[0]["accuracy"] == accuracy and {row["network"] for row in rows} == {"convmixer-digits"}
    for name, changed in {
        "model.keras": False,
        "convmixer-digits.keras": True,
    }.items():  # as it is; or anew, and the same
        first = (tmp_path / "convmixer-digits.keras").read_bytes()
        (tmp_path / name).unlink(missing_ok=True)
        publish.publish(made, folder / cards.MODEL, tmp_path)
        assert (tmp_path / "convmixer-digits.keras").read_bytes() == first
        assert ("published" in capsys.readouterr().out) == changed
    assert notebook.published_lesions(tmp_path / notebook.LESIONS) == rows


@pytest.mark.bfloat16
def test_a_network_that_would_suffer_is_stored_as_it_is(trained, tmp_path, monkeypatch):
    folder, made = trained
    monkeypatch.setattr(publish, "LOSS", -1)
    publish.publish(made, folder / cards.MODEL, tmp_path)
    exact = networks.load_model(folder / cards.MODEL).get_weights()
    for weight, before in zip(
        networks.load_model(tmp_path / "convmixer-digits.keras").get_weights(), exact, strict=True
    ):
        np.testing.assert_array_equal(weight, before)
    assert "stored as float32" in " ".join((tmp_path / "convmixer-digits.md").read_text().split())


def test_the_overview_has_means_over_seeds_and_no_run_that_differs_from_its_tier():
    found = [
        of_tier("cct", "fast", test=0.8),
        of_tier("cct", "fast", 1, 0.81),
        of_tier("cct", "tuned", epochs=3, test=0.9),
    ]
    text = publish.overview(found, EXAMPLES, {"cct": {"fast": 300, "example": 3000}})
    row = next(row for row in text.splitlines() if row.startswith("| CCT"))
    assert row == "| CCT | CIFAR-10 | 77.61 | 30 |  | 80.50 ± 0.71 (2) | 5 | 10.0% |  |  | 283,723 |"


def test_the_headline_is_the_smallest_and_the_largest_gain_and_says_who_trained_for_longer():
    found = [
        of_tier("cct", "tuned", test=0.8361),
        of_tier("cct", "tuned", 1, 0.8161),
        of_tier("gmlp", "fast", test=0.1),
    ]
    found += [of_tier("fnet", "tuned", test=0.4763), of_tier("fnet", "tuned", epochs=3, test=0.9)]
    text = publish.headline(found, EXAMPLES)
    assert text.endswith(" add 1.0 to 5.0 points to the examples.")
    found.append(of_tier("convmixer", "tuned", test=0.8669))
    assert publish.headline(found, EXAMPLES).endswith(" examples (ConvMixer in 25 epochs, not 10).")


def test_how_far_baselines_are_from_their_examples_and_what_else_falls_short_is_said():
    found = [
        of_tier("cct", "baseline", test=0.7661),
        of_tier("convmixer", "baseline", test=0.8569),
        of_tier("mlp_mixer", "baseline", test=0.4858),
        of_tier("vit", "fast", test=0.1),
        of_tier("cct", "fast", test=0.78),
    ]
    text = publish.distances(found, EXAMPLES)
    assert text.endswith(": ConvMixer +2.0, CCT −1.0, MLP-Mixer +1.0. Every `fast` and `tuned` is above its example.")
    assert publish.distances([*found, of_tier("fnet", "fast", test=0.4563)], EXAMPLES).endswith(
        "Short of theirs: FNet's `fast` by 1.0."
    )


def test_a_tier_on_other_data_is_no_row_of_the_overview():
    found = [of_tier("cct", "fast", test=0.8), of_tier("cct", "fast", dataset="cifar100", test=0.1)]
    found[1]["dataset"] = found[1]["dataset"] | {"name": "cifar100"}
    assert "| CCT | CIFAR-10 | 77.61 | 30 |  | 80.00 (1) |" in publish.overview(found, EXAMPLES, {})
