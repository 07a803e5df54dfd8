"""`patchlib run`, mostly with a stub of a notebook that trains nothing and does as STUB says."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest

pytest.importorskip("distributed", reason="it comes with the notebooks' extra")

from patchlib import batch, runs

ROOT = Path(__file__).parents[1]

STUB = """
import json, os, pathlib, time
from patchlib import parameters
p = parameters.ConvMixer.read(globals())
act = json.loads(os.environ["STUB"]).get(str(seed))
folder = pathlib.Path(run_dir)
log = pathlib.Path(os.environ["STUB_LOG"], f"seed{seed}")
first = not log.exists()
while (epoch := len(list(folder.glob("checkpoint-*"))) + 1) <= epochs:
    (folder / f"checkpoint-{epoch:05}").mkdir()
    with log.open("a") as lines:
        print(epoch, os.getpid(), os.getppid(), file=lines)
    if first and act == "hang":
        time.sleep(600)
os.system("echo noise >&2")
card = {"metrics": {"test_accuracy": 0.5}, "time": {"seconds": 7}, "parameters": p.model_dump(exclude={"run_dir"})}
(folder / "model.keras").write_text("weights")
(folder / "run.json").write_text(json.dumps(card))
if act == "fail":
    raise ValueError("first line\\nand last")
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """A folder of notebooks whose ConvMixer is the stub, with the parameters cell of the real one."""
    notebook = json.loads((ROOT / "notebooks" / "convmixer.ipynb").read_text())
    cell = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    notebook["cells"] = [cell, cell | {"id": "stub", "metadata": {}, "source": STUB}]
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "convmixer.ipynb").write_text(json.dumps(notebook))
    (tmp_path / "log").mkdir()
    monkeypatch.setenv("STUB_LOG", str(tmp_path / "log"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(*words, acts=None):
    command = [sys.executable, "-m", "patchlib", "run", "convmixer", "--notebooks", "notebooks", "--out", "out", *words]
    env = os.environ | {"STUB": json.dumps(acts or {}), "PYTHONPATH": str(ROOT)}
    # Whoever runs these tests in the background may ignore Ctrl-C, which a child would inherit.
    heeds = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **heeds)


def end(process):
    output, errors = process.communicate(timeout=400)
    return process.returncode, output, errors


def log(folder, seed):
    """What the stub did: (epoch, its process, its worker's), in order."""
    path = folder / "log" / f"seed{seed}"
    return [tuple(map(int, line.split())) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(condition, process):
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None, end(process)
        time.sleep(0.05)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


WHOLE = ["convmixer.ipynb", "model.keras", "run.json"]


def test_eight_runs_of_which_one_fails_while_a_worker_and_a_kernel_are_killed(stub):
    words = ["--seeds", "8", "--workers", "2", "--set", "epochs=3"]
    process = start(*words, acts={0: "hang", 5: "fail", 6: "hang"})
    for seed, which in ((0, 2), (6, 1)):
        wait_for(lambda seed=seed: log(stub, seed), process)
        os.kill(log(stub, seed)[0][which], signal.SIGKILL)
    code, output, errors = end(process)
    assert code == 1, output + errors
    assert output.endswith("\n7 finished, 1 failed\n")
    assert [line for line in output.splitlines() if "failed    ValueError: first line and last" in line]
    assert len([line for line in errors.splitlines() if "/8 convmixer-smoke-epochs=3-seed" in line]) == 8
    for seed in range(8):
        assert [epoch for epoch, *_ in log(stub, seed)] == [1, 2, 3]  # no epoch twice, killed or not
        left = names(stub / "out" / f"convmixer-smoke-epochs=3-seed{seed}")
        assert left == WHOLE if seed != 5 else "convmixer.ipynb" not in left and "convmixer.unfinished.ipynb" in left
    assert len({worker for *_, worker in log(stub, 0)}) == len({kernel for _, kernel, _ in log(stub, 6)}) == 2

    before = {path: path.stat().st_mtime_ns for path in (stub / "out").glob("*/run.json")}
    code, output, errors = end(start(*words))  # the notebook's last cell has been mended
    assert (code, output.splitlines()[-1]) == (0, "8 finished (7 before)"), output + errors
    assert [epoch for epoch, *_ in log(stub, 5)] == [1, 2, 3]
    assert names(stub / "out" / "convmixer-smoke-epochs=3-seed5") == WHOLE
    changed = [path for path in before if path.stat().st_mtime_ns != before[path]]
    assert [path.parent.name for path in changed] == ["convmixer-smoke-epochs=3-seed5"]

    clock = time.monotonic()
    code, output, _ = end(start(*words))
    assert (code, output.splitlines()[-1]) == (0, "8 finished (8 before)")
    assert time.monotonic() - clock < 10


def test_interrupted_by_ctrl_c_the_same_command_goes_on(stub):
    process = start("--set", "epochs=2", acts={0: "hang"})
    wait_for(lambda: log(stub, 0), process)
    process.send_signal(signal.SIGINT)
    code, output, errors = end(process)
    assert (code, output) == (130, "")
    assert errors.endswith("interrupted, 0 of 1 finished; the same command goes on where they stopped\n")
    code, output, errors = end(start("--set", "epochs=2", acts={0: "hang"}))
    assert (code, output.splitlines()[-1]) == (0, "1 finished"), output + errors
    assert (
        len(errors.splitlines()) == 2 and "1/1 convmixer-smoke-epochs=2-seed0: finished" in errors
    )  # no kernel's noise
    assert [epoch for epoch, *_ in log(stub, 0)] == [1, 2]


@contextlib.contextmanager
def cluster(folder):
    """A scheduler and two workers that share no folder; yields its address."""
    dask, where = [sys.executable, "-m", "distributed.cli.dask_scheduler"], folder / "scheduler.json"
    env = os.environ | {"STUB": json.dumps({0: "hang", 2: "fail"}), "PYTHONPATH": str(ROOT)}
    options = {"env": env, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [
        subprocess.Popen(
            [*dask, "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", where], **options
        )
    ]
    try:
        for name in ("a", "b"):
            (folder / name).mkdir()
            words = [
                "-m",
                "distributed.cli.dask_worker",
                "--scheduler-file",
                where,
                "--nthreads",
                "1",
                "--no-dashboard",
            ]
            words += ["--no-nanny", "--local-directory", "."]
            processes.append(subprocess.Popen([sys.executable, *words], cwd=folder / name, **options))
        wait_for(where.exists, processes[0])
        yield json.loads(where.read_text())["address"]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_cluster_without_a_shared_disk_one_of_whose_workers_is_killed(stub):
    with cluster(stub) as address:
        process = start("--seeds", "4", "--scheduler", address)
        wait_for(lambda: log(stub, 0), process)
        os.kill(log(stub, 0)[0][2], signal.SIGKILL)
        code, output, errors = end(process)
        again = end(start("--seeds", "4", "--scheduler", address))
    assert (code, output.splitlines()[-1]) == (1, "3 finished, 1 failed"), output + errors
    assert (again[0], again[1].splitlines()[-1]) == (1, "3 finished (3 before), 1 failed"), again
    assert [epoch for epoch, *_ in log(stub, 0)] == [1, 1, 2, 3]  # the other worker has no checkpoint
    for seed in (0, 1, 3):
        assert names(stub / "out" / f"convmixer-smoke-seed{seed}") == WHOLE
    assert "convmixer.unfinished.ipynb" in names(stub / "out" / "convmixer-smoke-seed2")
    kept = sorted(path.name[:21] for path in stub.glob("?/dask-scratch-space/patchlib/*"))
    assert [name for name in kept if name != "convmixer-smoke-seed0"] == ["convmixer-smoke-seed2"]


def test_a_run_that_somebody_else_is_at_is_waited_for_and_kept(stub):
    (run,) = planned("convmixer", "--out", "out").values()
    (run.folder / "checkpoint-00001").mkdir(parents=True)
    with filelock.FileLock(run.folder / ".lock"):
        process = start()
        wait_for((run.folder / ".batch.lock").exists, process)
        time.sleep(1)
        results = {"metrics": {"test_accuracy": 0.5}, "time": {"seconds": 7}}
        card = json.dumps(results | {"parameters": run.parameters.model_dump(exclude={"run_dir"})})
        (run.folder / "run.json").write_text(card)
        (run.folder / "checkpoint-00001").rmdir()
    code, output, errors = end(process)
    assert (code, output.splitlines()[-1], log(stub, 0)) == (0, "1 finished", []), output + errors
    assert (run.folder / "run.json").read_text() == card


def test_a_real_notebook(tmp_path):
    program = [sys.executable, "-m", "patchlib", "run", "vit", "--set", "limit=64", "--set", "epochs=1"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*program, "--seed", "3", "--out", "out"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "out" / "vit-smoke-epochs=1-limit=64-seed3"
    assert names(folder) == ["curves.png", "model.keras", "run.json", "vit.ipynb"]
    card = runs.load_card(folder)
    assert (card["seed"], card["parameters"]["limit"], card["tier"]) == (3, 64, "smoke")
    assert f"{card['metrics']['test_accuracy']:.4f}" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("convmixr", ["unknown notebook 'convmixr'", "'convmixer'", "gmlp"]),
        ("cct --tier basline", ["unknown tier of cct 'basline'", "'baseline'", "smoke"]),
        ("cct --set epoch=3", ["cct, tier smoke", "unknown parameter 'epoch'", "received 3", "'epochs'"]),
        ("cct --set epochs=1.5", ["'epochs'", "1.5 (float)", "integer"]),
        ("cct vit --set heads=0", ["cct", "'heads'", "received 0", "greater than or equal to 1"]),
        ("convmixer vit --set heads=2", ["convmixer", "unknown parameter 'heads'"]),
        ("cct --set epochs", ["--set", "'epochs'", "NAME=VALUE"]),
        ("cct --set run_dir=x", ["run_dir", "folder of its own below --out"]),
        ("cct --set seed=1", ["seed", "--seeds"]),
        ("cct --set tier=x", ["tier", "--tier"]),
        ("cct --set dataset=cifr10", ["'cifr10'", "'cifar10'", "digits", "there is no"]),
        ("cct --set dataset=photos/ --scheduler tcp://127.0.0.1:1", ["'photos/'", "absolute path"]),
        ("cct --seeds 0", ["--seeds 0", "--seed 0"]),
        ('cct --set dataset="cifr10"', ["'cifr10'", "'cifar10'"]),
        ("cct --notebooks nowhere", ["nowhere/cct.ipynb", "--notebooks"]),
    ],
)
def test_wrong_usage_is_said_in_a_sentence_and_nothing_is_written(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert batch.main(["run", *words.split()]) == 2
    output, error = capsys.readouterr()
    assert all(word in error for word in said), error
    assert (output, error.count("\n"), list(tmp_path.iterdir())) == ("", 1, [])


@pytest.mark.parametrize(
    "words", ["--workers 0", "--seeds -1", "--seeds 2 --seed 1", "--worker 2", "--workers 2 --scheduler x"]
)
def test_the_command_line_is_strict(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        batch.main(["run", *words.split()])


def planned(*words):
    return {run.folder.name: run for run in batch.plan(batch._parser().parse_args(["run", *words]))}


def test_what_is_planned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert list(planned("--seeds", "1")) == [f"{name}-smoke-seed0" for name in batch.ARCHITECTURES]
    assert list(planned("cct", "--tier", "smoke", "baseline", "--seeds", "4", "7")) == [
        *("cct-smoke-seed4", "cct-baseline-seed4", "cct-smoke-seed7", "cct-baseline-seed7")
    ]
    (run,) = planned("cct", "--tier", "baseline", "--set", "learning_rate=1e-3", "--set", "epochs=5").values()
    assert run.folder == tmp_path / "runs" / "cct-baseline-epochs=5-learning_rate=0.001-seed0"
    assert (run.parameters.learning_rate, run.parameters.epochs, run.parameters.dataset) == (1e-3, 5, "cifar10")
    assert planned("cct").popitem()[1].parameters.dim == 48  # of the notebook's own cell


def test_data_sets_of_one_name_have_two_folders_and_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/photos", "b/photos"):
        (tmp_path / name).mkdir(parents=True)
    (a, first), (b, _) = [planned("cct", "--set", f"dataset={x}/photos").popitem() for x in "ab"]
    assert a != b and a.startswith("cct-smoke-dataset=photos-") and "/" not in a
    assert first.parameters.dataset == str(tmp_path / "a" / "photos")


def test_a_folder_with_other_parameters_is_no_finished_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (run,) = planned("cct").values()
    run.folder.mkdir(parents=True)
    there = run.parameters.model_dump(exclude={"run_dir"}) | {"dim": 7}
    (run.folder / "run.json").write_text(json.dumps({"parameters": there}))
    assert batch.main(["run", "cct"]) == 1
    assert "failed    " in (output := capsys.readouterr().out) and "dim is 7 there and 48 here" in output


def test_a_finished_run_is_older_than_a_parameter(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (run,) = planned("cct").values()
    run.folder.mkdir(parents=True)
    there = run.parameters.model_dump(exclude={"run_dir", "cutmix"})
    card = {"parameters": there, "metrics": {"test_accuracy": 0.5}, "time": {"seconds": 7}}
    (run.folder / "run.json").write_text(json.dumps(card))
    assert batch.main(["run", "cct"]) == 0
    assert "1 finished (1 before)" in capsys.readouterr().out


def test_the_command_needs_neither_keras_nor_papermill_to_say_what_is_finished():
    modules = "{'keras', 'papermill', 'distributed', 'sklearn'}"
    program = f"import sys; sys.argv = ['patchlib']; import patchlib.batch; print({modules} & {{*sys.modules}})"
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ
    )
    assert printed.stdout == "set()\n"
    assert batch.CARD == runs.CARD


def test_no_scheduler_is_said_in_a_sentence(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("distributed.Client", lambda *a, **k: (_ for _ in ()).throw(OSError("refused")))
    assert batch.main(["run", "cct", "--scheduler", "tcp://127.0.0.1:1"]) == 2
    assert "nothing answers at tcp://127.0.0.1:1 (refused)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
