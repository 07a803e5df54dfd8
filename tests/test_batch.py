"""`patchlib run`, mostly with a stub of a notebook that trains nothing and does as STUB says."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest

pytest.importorskip("distributed", reason="it comes with the notebooks' extra")
if sys.platform == "win32":
    pytest.skip("Windows has no signals to kill a process with", allow_module_level=True)

from test_cards import card as whole_card
from test_plan import planned

from patchlib import batch, cards

ROOT = Path(__file__).parents[1]

STUB = """
import json, os, pathlib, time
from patchlib import parameters
p = parameters.ConvMixer.read(globals())
act = json.loads(os.environ["STUB"]).get(str(seed))
folder = pathlib.Path(run_dir)
with open(os.environ["STUB_LOG"] + "/gpus", "a") as lines:
    print(os.getppid(), os.environ.get("CUDA_VISIBLE_DEVICES"), file=lines)
pathlib.Path(os.environ["STUB_LOG"], "imported").write_text(parameters.__file__)
log = pathlib.Path(os.environ["STUB_LOG"], f"seed{seed}")
first = not log.exists()
while (epoch := len(list(folder.glob("checkpoint-*"))) + 1) <= epochs:
    (folder / f"checkpoint-{epoch:05}").mkdir()
    with log.open("a") as lines:
        print(epoch, os.getpid(), os.getppid(), file=lines)
    if first and act == "hang":
        time.sleep(600)
os.system("echo noise >&2")
card = json.loads(os.environ["STUB_CARD"]) | {"parameters": p.model_dump(exclude={"run_dir"})}
(folder / "model.keras").write_text("weights")
(folder / "run.json").write_text(json.dumps(card))
if act == "die" and first:
    os.kill(os.getpid(), 9)
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


def finished_card(**changes):
    return whole_card(test=0.5, architecture="convmixer") | changes


def stubbed(acts):
    """The environment in which the stub does as it's told."""
    return {"STUB": json.dumps(acts), "STUB_CARD": json.dumps(finished_card()), "PYTHONPATH": str(ROOT)}


def start(*words, acts=None):
    command = [sys.executable, "-m", "patchlib", "run", "convmixer", "--notebooks", "notebooks", "--out", "out", *words]
    env = os.environ | stubbed(acts or {})
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


WHOLE = ["SHA256SUMS", "convmixer.ipynb", "model.keras", "run.json"]


