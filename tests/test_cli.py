"""`patchlib run` as a command: what it refuses, and what it says of runs that stand finished."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("distributed", reason="it comes with the notebooks' extra")

from test_cards import card
from test_plan import planned

from patchlib import cli


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
        (f"cct --notebooks {'x' * 5000}", ["--notebooks: 'xxx", "File name too long"]),
        ("x" * 5000, ["unknown notebook 'xxx", "convmixer"]),
        (f"cct --tier {'x' * 5000}", ["unknown tier of cct 'xxx", "smoke"]),
        (f"cct --set {'x' * 5000}", ["--set: received 'xxx", "NAME=VALUE"]),
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
    "words", ["--workers 0", "--seeds -1", "--seeds 2 --seed 1", "--worker 2", "--workers 2 --scheduler x"]
)
def test_the_command_line_is_strict(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["run", *words.split()])


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
    program = f"import sys; sys.argv = ['patchlib']; import patchlib.cli; print({modules} & {{*sys.modules}})"
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ
    )
    assert printed.stdout == "set()\n"


def test_help_is_there_at_once():
    program = "import sys, patchlib.__main__ as m; m.main(['--help'])"
    watch = f"import atexit, sys; atexit.register(lambda: print('keras' in sys.modules)); {program}"
    printed = subprocess.run([sys.executable, "-c", watch], capture_output=True, text=True, env=os.environ).stdout
    assert printed.startswith("usage: patchlib") and printed.endswith("False\n")


def test_no_scheduler_is_said_in_a_sentence(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("distributed.Client", lambda *a, **k: (_ for _ in ()).throw(OSError("refused")))
    assert cli.main(["run", "cct", "--scheduler", "tcp://127.0.0.1:1"]) == 2
    assert "nothing answers at tcp://127.0.0.1:1 (refused)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
