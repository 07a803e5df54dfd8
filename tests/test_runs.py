import datetime
import importlib.util
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from test_training import RECIPE, Recorder, changed, small_model, tiny

from patchlib import cards, compare, evaluation, models, networks, runs, surgery, training
from patchlib.data import Data, Split
from patchlib.parameters import ConvMixer, Recipe
from patchlib.schema import ParameterError

pytestmark = pytest.mark.usefixtures("eagerly")

KEYS = [
    "schema",
    "architecture",
    "tier",
    "parameters",
    "effective_weight_decay",
    "dtype_policy",
    "updates",
    "steps_per_epoch",
    "seed",
    "dataset",
    "model",
    "history",
    "best_epoch",
    "metrics",
    "test_accuracy_by_class",
    "calibration",
    "weights",
    "time",
    "hardware",
    "versions",
    "machines",
    "command",
    "started",
    "finished",
]


class Stop(Exception):
    pass


def stop(folder, monkeypatch, model, after=1, recipe=RECIPE):
    """Interrupt a run once it has written its checkpoint after so many epochs."""
    keep = runs._checkpoint

    def keep_and_stop(where, progress, record):
        keep(where, progress, record)
        if progress.epoch == after:
            raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(runs, "_checkpoint", keep_and_stop)
        runs.train(model, tiny(), recipe, folder)


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.name != ".lock")


@pytest.mark.jax
def test_a_run_leaves_a_card_and_a_model_in_its_folder_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    card = runs.train(small_model(), tiny(), RECIPE, tmp_path / "run")
    assert names(tmp_path) == ["model.keras", "predictions.npz", "run", "run.json"]
    assert list(card) == KEYS
    assert cards.load_card(tmp_path / "run") == card == json.loads((tmp_path / "run" / "run.json").read_text())
    counts = {"train": 48, "validation": 12, "test": 12}
    counts |= {"split": "own", "duplicates": {"validation": 0, "test": 0}}
    assert card["dataset"] == {"name": "tiny", "fingerprint": "tiny-0", **counts, "classes": ["a", "b", "c"]}
    assert card["effective_weight_decay"] == RECIPE.learning_rate * RECIPE.weight_decay
    assert {len(values) for values in card["history"].values()} == {RECIPE.epochs}
    assert card["metrics"]["test_top5"] is None  # of three classes
    loaded, test = keras.saving.load_model(tmp_path / "run" / "model.keras"), tiny().test
    assert not loaded.compiled
    counted = (loaded.predict(test.images, verbose=0).argmax(axis=1) == test.labels).mean()
    np.testing.assert_allclose(card["metrics"]["test_accuracy"], counted, atol=1e-6)