@pytest.fixture
def two_gpus(tmp_path, monkeypatch):
    """Their driver says that there are two."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho GPU-one\necho GPU-two\n")
    (tmp_path / "nvidia-smi").chmod(0o755)


def test_gpus_are_those_that_may_be_used_and_none_where_no_driver_answers(tmp_path, monkeypatch, two_gpus):
    assert batch.gpus() == ["GPU-one", "GPU-two"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert batch.gpus() == ["3", "1"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho NVIDIA-SMI has failed\nexit 9\n")
    assert batch.gpus() == []
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert batch.gpus() == []


def test_eight_runs_on_two_gpus_of_which_one_fails_while_a_worker_and_a_kernel_are_killed(stub, two_gpus):
    words = ["--seeds", "8", "--set", "epochs=3"]
    process = start(*words, acts={0: "hang", 5: "fail", 6: "hang"})
    for seed, which in ((0, 2), (6, 1)):
        wait_for(lambda seed=seed: log(stub, seed), process)
        os.kill(log(stub, seed)[0][which], signal.SIGKILL)
    code, output, errors = end(process)
    assert code == 1, output + errors
    assert output.endswith("\n7 finished, 1 failed\n")
    assert [line for line in output.splitlines() if "failed    ValueError: first line and last" in line]
    assert len([line for line in errors.splitlines() if " of 8)" in line]) == 8
    for seed in range(8):
        assert [epoch for epoch, *_ in log(stub, seed)] == [1, 2, 3]  # no epoch twice, killed or not
        left = names(stub / "out" / f"convmixer-smoke-digits-epochs=3-seed{seed}")
        assert left == WHOLE if seed != 5 else "convmixer.ipynb" not in left and "convmixer.unfinished.ipynb" in left
    assert len({worker for *_, worker in log(stub, 0)}) == len({kernel for _, kernel, _ in log(stub, 6)}) == 2
    used = {tuple(line.split()) for line in (stub / "log" / "gpus").read_text().splitlines()}  # worker and GPU
    assert len(used) == len({worker for worker, _ in used}), "a worker keeps its GPU"
    assert {gpu for _, gpu in used} == {"GPU-one", "GPU-two"}

    before = {path: path.stat().st_mtime_ns for path in (stub / "out").glob("*/run.json")}
    code, output, errors = end(start(*words))  # the notebook's last cell has been mended
    assert (code, output.splitlines()[-1]) == (0, "8 finished (7 before)"), output + errors
    assert [epoch for epoch, *_ in log(stub, 5)] == [1, 2, 3]
    assert names(stub / "out" / "convmixer-smoke-digits-epochs=3-seed5") == WHOLE
    changed = [path for path in before if path.stat().st_mtime_ns != before[path]]
    assert [path.parent.name for path in changed] == ["convmixer-smoke-digits-epochs=3-seed5"]

    clock = time.monotonic()
    code, output, _ = end(start(*words))
    assert (code, output.splitlines()[-1]) == (0, "8 finished (8 before)")
    assert time.monotonic() - clock < 10


NAME = "convmixer-smoke-digits-epochs=2-seed0"


def test_interrupted_by_ctrl_c_the_same_command_goes_on(stub):
    process = start("--set", "epochs=2", acts={0: "hang"})
    wait_for(lambda: log(stub, 0), process)
    process.send_signal(signal.SIGINT)
    code, output, errors = end(process)
    assert (code, output) == (130, "")
    assert errors.endswith("interrupted, 0 of 1 finished; the same command goes on where it stopped\n")
    code, output, errors = end(start("--set", "epochs=2", acts={0: "hang"}))
    assert (code, output.splitlines()[-1]) == (0, "1 finished"), output + errors
    assert errors == f"{NAME}: finished, test accuracy 0.5000 (1 of 1)\n"  # no kernel's noise
    for said in (
        "test accuracy: 0.5000 on 10,000 images",
        f"notebook: out/{NAME}/convmixer.ipynb",
        f"run card: out/{NAME}/run.json",
    ):
        assert said in output.splitlines()
    assert [epoch for epoch, *_ in log(stub, 0)] == [1, 2]


def test_a_hung_cell_is_ended_and_the_notebook_kept(stub):
    code, output, errors = end(start("--set", "epochs=2", "--timeout", "8", acts={0: "hang"}))
    reason = "a cell took longer than 8 seconds (--timeout); convmixer.unfinished.ipynb has those before it."
    assert code == 1 and f"{NAME}  failed    {reason}" in output, output + errors
    assert names(stub / "out" / NAME) == ["checkpoint-00001", "convmixer.unfinished.ipynb"]
    assert [epoch for epoch, *_ in log(stub, 0)] == [1]  # it isn't tried again
    _, kernel, _ = log(stub, 0)[0]
    with subprocess.Popen(["sleep", "60"]) as meanwhile:
        wait_for(lambda: not Path(f"/proc/{kernel}").exists(), meanwhile)
        meanwhile.kill()


@contextlib.contextmanager
def cluster(folder):
    """A scheduler and two workers that share no folder; yields its address."""
    dask, where = [sys.executable, "-m", "distributed.cli.dask_scheduler"], folder / "scheduler.json"
    env = os.environ | stubbed({0: "hang", 2: "fail"})
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
        yield json.loads(where.read_text())["address"], processes[0]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_cluster_without_a_shared_disk_one_of_whose_workers_is_killed(stub):
    with cluster(stub) as (address, _):
        process = start("--seeds", "4", "--scheduler", address)
        wait_for(lambda: log(stub, 0), process)
        os.kill(log(stub, 0)[0][2], signal.SIGKILL)
        code, output, errors = end(process)
        again = end(start("--seeds", "4", "--scheduler", address))
    assert (code, output.splitlines()[-1]) == (1, "3 finished, 1 failed"), output + errors
    assert (again[0], again[1].splitlines()[-1]) == (1, "3 finished (3 before), 1 failed"), again
    assert [epoch for epoch, *_ in log(stub, 0)] == [1, 1, 2, 3]  # the other worker has no checkpoint
    for seed in (0, 1, 3):
        assert names(stub / "out" / f"convmixer-smoke-digits-seed{seed}") == WHOLE
    assert "convmixer.unfinished.ipynb" in names(stub / "out" / "convmixer-smoke-digits-seed2")
    kept = sorted(path.name[:28] for path in stub.glob("?/dask-scratch-space/patchlib/*"))
    assert [name for name in kept if name != "convmixer-smoke-digits-seed0"] == ["convmixer-smoke-digits-seed2"]


def test_a_scheduler_that_is_killed_is_said_in_a_sentence(stub):
    with cluster(stub) as (address, scheduler):
        process = start("--scheduler", address)
        wait_for(lambda: log(stub, 0), process)
        scheduler.kill()
        code, output, errors = end(process)
    reason = "failed, the scheduler is gone, or was told to stop this run: the same command begins it again. (1 of 1)"
    assert code == 1 and errors.endswith(f": {reason}\n") and "Traceback" not in errors, output + errors


def test_two_at_once_do_not_disturb_each_other_and_a_kernel_that_dies_after_its_card_has_not_finished(stub):
    twice = [start("--seeds", "2", acts={0: "die"}) for _ in range(2)]
    for process in twice:
        code, output, errors = end(process)
        assert (code, output.splitlines()[-1]) == (0, "2 finished"), output + errors
    for seed in range(2):
        assert [epoch for epoch, *_ in log(stub, seed)] == [1, 2, 3]
        assert names(stub / "out" / f"convmixer-smoke-digits-seed{seed}") == WHOLE


def test_a_run_that_somebody_else_is_at_is_waited_for_and_kept(stub):
    (run,) = planned("convmixer", "--out", "out").values()
    (run.folder / "checkpoint-00001").mkdir(parents=True)
    with filelock.FileLock(run.folder / ".lock"):
        process = start()
        wait_for((run.folder / ".batch.lock").exists, process)
        time.sleep(1)
        card = json.dumps(finished_card(parameters=run.parameters.model_dump(exclude={"run_dir"})))
        (run.folder / "run.json").write_text(card)
        (run.folder / "checkpoint-00001").rmdir()
    code, output, errors = end(process)
    assert (code, output.splitlines()[-1], log(stub, 0)) == (0, "1 finished", []), output + errors
    assert (run.folder / "run.json").read_text() == card


FINISHED = ["model.keras", "predictions.npz", "run.json", "convmixer.ipynb"]


def finished_run(*words):
    """A finished run's folder, as `patchlib run` leaves it."""
    (run,) = planned("convmixer", "--out", "out", *words).values()
    run.folder.mkdir(parents=True)
    for name in FINISHED:
        (run.folder / name).write_text(name)
    card = finished_card(parameters=run.parameters.model_dump(exclude={"run_dir"}))
    (run.folder / "run.json").write_text(json.dumps(card))
    (run.folder / "SHA256SUMS").write_text("\n".join(cards.sums(run.folder, FINISHED)))
    return run


