"""The commands: what they refuse, what `run` says of runs that stand finished, what the others write."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("distributed", reason="it comes with the notebooks' extra")

from test_cards import card
from test_plan import planned
from test_prediction import pictures_of_every_kind

import patchlib
from patchlib import cli, exporting, models, networks, plan


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("convmixr", ["unknown notebook 'convmixr'", "'convmixer'", "gmlp"]),
        ("cct --tier basline", ["unknown tier of cct 'basline'", "'baseline'", "smoke"]),
        ("cct --set epoch=3", ["cct, tier smoke", "unknown parameter 'epoch'", "received '3'", "'epochs'"]),
        ("cct --set epochs=1.5", ["'epochs'", "'1.5'", "integer"]),
        ("cct vit --set heads=0", ["cct", "'heads'", "received 0", "greater than or equal to 1"]),
        ("convmixer vit --set heads=2", ["convmixer", "unknown parameter 'heads'"]),
        ("cct --set epochs", ["--set", "'epochs'", "NAME=VALUE"]),
        ("cct --set run_dir=x", ["run_dir", "folder of its own below --out"]),
        ("cct --set seed=1", ["seed", "--seeds"]),
        ("cct --set tier=x", ["tier", "--tier"]),
        ("cct --set dataset=cifr10", ["'cifr10'", "'cifar10'", "digits", "there is no"]),
        ("cct --set dataset=photos/ --scheduler tcp://127.0.0.1:1", ["'photos/'", "absolute path"]),
        ("cct --seeds 0", ["--seeds 0", "--seed 0"]),
        ("cct --set dataset=2024-02-30", ["data set '2024-02-30'", "there is no"]),
        ("cct --set epochs=1:30", ["'epochs'", "received '1:30'", "integer"]),
        ("cct --set flip=on", ["'flip'", "received 'on'", "boolean"]),
        ("cct --set learning_rate=nan", ["'learning_rate'", "received nan", "finite"]),
        (
            "convmixer --set dim=10000000",
            ["convmixer, tier smoke", "at least 400,0", "weights", "accepted: 10,000,000,000"],
        ),
        ("cct --notebooks nowhere", ["nowhere/cct.ipynb", "--notebooks"]),
        (f"cct --out {'x' * 5000}", ["--out: 'xxx", "File name too long"]),
        ("cct --out a\0b", ["--out: 'a", "null"]),
        ("cct --out /dev/null", ["--out: '/dev/null' isn't a folder"]),
        ("cct --out /dev/null/below", ["--out: '/dev/null' isn't a folder"]),
        (f"cct --notebooks {'x' * 5000}", ["--notebooks: 'xxx", "File name too long"]),
        ("x" * 5000, ["unknown notebook 'xxx", "convmixer"]),
        (f"cct --tier {'x' * 5000}", ["unknown tier of cct 'xxx", "smoke"]),
        (f"cct --set {'x' * 5000}", ["--set: received 'xxx", "NAME=VALUE"]),
        (f"vit --set patch_size={'9' * 4000}", ["patch_size: received 999", "accepted: 1, 2, 4"]),
        (f"cct --set dim={'9' * 9999}", ["'dim'", "received '999", "integer"]),
    ],
)
def test_wrong_usage_is_said_in_a_sentence_and_nothing_is_written(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", *words.split()]) == 2
    output, error = capsys.readouterr()
    assert all(word in error for word in said), error
    assert len(error) < 1000
    assert (output, error.count("\n"), list(tmp_path.iterdir())) == ("", 1, [])


@pytest.mark.parametrize(
    "words",
    [
        *("--workers 0", "--seeds -1", "--seeds 2 --seed 1", "--worker 2", "--workers 2 --scheduler x"),
        *(f"--seeds {'9' * 9999}", f"--timeout {'9' * 400}", f"--worker={'x' * 9999}"),
    ],
)
def test_the_command_line_is_strict(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["run", *words.split()])
    assert len(capsys.readouterr().err) < 1000


def test_a_folder_with_other_parameters_is_no_finished_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (run,) = planned("cct").values()
    run.folder.mkdir(parents=True)
    there = run.parameters.model_dump(exclude={"run_dir"}) | {"dim": 7}
    (run.folder / "run.json").write_text(json.dumps(card() | {"parameters": there}))
    assert cli.main(["run", "cct"]) == 1
    assert "failed    " in (output := capsys.readouterr().out) and "dim is 7 there and 48 here" in output


def test_a_finished_run_is_older_than_a_parameter(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (run,) = planned("cct").values()
    run.folder.mkdir(parents=True)
    there = run.parameters.model_dump(exclude={"run_dir", "cutmix"})
    (run.folder / "run.json").write_text(json.dumps(card() | {"parameters": there}))
    assert cli.main(["run", "cct"]) == 0
    assert "1 finished (1 before)" in capsys.readouterr().out


def test_the_command_needs_neither_keras_nor_papermill_to_say_what_is_finished():
    modules = "{'keras', 'papermill', 'distributed', 'sklearn'}"
    program = (
        f"import sys; sys.argv = ['patchlib']; import patchlib.cli, patchlib.batch; print({modules} & {{*sys.modules}})"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ
    )
    assert printed.stdout == "set()\n"


def test_help_is_there_at_once():
    program = "import sys, patchlib.__main__ as m; m.main(['--help'])"
    watch = f"import atexit, sys; atexit.register(lambda: print('numpy' in sys.modules)); {program}"
    printed = subprocess.run([sys.executable, "-c", watch], capture_output=True, text=True, env=os.environ).stdout
    assert printed.startswith("usage: patchlib") and printed.endswith("False\n")


@pytest.mark.parametrize("command", ["run", "predict", "evaluate", "export", "notebooks"])
def test_every_commands_help_has_an_example_that_is_a_command(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    example = re.search(r"Example: patchlib (.*?)\. Exit code: 0 ", shown)[1].partition(" > ")[0]
    assert cli._parser().parse_args(shlex.split(example)).command == command


INTERRUPTED = """
import sys
class Interrupt:
    def find_spec(name, *_):
        if name == "numpy":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt)