@pytest.mark.usefixtures("compiled")
@pytest.mark.jax
def test_every_number_of_a_card_is_what_it_says(tmp_path, capsys):
    """Recomputed from the saved model's predictions, the data and the model, and from nothing of the package's own."""
    rng = np.random.default_rng(0)
    splits = [Split(rng.integers(0, 256, (n, 6, 6, 3), dtype="uint8"), rng.integers(0, 6, n)) for n in (50, 31, 33)]
    data = Data("noise", *splits, tuple("abcdef"), "noise")
    keras.utils.set_random_seed(3)
    model = models.convmixer((6, 6, 3), 6, dim=8, depth=1, kernel_size=3, batchnorm_momentum=0.5)
    recipe = Recipe(epochs=5, batch_size=12, learning_rate=0.1, weight_decay=0.3, seed=4)
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    card = runs.train(model, data, recipe, tmp_path)

    predicted = [keras.saving.load_model(tmp_path / "model.keras").predict(s.images, verbose=0) for s in splits]
    ranks = [(p > np.take_along_axis(p, s.labels[:, None], 1)).sum(1) for p, s in zip(predicted, splits, strict=True)]
    (_, validated, tested), history = ranks, card["history"]
    assert card["metrics"] == {
        "val_accuracy": pytest.approx((validated == 0).mean(), abs=1e-6),
        "test_accuracy": pytest.approx((tested == 0).mean(), abs=1e-6),
        "test_top5": pytest.approx((tested < 5).mean(), abs=1e-6),
    }
    assert card["metrics"]["test_accuracy"] < card["metrics"]["test_top5"]
    assert card["best_epoch"] == 1 + history["val_accuracy"].index(max(history["val_accuracy"]))  # epochs count from 1

    names = {"loss", "accuracy", "learning_rate", "seconds", "side", "val_loss", "val_accuracy", "val_top5"}
    assert set(history) == names and {len(values) for values in history.values()} == {5}
    assert history["learning_rate"] == pytest.approx([0.1] * 5)
    steady = np.median(history["seconds"][1:])
    assert card["time"] == {
        "seconds": pytest.approx(sum(history["seconds"])),
        "seconds_per_epoch": pytest.approx(steady),
        "images_per_second": pytest.approx(50 / steady),
    }
    assert card["steps_per_epoch"] == 4 and "4 steps an epoch, 20 in all" in capsys.readouterr().out
    assert card["dataset"].items() >= {"name": "noise", "train": 50, "validation": 31, "test": 33}.items()
    assert (card["schema"], card["architecture"], card["tier"], card["seed"]) == (1, "convmixer", None, 4)
    assert card["parameters"] == recipe.model_dump()
    weights = {weight.path: weight for weight in model.trainable_weights}
    (decayed, others) = sorted(card["updates"], key=lambda row: -row["decay"])
    assert card["effective_weight_decay"] == pytest.approx(0.03)
    assert (decayed["decay"], others["decay"], decayed["rate"], others["rate"]) == (0.3, 0.0, 1.0, 1.0)
    assert set(decayed["weights"]) == {path for path in weights if path.endswith("kernel")}
    assert {*decayed["weights"], *others["weights"]} == set(weights)
    trainable = sum(int(np.prod(w.shape)) for w in weights.values())
    assert card["model"]["trainable_parameters"] == trainable < card["model"]["parameters"]
    assert card["model"]["parameters"] == trainable + 3 * 2 * 8  # three BatchNorms' moving averages
    assert (
        before <= datetime.datetime.fromisoformat(card["started"]) <= datetime.datetime.fromisoformat(card["finished"])
    )
    assert card["versions"]["numpy"] == np.__version__ and card["versions"]["backend"] == keras.backend.backend()
    assert card["hardware"]["cores"] >= 1


def test_steps_are_told_and_remarked_on_before_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATCHLIB_KEEP_CHECKPOINT", "1")
    runs.train(small_model(), tiny(), RECIPE, tmp_path)
    told, remark, first, *_ = capsys.readouterr().out.splitlines()
    assert told == "4 steps an epoch, 12 in all" and first.startswith("epoch 1/3: loss ")
    assert remark.startswith("batch_size 12 and epochs 3 make 12 steps of 48")
    assert cards.progress(tmp_path)["notes"] == [told, remark]  # for whoever follows the run from elsewhere


def test_the_test_set_is_read_once_and_at_the_end(tmp_path, monkeypatch):
    data, asked = tiny(), []
    for name in ("evaluate", "logits"):
        known = getattr(training, name)
        monkeypatch.setattr(
            training, name, lambda m, s, *a, known=known: asked.append(s is data.test) or known(m, s, *a)
        )
    runs.train(small_model(), data, RECIPE, tmp_path)
    assert asked[: RECIPE.epochs] == [False] * RECIPE.epochs and sum(asked) == 1