@pytest.mark.parametrize("change", [lambda path: path.write_text(path.read_text() + " "), Path.unlink])
@pytest.mark.parametrize("name", FINISHED[:2] + FINISHED[3:])
def test_a_file_that_changed_since_its_run_ended_is_named(tmp_path, monkeypatch, name, change):
    monkeypatch.chdir(tmp_path)
    run = finished_run()
    assert batch.judge(run, "skipped").status == "skipped"
    change(run.folder / name)
    outcome = batch.judge(run, "skipped")
    assert (outcome.status, outcome.reason) == (
        "failed",
        f"{run.folder}: '{name}' changed since its run ended (SHA256SUMS): put it back, or remove the folder.",
    )


def test_a_card_that_changed_is_named_and_a_run_without_digests_is_as_valid_as_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = finished_run()
    card = json.loads((run.folder / "run.json").read_text())
    card["metrics"]["test_accuracy"] = 0.99
    (run.folder / "run.json").write_text(json.dumps(card))
    assert "'run.json' changed since" in batch.judge(run, "skipped").reason
    (run.folder / "SHA256SUMS").unlink()
    assert batch.judge(run, "skipped").accuracy == 0.99


def test_names_in_digests_open_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = finished_run()
    os.mkfifo(tmp_path / "fifo")
    (run.folder / "SHA256SUMS").write_text(f"{'0' * 64}  {tmp_path}/fifo\n")
    assert "fifo' changed since" in batch.judge(run, "skipped").reason
    (run.folder / "SHA256SUMS").unlink()
    os.mkfifo(run.folder / "SHA256SUMS")
    assert "there is no such file" in batch.judge(run, "skipped").reason
    (run.folder / "SHA256SUMS").unlink()
    (run.folder / "SHA256SUMS").write_bytes(b"\xff")
    assert "can't decode" in batch.judge(run, "skipped").reason


