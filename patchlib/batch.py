"""``patchlib run``: execute runs' notebooks with papermill on a pool of worker processes.

The pool is a Dask cluster, started here or running elsewhere, and both are used alike. Here a worker works in the run's
own folder. Elsewhere it gets the notebook and its parameters as a message, works in a folder on its own disk, and sends
back what the run left. Neither Keras nor papermill is imported in this process, so what's finished is known at once.
"""

import json
import logging
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import CancelledError
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from patchlib import cards, files
from patchlib.plan import Run, UsageError
from patchlib.schema import brief, shown

LEFT = ("curves.png", cards.MODEL, cards.PREDICTIONS, cards.CARD)  # what a run leaves, beside its notebook
RETRIES = 3  # of a run whose worker or kernel died; it goes on from its checkpoint
SILENCE = 60  # seconds after which it's said that the runs are going on


@dataclass(frozen=True)
class Outcome:
    """How a run ended: "finished", "skipped" because it was finished before, or "failed" for a reason."""

    status: str
    reason: str = ""
    accuracy: float = float("nan")  # on so many test images
    images: int = 0
    seconds: float = float("nan")


def execute(
    source: str, architecture: str, values: dict, name: str, place: tuple[str, str] | None, timeout: float | None
) -> dict:
    """Execute one run's notebook: what a worker does.

    Args:
        source: the notebook.
        architecture: its name.
        values: its parameters, but for ``run_dir``.
        name: of the run's folder on this machine's own disk, if ``place`` is None. When this process is killed, whoever
            does the same run on the same machine finds its checkpoint there.
        place: the run's folder and the working directory, if this worker has the disk of who asked.
        timeout: seconds that a cell may take; None: as long as it likes.

    Returns:
        ``error``: in one line, or "". ``files``: what the run left, by name, the card last, if ``place`` is None.
        ``folder`` and ``worker``: where they still are.

    Raises:
        RuntimeError: the kernel died or never came up, and it's worth another try.
    """
    import distributed
    import filelock
    import papermill
    from nbclient.exceptions import CellTimeoutError

    if place:  # this process and its kernels are ours: their errors come as messages, and the terminal has the bar
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stderr.fileno())
    worker = distributed.get_worker()
    if place and len(found := gpus()) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = found[worker.name % len(found)]  # here, workers' names are 0, 1, ...
    disk = Path(worker.local_directory).parent / "patchlib"
    folder, cwd = map(Path, place or (disk / name, disk))
    folder.mkdir(parents=True, exist_ok=True)
    executed, unfinished = folder / f"{architecture}.ipynb", folder / f"{architecture}.unfinished.ipynb"
    os.environ["PATCHLIB_KEEP_CHECKPOINT"] = "1"  # for the kernel, which inherits it
    error = ""
    # The first lock is for workers, held to the end; the second is training's own, and a kernel holds it that outlives
    # its killed worker by a second.
    with filelock.FileLock(folder / ".batch.lock"):
        with filelock.FileLock(folder / ".lock"):
            finished = cards.finished(folder)
        if not finished:
            unfinished.write_text(source, encoding="utf-8")
            try:
                papermill.execute_notebook(
                    unfinished,
                    unfinished,
                    values | {"run_dir": str(folder)},
                    progress_bar=False,
                    start_timeout=300,
                    execution_timeout=timeout,
                    resources={"metadata": {"path": str(cwd)}},  # papermill's cwd would move this whole process
                )
                files.settle(unfinished, executed)
                digests = "".join(f"{line}\n" for line in cards.sums(folder, [executed.name, *LEFT]))
                files.put(folder / cards.SUMS, lambda path: path.write_text(digests, encoding="utf-8"))
                for checkpoint in cards.checkpoints(folder):
                    files.discard_folder(checkpoint)
            except papermill.PapermillExecutionError as failure:
                error = brief(f"{failure.ename}: {failure.evalue}", 300)
            except CellTimeoutError:
                error = (
                    f"a cell took longer than {timeout:g} seconds (--timeout); {unfinished.name} has those before it."
                )
    left = [] if place else [unfinished, executed, folder / cards.SUMS, *(folder / name for name in LEFT)]
    if error:  # a card without a checkpoint beside it means a finished run
        left = [path for path in left if path.name != cards.CARD]
    sent = {path.name: path.read_bytes() for path in left if path.exists()}
    return {"error": error, "files": sent, "folder": str(folder), "worker": worker.address}