def test_from_the_predictions_anyone_counts_what_the_card_says(tmp_path):
    data, model = tiny(test_labels=np.arange(12) % 2), small_model()
    card = runs.train(model, data, RECIPE, tmp_path)
    saved = np.load(tmp_path / "predictions.npz")
    label, predicted, rank = saved["label"], saved["predicted"], saved["rank"]
    logits, validation = (model.predict(split.images, verbose=0) for split in (data.test, data.validation))
    assert label.dtype == predicted.dtype == rank.dtype == np.uint8 and (label == data.test.labels).all()
    assert (predicted == logits.argmax(axis=1)).all()
    right = predicted == label
    assert card["metrics"]["test_accuracy"] == right.mean() == (rank == 0).mean()
    by_class = [right[0::2].mean(), right[1::2].mean(), None]
    assert card["test_accuracy_by_class"] == by_class
    temperature = card["calibration"]["temperature"]
    shares = np.exp(logits / temperature)
    expected = (shares / shares.sum(axis=1, keepdims=True)).max(axis=1)
    assert saved["confidence"].dtype == np.float16
    np.testing.assert_allclose(saved["confidence"], expected, atol=1e-3)
    assert temperature == pytest.approx(evaluation.temperature(validation, data.validation.labels), rel=1e-3)
    for key, t in (("error", 1), ("error_at_temperature", temperature)):
        expected = evaluation.calibration_error(logits, data.test.labels, t)
        assert card["calibration"][key] == pytest.approx(expected, abs=1e-4)
    before = card["weights"]
    assert before == runs._weights_digest(model) and len(before) == 64
    model.weights[0].assign(model.weights[0] + 1e-3)
    assert before != runs._weights_digest(model)


def test_a_finished_run_is_not_overwritten(tmp_path):
    runs.train(small_model(), tiny(), RECIPE, tmp_path)
    before = (tmp_path / "run.json").read_bytes(), (tmp_path / "model.keras").read_bytes()
    with pytest.raises(cards.RunError, match=r"holds a finished run \(test accuracy .*choose another"):
        runs.train(small_model(), tiny(), RECIPE, tmp_path)
    with pytest.raises(cards.RunError, match="holds a finished run"):
        runs.new_folder(ConvMixer(run_dir=str(tmp_path)), "convmixer")
    assert before == ((tmp_path / "run.json").read_bytes(), (tmp_path / "model.keras").read_bytes())


@pytest.mark.parametrize(
    ("name", "reason"),
    [("a file", "File exists"), ("x" * 300, "File name too long"), ("a file/below", "Not a directory"), ("nul\0", "")],
)
def test_a_folder_that_cannot_be_written_into_is_refused_before_training(tmp_path, monkeypatch, name, reason):
    monkeypatch.chdir(tmp_path)
    Path("a file").write_text("mine")
    sentence = rf"run_dir: received '.*', which can't be written into \(.*{reason}.*\)\.$"
    with pytest.raises(cards.RunError, match=sentence):
        runs.train(small_model(), tiny(), RECIPE, name)
    with pytest.raises(cards.RunError, match=sentence):
        runs.new_folder(ConvMixer(run_dir=name), "convmixer")
    monkeypatch.setenv("PATCHLIB_RUNS", name.replace("\0", "x" * 300))
    with pytest.raises(cards.RunError, match="which can't be written into"):
        runs.new_folder(ConvMixer(), "convmixer")
    assert Path("a file").read_text() == "mine" and [path.name for path in tmp_path.iterdir()] == ["a file"]