@pytest.mark.parametrize("name", ["../evil.py", "/tmp/evil.py", ".lock", "notes.txt", "cct.ipynb/../../evil"])
def test_files_of_other_names_that_a_worker_sends_are_refused(tmp_path, monkeypatch, name):
    class Future:
        def result(self):
            return {"error": "", "files": {"run.json": b"{}", name: b"evil"}, "folder": "x", "worker": "y"}

    monkeypatch.chdir(tmp_path)
    (run,) = planned("cct").values()
    outcome = batch._collect(None, run, Future())
    assert outcome.status == "failed" and outcome.reason.startswith(f"the worker sent [{name!r}], accepted: ")
    assert not list(tmp_path.rglob("*evil*")) and not run.folder.exists()


def test_a_kernel_imports_the_package_of_who_runs_it(stub):
    shutil.copytree(ROOT / "patchlib", stub / "patchlib", ignore=shutil.ignore_patterns("__pycache__"))
    env = {name: value for name, value in (os.environ | stubbed({})).items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "patchlib", "run", "convmixer", "--notebooks", "notebooks", "--out", "out"]
    subprocess.run(command, env=env, capture_output=True)
    assert (stub / "log" / "imported").read_text() == str(stub / "patchlib" / "parameters.py")


def test_without_a_terminal_there_is_a_line_an_epoch_and_a_minute(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (run,), clock, outcomes = planned("cct", "--set", "epochs=5").values(), [0.0], {}
    monkeypatch.setattr(batch.time, "monotonic", lambda: clock[0])
    history = {name: [] for name in ("loss", "accuracy", "val_loss", "val_accuracy")}

    def said():
        return [line.removeprefix(run.folder.name) for line in capsys.readouterr().err.splitlines()]

    def epochs(count, into, **more):
        into.mkdir(parents=True, exist_ok=True)
        for values in history.values():
            values.extend([0.5] * count)
        name = "progress.json" if "notes" in more else "run.json"
        (into / name).write_text(json.dumps({"history": history} | more))

    numbers = "loss 0.5000, accuracy 0.5000, validation loss 0.5000, validation accuracy 0.5000"
    report = batch._Report([run], outcomes)
    report.look()
    clock[0] = 61.0
    report.look()
    assert said() == ["01:01: 0 of 1 runs ended, 0 epochs done"]
    epochs(2, run.folder / "checkpoint-00002", notes=["a remark"])
    report.look()
    assert said() == [": a remark", f": epoch 1/5: {numbers}", f": epoch 2/5: {numbers}"]
    clock[0] = 110.0
    report.look()
    assert said() == []
    remarks = ["a remark", "checkpoint-00002 is broken"]  # the next kernel has one more
    (run.folder / "checkpoint-00002" / "progress.json").write_text(json.dumps({"history": history, "notes": remarks}))
    report.look()
    assert said() == [": checkpoint-00002 is broken"]
    shutil.rmtree(run.folder / "checkpoint-00002")
    epochs(1, run.folder)
    outcomes[run] = batch.Outcome("finished", accuracy=0.25)
    report.end(run)
    assert said() == [f": epoch 3/5: {numbers}", ": finished, test accuracy 0.2500 (1 of 1)"]


def test_a_run_of_whose_epochs_numbers_are_missing_is_followed_as_far_as_they_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (run,) = planned("cct", "--set", "epochs=4").values()
    folder = run.folder / "checkpoint-00001"
    folder.mkdir(parents=True)
    for history in ({"loss": [0.5]}, {"loss": [0.5], "accuracy": [0.5], "val_loss": [], "val_accuracy": [0.5]}):
        (folder / "progress.json").write_text(json.dumps({"history": history}))
        batch._Report([run], {}).look()


def test_on_a_terminal_a_bar_has_the_epochs_and_the_last_ones_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (run,), terminal = planned("cct", "--set", "epochs=4").values(), io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    folder = run.folder / "checkpoint-00001"
    folder.mkdir(parents=True)
    history = {"loss": [0.5], "accuracy": [0.5], "val_loss": [0.5], "val_accuracy": [0.125]}
    report = batch._Report([run], {})
    (folder / "progress.json").write_text(json.dumps({"history": history}))
    report.look()
    report.bar.close()
    bar = terminal.getvalue().split("\r")[-1]
    assert "1/4" in bar and "validation accuracy 0.1250" in bar and "epoch 1/4" not in terminal.getvalue()
