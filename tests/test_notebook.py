"""What all notebooks do alike: what it shows, and of which network."""

import json

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
from test_cards import card, write

from patchlib import explain, models, networks, notebook, pictures, runs
from patchlib.data import load_data
from patchlib.parameters import ARCHITECTURES, ConvMixer
from patchlib.plan import NOTEBOOKS, parameters_cell

DIGITS = load_data("digits")
SMOKE = ConvMixer(**parameters_cell(NOTEBOOKS / "convmixer.ipynb"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    p = ConvMixer(**SMOKE.model_dump() | {"dim": 8, "depth": 1, "epochs": 1, "tier": "tiny"})
    model = models.build(p, DIGITS)
    return model, p, runs.train(model, DIGITS, p, folder), folder


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_smoke_run_is_known_by_its_parameters(name):
    kind = ARCHITECTURES[name]
    smoke = kind(**parameters_cell(NOTEBOOKS / f"{name}.ipynb"))
    assert smoke.is_smoke(), "the parameters cell has changed: give the class the digest of what it says now"
    values = smoke.model_dump() | {"run_dir": "elsewhere"}
    assert kind(**values).is_smoke()
    for change in ({"dim": 2 * smoke.dim}, {"dataset": "photos"}, {"tier": "tuned"}, {"seed": 1}, {"epochs": 9}):
        assert not kind(**values | change).is_smoke()


def test_the_first_look_is_at_the_training_images(capsys):
    figure = notebook.first_look(DIGITS)
    assert [ax.get_title() for ax in figure.axes] == [DIGITS.classes[label] for label in DIGITS.train.labels[:16]]
    np.testing.assert_array_equal(figure.axes[3].images[0].get_array(), DIGITS.train.images[3])
    said = capsys.readouterr().out
    assert f"uint8 {DIGITS.train.images.shape} from 0 to 255" in said
    assert str(np.bincount(DIGITS.train.labels)) in said


def test_a_finished_run_is_checked_and_its_curves_are_saved(finished, capsys):
    model, p, made, folder = finished
    figure = notebook.finished(model, DIGITS, p, made, folder)
    assert figure.axes[0].lines[1].get_ydata().tolist() == made["history"]["val_loss"]
    assert plt.imread(folder / "curves.png").ndim == 3
    assert "adamw at 1 of the rate" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="validation accuracy"):
        notebook.finished(model, DIGITS, p, made | {"metrics": made["metrics"] | {"val_accuracy": 0.999}}, folder)
    other = models.build(p.model_copy(update={"seed": 5}), DIGITS)
    other.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
    with pytest.raises((AssertionError, AttributeError)):
        notebook.finished(other, DIGITS, p, made, folder)


def test_where_it_is_wrong_comes_from_the_stored_answers_to_the_test_images(finished, capsys, monkeypatch):
    model, _, made, folder = finished
    monkeypatch.setattr(type(model), "predict", None)  # the test images are used once
    figure = notebook.where_it_is_wrong(DIGITS, folder)
    said = capsys.readouterr().out
    assert said.startswith(f"accuracy {made['metrics']['test_accuracy']:.4f} on {len(DIGITS.test)} test images")
    error = float(said.rpartition(" ")[2])
    assert error == pytest.approx(made["calibration"]["error_at_temperature"], abs=2e-3)
    with np.load(folder / "predictions.npz") as stored:
        surest = int(np.where(stored["label"] != stored["predicted"], stored["confidence"], 0).argmax())
    np.testing.assert_array_equal(figure.axes[2].images[0].get_array(), DIGITS.test.images[surest])


def test_full_runs_are_the_architectures_own_and_of_own_data_the_run_itself(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda output: shown.append(output.data))
    write(tmp_path, a=card(0.7), b=card(0.8, seed=1), c=card(0.1, architecture="vit"))
    figure = notebook.full_runs(card(0.5) | {"dataset": card()["dataset"] | {"name": "digits"}}, tmp_path)
    assert "75.00 ± 7.07" in shown[0] and "vit" not in shown[0] and len(shown) == 1
    assert len(figure.axes) == 1
    own = card(0.321) | {"dataset": card()["dataset"] | {"name": "photos"}}
    notebook.full_runs(own, tmp_path)
    assert "32.10" in shown[1] and "75.00" not in shown[1] and len(shown) == 2
    write(tmp_path, d=card(0.6, pad=0))
    notebook.full_runs(card(0.5) | {"dataset": card()["dataset"] | {"name": "digits"}}, tmp_path)
    assert "pad 0 → 4" in shown[3]


def test_the_curves_of_full_runs_are_of_the_data_on_which_most_tiers_ran(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda output: shown.append(output.data))
    elsewhere = card(0.3, tier="fast")
    elsewhere["dataset"] |= {"name": "cifar100"}
    write(tmp_path, a=card(0.7), b=card(0.6, tier="fast"), c=elsewhere)
    figure = notebook.full_runs(card(0.5) | {"dataset": card()["dataset"] | {"name": "digits"}}, tmp_path)
    assert "cifar100" in shown[0] and [ax.get_title() for ax in figure.axes] == ["fast", "tuned"]
    assert figure.axes[0].get_ylabel().startswith("cifar10,")


def test_the_published_network_is_drawn_after_the_smoke_run_alone(finished, tmp_path, monkeypatch):
    model, _, _, folder = finished
    (tmp_path / "convmixer-cifar10.keras").write_bytes((folder / "model.keras").read_bytes())
    monkeypatch.setattr(networks, "PUBLISHED", tmp_path)
    found, images = notebook.drawn(model, DIGITS, SMOKE)
    assert list(found) == ["this run", "convmixer-cifar10"] and found["this run"] is model
    np.testing.assert_array_equal(images, pictures.photographs(32))
    for change in ({"dim": 8}, {"dataset": "photos"}, {"tier": "tuned"}):
        found, images = notebook.drawn(model, DIGITS, SMOKE.model_copy(update=change))
        assert list(found) == ["this run"]
        np.testing.assert_array_equal(images, DIGITS.test.images[:2])
    monkeypatch.setattr(networks, "PUBLISHED", tmp_path / "nothing")
    assert list(notebook.drawn(model, DIGITS, SMOKE)[0]) == ["this run"]


def test_lesions_are_counted_here_and_read_for_the_published_network(finished, tmp_path, monkeypatch):
    model = finished[0]
    rows = [{"without": "nothing", "accuracy": 0.9, "difference": 0.0, "standard_error": 0.0}]
    lines = ["network,without,accuracy,difference,standard_error", "convmixer-cifar10,nothing,0.9,0.0,0.0"]
    (tmp_path / notebook.LESIONS).write_text("\n".join([*lines, "vit-cifar10,nothing,0.1,0.0,0.0"]))
    monkeypatch.setattr(networks, "PUBLISHED", tmp_path)
    own = explain.lesion(model, DIGITS.validation)
    expected = explain.lesion_table({"this run": own, "convmixer-cifar10": rows})
    assert notebook.lesions(model, DIGITS, SMOKE) == expected
    assert notebook.lesions(model, DIGITS, SMOKE.model_copy(update={"seed": 1})) == explain.lesion_table(
        {"this run": own}
    )


@pytest.mark.parametrize("name", networks.published())
def test_every_published_network_has_its_lesions_and_they_begin_with_the_whole(name):
    rows = [row for row in notebook.published_lesions(networks.PUBLISHED / notebook.LESIONS) if row["network"] == name]
    model = networks.load_model(name)
    assert [row["without"] for row in rows] == ["nothing", *explain.lesions(model)]
    said = json.loads(json.dumps(model.card))["metrics"]["val_accuracy"]
    assert abs(rows[0]["accuracy"] - said) < 5e-3, "as float16 and in float32"


def test_the_published_networks_are_drawn_side_by_side(monkeypatch):
    asked = []

    def influence(model, images, block, directions):
        asked.append((model.name, len(images), block))
        return np.random.default_rng(0).random((2, 16, 16))

    monkeypatch.setattr(notebook.explain, "influence", influence)
    figure = notebook.who_hears_whom()
    assert asked == [(name, 2, "block_1") for name in ARCHITECTURES if f"{name}-" in " ".join(networks.published())]
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == [
        kind.title for name, kind in ARCHITECTURES.items() if f"{name}-" in " ".join(networks.published())
    ]