def test_a_read_only_folder_is_refused(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(runs.tempfile, "TemporaryFile", refuse)  # root may write anywhere
    with pytest.raises(cards.RunError, match=r"can't be written into \(Permission denied\)"):
        runs.train(small_model(), tiny(), RECIPE, tmp_path)


def test_folders_by_default_are_new(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHLIB_RUNS", str(tmp_path / "not" / "there"))
    p = ConvMixer(dataset="/somewhere/photos", seed=3)
    made, name = [runs.new_folder(p, "convmixer").name for _ in range(3)], cards.folder_name("convmixer", p)
    assert made == [name, f"{name}-2", f"{name}-3"]
    own = tmp_path / "nor" / "this"
    assert runs.new_folder(ConvMixer(run_dir=str(own)), "convmixer") == own and own.is_dir()


@pytest.mark.bfloat16
def test_precision_is_settled_when_a_run_starts_and_kept_when_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(runs.machine, "precision", lambda: "mixed_bfloat16")
    assert runs.precision(ConvMixer(precision="float32"), tmp_path) == "float32"
    auto = ConvMixer(precision="auto", epochs=2)
    assert runs.precision(auto, tmp_path) == "mixed_bfloat16"
    stop(tmp_path, monkeypatch, small_model(dtype="mixed_bfloat16"), recipe=auto)
    monkeypatch.setattr(runs.machine, "precision", lambda: "float32")  # on another machine
    with pytest.raises(cards.RunError, match="dtype_policy is 'mixed_bfloat16' there and 'float32' here"):
        runs.train(small_model(), tiny(), auto, tmp_path)
    card = runs.train(small_model(dtype=runs.precision(auto, tmp_path)), tiny(), auto, tmp_path)
    assert (card["dtype_policy"], card["parameters"]["precision"]) == ("mixed_bfloat16", "auto")


def test_where_bfloat16_would_crash_it_is_refused_and_where_it_is_slow_that_is_said(tmp_path, monkeypatch, capsys):
    asked = ConvMixer(precision="mixed_bfloat16", epochs=1)
    monkeypatch.setattr(runs.machine, "has_bfloat16", lambda: False)
    runs.train(small_model(), tiny(), ConvMixer(epochs=1, seed=1), tmp_path / "float32")
    assert "slower" not in capsys.readouterr().out
    runs.train(small_model(dtype="mixed_bfloat16"), tiny(), asked, tmp_path / "bfloat16")
    assert "mixed_bfloat16 is likely slower here than float32" in capsys.readouterr().out
    monkeypatch.setattr(runs.machine, "loses_bfloat16", lambda: True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert runs.precision(ConvMixer(precision="auto"), tmp_path) == "float32"
    with pytest.raises(ParameterError, match="received 'mixed_bfloat16', which oneDNN is kept from by .*=SSE41: unset"):
        runs.precision(asked, tmp_path)


def test_the_cards_command_gives_the_same_parameters(tmp_path):
    papermill_cli = pytest.importorskip("papermill.cli", reason="papermill comes with the notebooks' extra")
    p = ConvMixer(batchnorm_epsilon=1e-5, learning_rate=3e-7, flip=False, dataset="/my photos/")
    identity = {"architecture": "convmixer", "parameters": p.model_dump(exclude={"run_dir"})}
    words = shlex.split(runs._command(identity))
    given = {name: papermill_cli._resolve_type(value) for flag, name, value in zip(*[iter(words[5:])] * 3, strict=True)}
    assert ConvMixer(**given) == p


def random_cct(seed=0):
    """A network with everything random in training that there is."""
    keras.utils.set_random_seed(seed)
    rates = {"dropout": 0.3, "attention_dropout": 0.3, "stochastic_depth": 0.3}
    return models.cct((6, 6, 3), 3, depth=1, dim=8, key_dim=4, mlp_dim=8, conv_dim=4, **rates)


EVERYTHING = {"optimizer": "muon", "trivial_augment": True, "erasing": 0.5, "mixup": 0.5, "cutmix": 0.5}


GROWING = {"start_size": 5, "whiten": True, "alternate": True, "optimizer": "muon"}
JAX = {"marks": pytest.mark.jax}


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    ("build", "after", "changes"),
    [
        pytest.param(small_model, 1, {"schedule": "one_cycle"}, **JAX),
        pytest.param(random_cct, 2, GROWING, **JAX),
        (random_cct, 2, {"schedule": "cosine", "warmup_epochs": 0.5, **EVERYTHING}),  # new in its batches alone
    ],
)
def test_an_interrupted_run_resumes_to_the_same_end(tmp_path, monkeypatch, build, after, changes):
    recipe = changed(**changes)
    whole, resumed = build(), build()
    expected = runs.train(whole, tiny(), recipe, tmp_path / "whole")
    stop(tmp_path / "run", monkeypatch, resumed, after, recipe)
    assert "run.json" not in names(tmp_path / "run")
    fresh = build(seed=99)
    card = runs.train(fresh, tiny(), recipe, tmp_path / "run")
    for name, values in expected["history"].items():
        assert name == "seconds" or card["history"][name] == values
    for a, b in zip(whole.get_weights(), fresh.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert card["metrics"] == expected["metrics"]


def test_callbacks_hear_the_true_numbers_of_the_epochs_when_a_run_goes_on(tmp_path, monkeypatch):
    stop(tmp_path, monkeypatch, small_model())
    recorder = Recorder()
    runs.train(small_model(), tiny(), RECIPE, tmp_path, callbacks=[recorder])
    assert [event[1] for event in recorder.events if event[0] == "epoch"] == [1, 2]


def test_the_validation_accuracy_of_a_run_that_a_callback_ended_is_of_whole_images(tmp_path):
    end = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: setattr(end.model, "stop_training", True))
    model = small_model()
    card = runs.train(model, tiny(), changed(start_size=2), tmp_path, callbacks=[end])
    logits, labels = training.logits(model, tiny().validation), tiny().validation.labels
    assert card["history"]["side"] == [2]
    assert (
        card["metrics"]["val_accuracy"]
        == (logits.argmax(axis=1) == labels).mean()
        != card["history"]["val_accuracy"][0]
    )


def test_tensorboard_gets_every_epoch_when_a_run_goes_on(tmp_path, monkeypatch):
    import tensorflow as tf
    from tensorflow.core.util import event_pb2

    monkeypatch.chdir(tmp_path)
    recipe = ConvMixer(**RECIPE.model_dump(), tensorboard=True)
    stop(tmp_path / "run", monkeypatch, small_model(), recipe=recipe)
    runs.train(small_model(), tiny(), recipe, tmp_path / "run")
    files = sorted(map(str, (tmp_path / "run" / "tensorboard" / "validation").iterdir()))
    events = [event_pb2.Event.FromString(record.numpy()) for record in tf.data.TFRecordDataset(files)]
    tags = [(value.tag, event.step) for event in events for value in event.summary.value]
    assert [step for tag, step in tags if tag == "epoch_accuracy"] == [0, 1, 2]


def test_without_tensorboard_a_run_that_wants_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    recipe = ConvMixer(**RECIPE.model_dump(), tensorboard=True)
    with pytest.raises(cards.RunError, match="tensorboard isn't installed: pip install tensorboard"):
        runs.train(small_model(), tiny(), recipe, tmp_path)


def test_a_run_starts_from_a_trained_network_once(tmp_path, monkeypatch):
    runs.train(small_model(seed=1), tiny(), RECIPE, tmp_path / "known")
    known = networks.load_model(tmp_path / "known")
    asked, here = [], tmp_path / "run"
    monkeypatch.setattr(networks, "start_from", lambda *arguments: asked.append(arguments[1]))
    monkeypatch.setattr(surgery, "whiten", lambda *_: pytest.fail("it starts from a trained network"))
    recipe = changed(init_from=str(tmp_path / "known"), whiten=True)
    stop(here, monkeypatch, small_model(), recipe=recipe)
    runs.train(small_model(), tiny(), recipe, here)
    assert asked == [str(tmp_path / "known")]
    monkeypatch.undo()
    model = small_model()
    networks.start_from(model, tmp_path / "known", tiny())
    for before, after in zip(known.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_another_run_in_the_folder_is_named(tmp_path, monkeypatch):
    stop(tmp_path, monkeypatch, small_model())
    with pytest.raises(cards.RunError, match="another run.*batch_size is 12 there and 6 here"):
        runs.train(small_model(), tiny(), changed(batch_size=6), tmp_path)
    with pytest.raises(cards.RunError, match="another run.*stem: epsilon is 0.001 there and 1e-05 here"):
        runs.train(small_model(batchnorm_epsilon=1e-5), tiny(), RECIPE, tmp_path)
    with pytest.raises(cards.RunError, match="another run.*block_1: .* is None there"):
        runs.train(small_model(depth=2), tiny(), RECIPE, tmp_path)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run's folder with its two checkpoints, and how the run would have ended."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch:
        stop(folder / "run", patch, small_model(), after=2)
    return folder / "run", runs.train(small_model(), tiny(), RECIPE, folder / "whole")["metrics"]


@pytest.fixture
def interrupted(stopped, tmp_path):
    """A copy of it, and how it would have ended."""
    return shutil.copytree(stopped[0], tmp_path / "run"), stopped[1]


def rewrite(checkpoint, change):
    """Change a checkpoint's record, as a younger or an older version of this project would have written it."""
    record = json.loads((checkpoint / "progress.json").read_text())
    change(record["run"])
    (checkpoint / "progress.json").write_text(json.dumps(record))
    (checkpoint / "sha256").write_text(runs._digest(checkpoint))


def test_a_checkpoint_older_than_a_parameter_and_a_layers_argument_is_resumed(interrupted):
    folder, expected = interrupted
    for checkpoint in cards.checkpoints(folder):
        rewrite(checkpoint, lambda run: (run["parameters"].pop("erasing"), run["layers"]["block_0"].pop("activation")))
    assert runs.train(small_model(9), tiny(), RECIPE, folder)["metrics"] == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda run: run["parameters"].update(shear=0.5), "shear is 0.5 there and None here"),
        (lambda run: run["layers"]["block_0"].update(gated=True), "block_0: gated is True there and None here"),
        (lambda run: run["layers"].update(extra={"class": "Dense"}), "extra: class is 'Dense' there and None here"),
        (
            lambda run: run["layers"]["stem"].update({"class": "Conv"}),
            "stem: class is 'Conv' there and 'ConvStem' here",
        ),
    ],
)
def test_what_a_checkpoint_says_and_nothing_here_knows_is_named(interrupted, change, words):
    folder, _ = interrupted
    rewrite(folder / "checkpoint-00002", change)
    with pytest.raises(cards.RunError, match=re.escape(words)):
        runs.train(small_model(), tiny(), RECIPE, folder)