from patchlib import cli
print(cli.main(["predict", "cct-cifar10", "cat.png"]))
"""


def test_an_interruption_while_modules_are_imported_is_one(tmp_path):
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, env=os.environ)
    assert (done.stdout, done.stderr) == ("130\n", "\ninterrupted\n")


def test_a_missing_extra_is_said_in_a_sentence(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert cli.main(["run", "cct"]) == 2
    sentence = "patchlib run: yaml isn't installed: pip install distributed jupyterlab papermill pyyaml\n"
    assert capsys.readouterr().err == sentence


def test_notebooks_are_copied_beside_other_files_and_never_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("kept")
    assert cli.main(["notebooks", "mine"]) == 0
    assert capsys.readouterr().out == "to open the notebooks: jupyter lab mine\n"
    for kind in ("*.ipynb", "tiers/*.yaml", "diagrams/*.svg"):
        there = {path.name: path.read_bytes() for path in plan.NOTEBOOKS.glob(kind)}
        assert {path.name: path.read_bytes() for path in Path("mine").glob(kind)} == there != {}
    (run,) = planned("cct", "--tier", "fast", "--notebooks", "mine").values()
    assert (run.notebook, run.parameters.dataset) == (tmp_path / "mine" / "cct.ipynb", "cifar10")
    Path("mine/cct.ipynb").write_text("changed")
    assert cli.main(["notebooks", "mine"]) == 2
    assert f"received {tmp_path}/mine, which has cct.ipynb, compare.ipynb, " in capsys.readouterr().err
    assert Path("mine/cct.ipynb").read_text() == "changed" and Path("mine/notes.txt").read_text() == "kept"
    assert cli.main(["notebooks", "mine/notes.txt"]) == 2
    assert "FOLDER: 'mine/notes.txt' isn't a folder" in capsys.readouterr().err.replace(f"{tmp_path}/", "")


def test_no_scheduler_is_said_in_a_sentence(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("distributed.Client", lambda *a, **k: (_ for _ in ()).throw(OSError("refused")))
    assert cli.main(["run", "cct", "--scheduler", "tcp://127.0.0.1:1"]) == 2
    assert "nothing answers at tcp://127.0.0.1:1 (refused)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


NAMES = ["cat", "dog", "emu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a run that knows three classes."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("run")
    known = card() | {"dataset": card()["dataset"] | {"classes": NAMES}, "calibration": {"temperature": 0.5}}
    networks.save(models.convmixer((16, 16, 3), 3, dim=8, depth=1), known, folder / "model.keras")
    return str(folder)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Seven pictures of different sizes, of which one is broken, in nested folders, and a text."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number, name in enumerate(["a.png", "b.png", "deep/c.jpg", "deep/er/d.png", "e.webp", "f.png"]):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + number, 16, 3), dtype="uint8")).save(path)
    (tmp_path / "photos" / "broken.png").write_text("no picture")
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    return [f"photos/{name}" for name in ("a.png", "b.png", "deep/c.jpg", "deep/er/d.png", "e.webp", "f.png")]


def answered(model, paths, top=5):
    return patchlib.classify(networks.load_model(model), paths, top)


def test_predict_writes_a_line_for_each_picture_and_one_on_stderr_for_a_broken_one(model, photos, capsys):
    assert cli.main(["predict", model, "photos"]) == 1
    output, error = capsys.readouterr()
    for line, path, answer in zip(output.splitlines(), photos, answered(model, photos), strict=True):
        words = [word for name, share in answer.items() for word in (f"{share:.1%}", name)]
        assert line.split() == [path, *words]
    broken, count = error.splitlines()
    assert "'photos/broken.png' can't be read" in broken and count == "1 of 7 pictures can't be read"


def test_predict_takes_pictures_folders_and_patterns_each_picture_once(model, photos, capsys):
    assert cli.main(["predict", model, "photos/e.webp", "photos/deep", "photos/**/[bd].png", "--top", "1"]) == 0
    output, error = capsys.readouterr()
    assert [line.split()[0] for line in output.splitlines()] == [photos[i] for i in (4, 2, 3, 1)] and not error
    assert {len(line.split()) for line in output.splitlines()} == {3}


def test_names_that_no_terminal_can_show_are_escaped(photos, tmp_path, capsys):
    known = card() | {"dataset": card()["dataset"] | {"classes": ["a\x1b[31m", "b\ud800", "c\n"]}}
    networks.save(models.convmixer((16, 16, 3), 3, dim=8, depth=1), known, tmp_path / "own.keras")
    os.rename("photos/a.png", "photos/\udcff.png")
    words = ["predict", "own.keras", "photos/\udcff.png"]
    env = os.environ | {"PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "0", "LC_ALL": "C.UTF-8"}
    done = subprocess.run([sys.executable, "-m", "patchlib", *words], capture_output=True, text=True, env=env)
    assert (done.stderr, done.returncode) == ("", 0)
    assert cli.main([*words, "--json"]) == 0
    for shown in (done.stdout, capsys.readouterr().out.replace("\\\\", "\\")):
        assert all(name in shown for name in (r"photos/\udcff.png", r"a\x1b[31m", r"b\ud800", r"c\n")), shown


def test_a_network_whose_answers_are_no_numbers_is_refused_in_a_sentence(photos, tmp_path, capsys):
    network = models.convmixer((16, 16, 3), 3, dim=8, depth=1)
    network.get_layer("head").bias.assign([0, np.nan, 0])
    networks.save(network, card(), tmp_path / "own.keras")
    assert cli.main(["predict", str(tmp_path / "own.keras"), "photos"]) == 1
    assert re.search(r"^patchlib predict: .*answers to .* aren't finite numbers\.$", capsys.readouterr().err, re.M)


def test_csv_and_json_hold_what_classify_says(model, photos, capsys):
    written, expected = {}, answered(model, photos, 2)
    for kind in ("csv", "json"):
        assert cli.main(["predict", model, "photos", "--top", "2", f"--{kind}"]) == 1
        written[kind] = capsys.readouterr().out.splitlines()
    objects = [json.loads(line) for line in written["json"]]
    assert objects == [{"path": path, "classes": answer} for path, answer in zip(photos, expected, strict=True)]
    assert [list(found["classes"]) for found in objects] == [list(answer) for answer in expected]
    head, *rows = csv.reader(written["csv"])
    assert head == ["path", "class", "probability"]
    pairs = [(path, *pair) for path, answer in zip(photos, expected, strict=True) for pair in answer.items()]
    assert [(path, name, float(share)) for path, name, share in rows] == pairs


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("predict cct-cifar11 photos", ["no model", "'cct-cifar11'", "cct-cifar10"]),
        ("predict photos/notes.txt photos", ["notes.txt' isn't a Keras model"]),
        ("predict cct-cifar10 photos/a.png nowhere", ["'nowhere'", "no such file or folder"]),
        ("predict cct-cifar10 photos/*.tif", ["'photos/*.tif'", "no file of that pattern"]),
        ("predict cct-cifar10 empty", ["empty has no picture"]),
        ("predict cct-cifar10 ~nobody-of-this-name", ["isn't a path"]),
        ("evaluate cct-cifar11 digits", ["no model", "'cct-cifar11'"]),
        ("evaluate cct-cifar10 digts", ["data set 'digts'", "did you mean 'digits'"]),
        ("evaluate cct-cifar10 photo/", ["data set 'photo/': Accepted: digits", "there is no"]),
        ("evaluate cct-cifar10 digits --out empty", ["--out", "empty", "a new name"]),
        ("evaluate cct-cifar10 digits --out photos/a.png/out", ["--out", "a.png/out", "can be written"]),
        ("evaluate cct-cifar10 digits --out nowhere/out", ["--out", "nowhere/out", "can be written"]),
        ("export cct-cifar11 --to onnx", ["no model", "'cct-cifar11'", "cct-cifar10"]),
        ("export cct-cifar10 --to onnx --out nowhere/a.onnx", ["--out", "nowhere/a.onnx", "can be written"]),
    ],
)
def test_wrong_usage_is_said_before_keras_is_there(photos, tmp_path, words, said):
    (tmp_path / "empty").mkdir()
    program = (
        f"import sys; from patchlib import cli; code = cli.main({words.split()}); print(code, 'keras' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ)
    assert done.stdout == "2 False\n" and done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in [words.split()[0], *said]), done.stderr


def test_what_keras_cannot_load_is_said_in_a_sentence(photos, capsys, tmp_path):
    np.savez(tmp_path / "weights.keras.npz", np.zeros(3))
    assert cli.main(["predict", "weights.keras.npz", "photos"]) == 2
    output, error = capsys.readouterr()
    assert "weights.keras.npz' isn't a Keras model (" in error and (output, error.count("\n")) == ("", 1)


@pytest.mark.parametrize(("raised", "code"), [(KeyboardInterrupt, 130), (OSError(28, "No space left"), 1)])
def test_interruption_and_failure_have_codes_of_their_own(model, photos, monkeypatch, capsys, raised, code):
    def stop(*args):
        raise raised

    monkeypatch.setattr(networks, "load_model", stop)
    assert cli.main(["predict", model, "photos"]) == code
    assert "Traceback" not in (error := capsys.readouterr().err) and error.strip()


def test_who_reads_the_output_may_leave(model, photos):
    command = [sys.executable, "-m", "patchlib", "predict", model, "photos/a.png"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 1)


@pytest.fixture
def labelled(tmp_path, monkeypatch):
    """A folder of pictures of three classes, of different sizes, turned, deep and transparent ones among them."""
    monkeypatch.chdir(tmp_path)
    for part in ("train", "test"):
        for name in NAMES:
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            pictures_of_every_kind(tmp_path / "photos" / part / name)
    return sorted((tmp_path / "photos" / "test").glob("*/*"))


def test_evaluate_counts_what_classify_says_of_the_test_images(model, labelled, capsys, tmp_path):
    assert cli.main(["evaluate", model, "photos", "--out", "found"]) == 0
    output, error = capsys.readouterr()
    answers = answered(model, labelled, 1)
    right = [path.parent.name in answer for path, answer in zip(labelled, answers, strict=True)]
    assert f"accuracy {np.mean(right):.4f} on 9 test images" in output and not error
    assert all(f"| {name} | 3 | " in output for name in NAMES)
    silent = len(NAMES) - len({name for answer in answers for name in answer})  # classes that no picture is taken for
    assert output.count(" | – | ") == silent and output.endswith("tables and a figure: found\n")
    names = ["accuracy.csv", "calibration.csv", "classes.csv", "confusion.csv", "mistakes.csv", "mistakes.png"]
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == names
    head, *rows = csv.reader((tmp_path / "found" / "mistakes.csv").read_text().splitlines())
    assert head == ["image", "class", "taken_for", "confidence", "file"]
    wrong = [number for number in range(9) if not right[number]]
    assert sorted(int(row[0]) for row in rows) == wrong
    for number, name, other, share, file in rows:
        assert (tmp_path / file, name) == (labelled[int(number)], labelled[int(number)].parent.name)
        assert answers[int(number)] == pytest.approx({other: float(share)}, rel=1e-4)
    with Image.open(tmp_path / "found" / "mistakes.png") as figure:
        assert figure.width > 1000


def test_evaluate_refuses_data_of_other_classes_in_a_sentence(model, labelled, capsys, tmp_path):
    (tmp_path / "photos" / "train" / "cat").rename(tmp_path / "photos" / "train" / "ape")
    (tmp_path / "photos" / "test" / "cat").rename(tmp_path / "photos" / "test" / "ape")
    assert cli.main(["evaluate", model, "photos", "--out", "found"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and not (tmp_path / "found").exists()
    assert "photos has the classes ('ape', 'dog', 'emu'), accepted: the model's, ('cat', 'dog', 'emu')" in error


def test_export_names_the_file_after_the_model_and_says_how_near_its_logits_are(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = f"{os.path.basename(model)}-saved_model"
    assert cli.main(["export", model, "--to", "saved_model"]) == 0
    output, error = capsys.readouterr()
    assert re.fullmatch(rf"{name}: .* to (0|\de-\d\d)\n", output) and not error
    assert (tmp_path / name / "saved_model.pb").exists()
    assert cli.main(["export", model, "--to", "saved_model"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("patchlib export: --out: received ") and f"{name}, accepted: a new name" in error


def test_export_fails_where_logits_differ(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(exporting, "TOLERANCE", -1)
    assert cli.main(["export", model, "--to", "saved_model", "--out", "network"]) == 1
    output, error = capsys.readouterr()
    assert error.startswith("patchlib export: convmixer's logits differ by ") and error.count("\n") == 1
    assert (output, [*tmp_path.iterdir()]) == ("", [])


def test_a_path_on_another_drive_is_said_as_it_is(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli._short(tmp_path / "runs" / "a") == os.path.join("runs", "a")

    def refuse(path):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(os.path, "relpath", refuse)
    assert cli._short(tmp_path) == str(tmp_path)