def gpus() -> list[str]:
    """This machine's NVIDIA GPUs, or those of ``CUDA_VISIBLE_DEVICES``, by the names that this variable takes."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return os.environ["CUDA_VISIBLE_DEVICES"].split(",")
    ask = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.split()
    return []


def judge(run: Run, status: str) -> Outcome:
    """A run's outcome by its card, which must hold the wanted parameters, and its files' digests if it has them."""
    digests, wanted = run.folder / cards.SUMS, run.parameters.model_dump(exclude={"run_dir"})
    try:
        card = cards.load_card(run.folder)
        written = files.read_text(digests).splitlines() if digests.exists() else []
    except (cards.RunError, OSError, ValueError) as error:
        return Outcome("failed", str(error))
    if changed := cards.difference(cards.parameters(card), wanted):
        return Outcome("failed", f"{run.folder} holds another run ({changed}): choose another --out.")
    found = cards.sums(run.folder, [run.notebook.name, *LEFT])
    if other := [line[66:] for line in written if line not in found]:
        what = f"{shown(', '.join(other))} changed since its run ended"
        return Outcome("failed", f"{run.folder}: {what} ({digests.name}): put it back, or remove the folder.")
    return Outcome(status, "", card["metrics"]["test_accuracy"], card["dataset"]["test"], card["time"]["seconds"])


def run_all(
    runs: list[Run], workers: int | None = None, scheduler: str | None = None, timeout: float | None = None
) -> dict[Run, Outcome]:
    """Execute what isn't finished, and report on stderr.

    Args:
        runs: as ``plan`` gives them.
        workers: how many processes to start, if there's no ``scheduler``; None: one for each GPU, at least one. Where
            there are several GPUs, a worker has one of them.
        scheduler: address of a Dask cluster's scheduler.
        timeout: seconds that a cell may take.

    Raises:
        UsageError: no scheduler answers.
        KeyboardInterrupt: as it came; the runs are stopped by then.
    """
    outcomes = {run: judge(run, "skipped") for run in runs if run.finished}
    todo = [run for run in runs if run not in outcomes]
    if not todo:
        return outcomes
    with ExitStack() as stack:
        report = _Report(todo, outcomes)
        stack.callback(report.bar.close)
        client = _connect(scheduler, min(workers or len(gpus()) or 1, len(todo)), stack)
        futures, ended = _submit(client, todo, scheduler is None, timeout)
        try:
            while futures:
                with suppress(queue.Empty):
                    run = ended.get(timeout=1)
                    outcomes[run] = _collect(client, run, futures.pop(run))
                    report.end(run)
                report.look()
        except KeyboardInterrupt:
            _stop(client, list(futures.values()))
            raise
    return {run: outcomes[run] for run in runs}


class _Report:
    """How far the runs are, on stderr: a bar over their epochs on a terminal, elsewhere a line an epoch and a minute.

    Epochs are seen by what stands in the runs' folders here.
    """

    def __init__(self, todo, outcomes):
        self.outcomes, self.total = outcomes, len(todo) + len(outcomes)
        reached = {run: cards.progress(run.folder) for run in todo}
        self.epochs = {run: _epochs(record) for run, record in reached.items()}  # done and reported
        self.notes = {run: record.get("notes", []) for run, record in reached.items()}  # said
        if outcomes:
            print(f"{len(outcomes)} of {self.total} finished before", file=sys.stderr)
        self.bar = tqdm(
            initial=sum(self.epochs.values()),
            total=sum(run.parameters.epochs for run in todo),
            unit="epoch",
            smoothing=0,
            disable=not sys.stderr.isatty(),
        )
        self.spoken = self.started = time.monotonic()

    def look(self):
        """Report what is new."""
        for run in self.epochs:
            if run not in self.outcomes:
                self._look_at(run)
        self.bar.n = sum(self.epochs.values())
        self.bar.refresh()
        now = time.monotonic()
        if self.bar.disable and now - self.spoken >= SILENCE:
            done = f"{len(self.outcomes)} of {self.total} runs ended, {sum(self.epochs.values())} epochs done"
            self._say(tqdm.format_interval(now - self.started), [done])

    def end(self, run):
        """Report a run's last epochs and its outcome."""
        self._look_at(run)
        self.epochs[run] = run.parameters.epochs  # patience may have made them fewer
        outcome = self.outcomes[run]
        told = outcome.reason or f"test accuracy {outcome.accuracy:.4f}"
        self._say(run.folder.name, [f"{outcome.status}, {told} ({len(self.outcomes)} of {self.total})"])

    def _look_at(self, run):
        record = cards.progress(run.folder)
        new = range(self.epochs[run], _epochs(record))
        lines = [cards.epoch_line(record["history"], epoch, run.parameters.epochs) for epoch in new]
        notes = record.get("notes", self.notes[run])
        self._say(run.folder.name, [note for note in notes if note not in self.notes[run]])
        self.notes[run] = notes
        if self.bar.disable:
            self._say(run.folder.name, lines)
        elif lines:
            self.bar.set_postfix_str(lines[-1].partition(": ")[2], refresh=False)
        self.epochs[run] += len(new)

    def _say(self, who, lines):
        for line in lines:
            tqdm.write(f"{who}: {line}", file=sys.stderr)
            self.spoken = time.monotonic()