def cut(checkpoint):
    (checkpoint / "state.npz").write_bytes((checkpoint / "state.npz").read_bytes()[:-100])


def lose(checkpoint):
    (checkpoint / "best.npz").unlink()


def empty(checkpoint):
    (checkpoint / "progress.json").write_text("")


def swap(checkpoint):
    """Another epoch's state."""
    (checkpoint / "state.npz").write_bytes((checkpoint.with_name("checkpoint-00001") / "state.npz").read_bytes())


@pytest.mark.parametrize("damage", [cut, lose, empty, swap])
def test_a_broken_checkpoint_gives_way_to_the_one_before_it(interrupted, capsys, damage):
    folder, expected = interrupted
    damage(folder / "checkpoint-00002")
    card = runs.train(small_model(9), tiny(), RECIPE, folder)
    assert "checkpoint-00002 is broken: going on from checkpoint-00001" in capsys.readouterr().out
    assert card["metrics"] == expected and names(folder) == ["model.keras", "predictions.npz", "run.json"]


def test_a_broken_checkpoint_is_said_to_who_follows_the_run_from_elsewhere(interrupted, monkeypatch):
    folder, _ = interrupted
    cut(folder / "checkpoint-00002")
    assert not any("broken" in note for note in cards.progress(folder)["notes"])
    stop(folder, monkeypatch, small_model(9), after=2)
    assert "checkpoint-00002 is broken: going on from checkpoint-00001" in cards.progress(folder)["notes"]


def test_a_card_names_every_machine_that_took_part_and_from_which_epoch(tmp_path, monkeypatch):
    here = {"processor": "a processor", "cores": 2, "accelerators": []}
    there = here | {"accelerators": ["an accelerator"]}
    monkeypatch.setattr(runs.machine, "hardware", lambda: there)
    for epoch in (1, 2):  # twice on the same machine, which is named once
        stop(tmp_path, monkeypatch, small_model(), after=epoch, recipe=changed(epochs=4))
    monkeypatch.setattr(runs.machine, "hardware", lambda: here)
    card = runs.train(small_model(9), tiny(), changed(epochs=4), tmp_path)
    assert card["hardware"] == here
    assert card["machines"] == [
        {"epoch": 1, "hardware": there, "versions": card["versions"]},
        {"epoch": 3, "hardware": here, "versions": card["versions"]},
    ]
    assert compare.hardware(card) == "an accelerator; from epoch 3 on a processor, 2 cores"


def test_what_the_machine_was_before_an_older_checkpoint_stays_unknown(interrupted, monkeypatch):
    folder, _ = interrupted
    for checkpoint in cards.checkpoints(folder):
        record = json.loads((checkpoint / "progress.json").read_text())
        del record["machines"]
        (checkpoint / "progress.json").write_text(json.dumps(record))
        (checkpoint / "sha256").write_text(runs._digest(checkpoint))
    monkeypatch.setattr(runs.machine, "hardware", lambda: {"processor": "this", "cores": 2, "accelerators": []})
    card = runs.train(small_model(9), tiny(), RECIPE, folder)
    assert [part["epoch"] for part in card["machines"]] == [3]
    assert compare.hardware(card) == "unknown; from epoch 3 on this, 2 cores"