def _epochs(record):
    history = record.get("history", {})
    return min(len(history.get(name, ())) for name in cards.ROW)


def _connect(scheduler, workers, stack):
    """A client of the cluster at this address, or of one started here; ``stack`` closes both."""
    import dask
    import distributed
    from dask.system import CPU_COUNT

    if scheduler:
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # a lost scheduler is said in the outcome
        try:
            return stack.enter_context(distributed.Client(scheduler, timeout=10))
        except (OSError, ValueError) as error:
            raise UsageError(f"--scheduler: nothing answers at {brief(scheduler)} ({brief(error)}).") from None
    shared = {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if workers > 1 else {}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
        shared[name] = str(max(1, CPU_COUNT // workers))
    environment = {name: os.environ.get(name, value) for name, value in shared.items()}
    # Kernels import this very package, and not another checkout's.
    places = str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, places))  # an empty one would be the working directory
    if "PATCHLIB_DATA" in os.environ:  # the notebooks are executed in another folder
        environment["PATCHLIB_DATA"] = str(files.user_path(os.environ["PATCHLIB_DATA"]).absolute())
    scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="patchlib-", ignore_cleanup_errors=True))
    # Else Dask looks at what each worker does every 10 ms, and leaves a folder behind.
    own = {"distributed.worker.profile.enabled": False, "temporary-directory": scratch}
    stack.enter_context(dask.config.set(own))
    cluster = distributed.LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        memory_limit=0,  # it's the kernels that need memory
        dashboard_address="127.0.0.1:0",  # any free port
        silence_logs=logging.CRITICAL,  # the terminal has the bar
        env=environment,
    )
    return stack.enter_context(distributed.Client(stack.enter_context(cluster)))


def _submit(client, runs, local, timeout):
    """A future for each run, and a queue that a run enters when it has ended."""
    ended: queue.SimpleQueue[Run] = queue.SimpleQueue()
    futures, batch = {}, f"patchlib-{uuid.uuid4().hex}"
    for run in runs:
        source, values = run.notebook.read_text(encoding="utf-8"), run.parameters.model_dump(exclude={"run_dir"})
        name = f"{run.folder.name}-{cards.digest(source + json.dumps(values))}"
        place = (str(run.folder), str(run.notebook.parent)) if local else None
        arguments = source, run.notebook.stem, values, name, place, timeout
        futures[run] = client.submit(execute, *arguments, key=(batch, run.folder.name), retries=RETRIES)
        futures[run].add_done_callback(lambda _, run=run: ended.put(run))
    return futures, ended


def _collect(client, run, future):
    """The outcome of a run that has ended, its files put into its folder if they came as a message."""
    try:
        result, notebook = future.result(), run.notebook.stem
        accepted = {f"{notebook}.ipynb", f"{notebook}.unfinished.ipynb", cards.SUMS, *LEFT}
        if others := set(result["files"]) - accepted:
            return Outcome(
                "failed", f"the worker sent {shown(sorted(others))}, accepted: {', '.join(sorted(accepted))}."
            )
        for name, content in result["files"].items():
            run.folder.mkdir(parents=True, exist_ok=True)
            files.put(run.folder / name, partial(Path.write_bytes, data=content))
    except CancelledError:
        return Outcome(
            "failed", "the scheduler is gone, or was told to stop this run: the same command begins it again."
        )
    except Exception as error:
        return Outcome("failed", brief(error, 300))
    if result["error"]:
        return Outcome("failed", result["error"])
    if result["files"]:
        with suppress(OSError, KeyError):  # the worker may be gone by now
            client.run(shutil.rmtree, result["folder"], ignore_errors=True, workers=[result["worker"]])
    return judge(run, "finished")


def _stop(client, futures):
    """Stop the workers that are at these runs and at nothing else; closing a cluster of our own stops it, too."""
    ours = {future.key for future in futures}
    if client.cluster is None:
        busy = [worker for worker, keys in client.processing().items() if keys and ours.issuperset(keys)]
        client.cancel(futures)
        client.restart_workers(busy, raise_for_error=False)