@pytest.fixture
def checkpoint(stopped):
    """A run's checkpoint, which isn't to be changed."""
    return stopped[0] / "checkpoint-00001"


def with_right_digest(checkpoint, folder, name, content):
    """A copy of a checkpoint in a run's folder, in which one file is another."""
    copy = shutil.copytree(checkpoint, folder / checkpoint.name)
    if isinstance(content, dict):
        content = json.dumps(json.loads((copy / name).read_text()) | content)
    (copy / name).write_text(content) if isinstance(content, str) else np.savez(copy / name, *content)
    (copy / "sha256").write_text(runs._digest(copy))


ROWS = {name: [1.0] for name in (*cards.ROW, "side", "seconds")}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("progress.json", content) for content in ("5", "[]", "{}", "[" * 10**5)),
        *(("progress.json", {name: of}) for name in ("history", "best_epoch", "run") for of in (None, 5, {}, [])),
        ("progress.json", {"best_epoch": 7}),
        ("progress.json", {"run": {"parameters": 5, "layers": 5}}),
        ("progress.json", {"history": {"loss": [1.0]}}),
        ("progress.json", {"history": ROWS | {"accuracy": []}}),
        ("progress.json", {"machines": [{"epoch": 1}]}),
        *((name, of) for name in ("state.npz", "best.npz") for of in ("text", [np.array([{}], object)])),
        *(("best.npz", content) for content in ([], [np.zeros(3)])),
    ],
)
def test_a_checkpoint_with_a_right_digest_and_wrong_contents_is_refused(checkpoint, tmp_path, name, content):
    with_right_digest(checkpoint, tmp_path, name, content)
    model = small_model()
    with pytest.raises(cards.RunError, match=r"checkpoint-00001 isn't a checkpoint \(.*\): remove it\.$"):
        runs._resume(tmp_path, runs._identity(model, tiny(), RECIPE), model)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"history": {"loss": [float("nan")]}}, "history.loss.0 is nan, accepted: a finite number."),
        ({"history": ROWS | {"accuracy": []}}, "the columns of its history have 0 and 1 epochs, accepted: the same."),
        ({"history": ROWS, "best_epoch": 7}, "best_epoch is 7, accepted: 0 to 0."),
        ({"history": {"loss": [1.0]}}, "its history lacks accuracy, seconds, side, val_accuracy, val_loss."),
        ({"run": None}, "run is None, accepted: a valid dictionary."),
        ("{}", "run is missing."),
    ],
)
def test_what_is_wrong_in_a_checkpoint_is_named(checkpoint, tmp_path, content, reason):
    with_right_digest(checkpoint, tmp_path, "progress.json", content)
    model = small_model()
    with pytest.raises(cards.RunError, match=re.escape(f"checkpoint-00001 isn't a checkpoint ({reason[:-1]}): remove")):
        runs._resume(tmp_path, runs._identity(model, tiny(), RECIPE), model)


def test_what_only_begins_like_a_checkpoint_is_none(interrupted):
    folder, expected = interrupted
    (folder / "checkpoint-notes.txt").write_text("mine")
    assert runs.train(small_model(9), tiny(), RECIPE, folder)["metrics"] == expected
    assert (folder / "checkpoint-notes.txt").read_text() == "mine" and cards.finished(folder)


def test_a_checkpoints_state_of_other_shapes_is_refused(checkpoint, tmp_path):
    with_right_digest(checkpoint, tmp_path, "state.npz", [np.zeros(3)])
    with pytest.raises(ValueError, match="the checkpoint's state is of other shapes"):
        runs.train(small_model(), tiny(), RECIPE, tmp_path)


def test_a_checkpoints_pipe_is_not_read(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / checkpoint.name)
    (tmp_path / checkpoint.name / "state.npz").unlink()
    os.mkfifo(tmp_path / checkpoint.name / "state.npz")
    with pytest.raises(cards.RunError, match="no checkpoint of it is whole"):
        runs.train(small_model(), tiny(), RECIPE, tmp_path)


def test_where_no_checkpoint_is_whole_nothing_is_begun_anew(interrupted):
    folder, _ = interrupted
    assert [path.name for path in cards.checkpoints(folder)] == ["checkpoint-00001", "checkpoint-00002"]
    for checkpoint in cards.checkpoints(folder):
        cut(checkpoint)
    with pytest.raises(cards.RunError, match="no checkpoint of it is whole"):
        runs.train(small_model(), tiny(), RECIPE, folder)


def test_two_checkpoints_are_kept(tmp_path, monkeypatch):
    stop(tmp_path, monkeypatch, small_model(), after=3, recipe=changed(epochs=5))
    assert [path.name for path in cards.checkpoints(tmp_path)] == ["checkpoint-00002", "checkpoint-00003"]


@pytest.mark.jax
def test_a_kept_checkpoint_makes_the_same_card_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHLIB_KEEP_CHECKPOINT", "1")
    card = runs.train(small_model(), tiny(), RECIPE, tmp_path)
    assert not cards.finished(tmp_path)  # so that it's tried again where the notebook stopped after training
    again = runs.train(small_model(seed=99), tiny(), RECIPE, tmp_path)
    assert (again["metrics"], again["history"]) == (card["metrics"], card["history"])  # not an epoch was run


def test_a_run_that_another_process_finished_meanwhile_is_left_alone(tmp_path, monkeypatch):
    runs.train(small_model(), tiny(), RECIPE, tmp_path)
    refuse, asked = runs._refuse_finished, []
    monkeypatch.setattr(runs, "_refuse_finished", lambda folder: asked.append(folder) or (asked[1:] and refuse(folder)))
    with pytest.raises(cards.RunError, match="holds a finished run"):
        runs.train(small_model(), tiny(), RECIPE, tmp_path)


def test_a_folder_in_use_is_left_alone(tmp_path):
    import filelock

    with filelock.FileLock(tmp_path / ".lock"), pytest.raises(cards.RunError, match="in use by another process"):
        runs.train(small_model(), tiny(), RECIPE, tmp_path)


def test_a_model_that_does_not_fit_the_data_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"takes \(8, 8, 3\).*images of \(6, 6, 3\)"):
        from patchlib import models

        runs.train(models.convmixer((8, 8, 3), 3, dim=4, depth=1), tiny(), RECIPE, tmp_path / "run")
    assert not (tmp_path / "run").exists()
