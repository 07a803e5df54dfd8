"""``patchlib run``: execute notebooks x tiers x seeds with papermill on a pool of worker processes.

The pool is a Dask cluster, started here or running elsewhere, and both are used alike. Here a worker works in the run's
own folder. Elsewhere it gets the notebook and its parameters as a message, works in a folder on its own disk, and sends
back what the run left. Neither Keras nor papermill is imported in this process, so what's finished is known at once.
"""

import argparse
import ast
import hashlib
import json
import logging
import os
import queue
import re
import shutil
import sys
import textwrap
import time
import uuid
from collections import Counter
from concurrent.futures import CancelledError
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from patchlib import data
from patchlib.parameters import ARCHITECTURES, ParameterError, RunParameters, nearest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
CARD = "run.json"  # as in patchlib.runs, which imports Keras
RETRIES = 3  # of a run whose worker or kernel died; it goes on from its checkpoint

# What can't be --set, and why.
_REFUSED = {
    "run_dir": "each run has a folder of its own below --out",
    "seed": "use --seeds or --seed",
    "tier": "use --tier",
}


class UsageError(ValueError):
    """What was asked for can't be run; nothing was started."""


@dataclass(frozen=True)
class Run:
    """One run of one notebook; runs of other parameters have other folders."""

    notebook: Path
    parameters: RunParameters
    folder: Path

    @property
    def finished(self) -> bool:
        return _finished(self.folder, self.notebook.stem)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: "finished", "skipped" because it was finished before, or "failed" for a reason."""

    status: str
    reason: str = ""
    accuracy: float = float("nan")
    seconds: float = float("nan")


def plan(asked: argparse.Namespace) -> list[Run]:
    """All runs that the command line asks for, their parameters checked; every notebook and tier before a second seed.

    Raises:
        UsageError: a notebook, a tier, a parameter or a data set is unknown or not accepted.
    """
    settings, seeds, runs = _settings(asked.settings), list(_seeds(asked)), []
    for architecture in dict.fromkeys(asked.notebooks or ARCHITECTURES):
        _refuse_unknown("notebook", architecture, ARCHITECTURES)
        notebook = asked.folder.absolute() / f"{architecture}.ipynb"
        smoke = _parameters_cell(notebook)
        for tier in dict.fromkeys(asked.tier):
            values = smoke | _tier(asked.folder / "tiers", architecture, tier) | settings
            if isinstance(values.get("dataset"), str):
                values["dataset"] = _dataset(values["dataset"], local=asked.scheduler is None)
            for seed in seeds:
                try:
                    parameters = ARCHITECTURES[architecture](**values | {"seed": seed, "run_dir": ""})
                except ParameterError as error:
                    raise UsageError(f"{architecture}, tier {tier}: {error}") from None
                changed = [f"{name}={_readable(getattr(parameters, name))}" for name in sorted(settings)]
                name = "-".join([architecture, tier, *changed, f"seed{seed}"])
                runs.append(Run(notebook, parameters, asked.out.absolute() / name))
    return sorted(runs, key=lambda run: seeds.index(run.parameters.seed))


def _refuse_unknown(kind, name, known):
    if name not in known:
        raise UsageError(
            f"unknown {kind} {name!r}: did you mean {nearest(name, known)!r}? There are {', '.join(known)}."
        )


def _settings(words):
    """``["epochs=5"]`` to ``{"epochs": 5}``: values as YAML reads them, but ``1e-3`` is a number."""
    import yaml  # here, so that its absence can be told in a sentence

    settings = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (name and equals):
            raise UsageError(f"--set: received {word!r}, accepted: NAME=VALUE.")
        if name in _REFUSED:
            raise UsageError(f"--set {name}: not accepted, {_REFUSED[name]}.")
        try:
            settings[name] = value = yaml.safe_load(text)
            if isinstance(value, str):
                settings[name] = float(value)
        except yaml.YAMLError:
            settings[name] = text
        except ValueError:  # a word it is
            pass
    return settings


def _seeds(asked):
    if asked.seed is not None:
        return [asked.seed]
    if asked.seeds == [0]:
        raise UsageError("--seeds 0: a single number says how many; for seed 0 alone use --seed 0.")
    return range(asked.seeds[0]) if len(asked.seeds) == 1 else list(dict.fromkeys(asked.seeds))


def _parameters_cell(notebook):
    """What stands in a notebook's parameters cell: the smoke tier."""
    try:
        cells = json.loads(notebook.read_text())["cells"]
        (cell,) = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
        statements = ast.parse("".join(cell["source"])).body
    except FileNotFoundError:
        raise UsageError(f"there is no {notebook}: name the folder of the notebooks with --notebooks.") from None
    except (ValueError, KeyError, SyntaxError) as error:
        raise UsageError(f"{notebook} isn't a notebook with one parameters cell ({_one_line(error)}).") from None
    return {s.target.id: ast.literal_eval(s.value) for s in statements if isinstance(s, ast.AnnAssign)}


def _tier(folder, architecture, tier):
    import yaml

    known = [path.stem.removeprefix(f"{architecture}-") for path in sorted(folder.glob(f"{architecture}-*.yaml"))]
    _refuse_unknown(f"tier of {architecture}", tier, ["smoke", *known])
    return {} if tier == "smoke" else yaml.safe_load((folder / f"{architecture}-{tier}.yaml").read_text())


def _dataset(name, local):
    """A data set's name, or its path as the notebook understands it, which is executed elsewhere."""
    path, names = Path(name).expanduser(), ", ".join(data.NAMES)
    if name in data.NAMES or (not local and path.is_absolute()):
        return name
    if local and path.exists():
        return str(path.absolute())
    where = f"a path, and there is no {path.absolute()}" if local else "an absolute path on the workers' own disks"
    raise UsageError(f"data set {name!r}: did you mean {nearest(name, data.NAMES)!r}? Accepted: {names}, or {where}.")


def _readable(value):
    """A value as part of a folder's name; of a path its last part, and a hash of the whole."""
    text = str(value)
    stem = re.sub(r"[^\w.]", "_", Path(text).stem)[:40]
    return text if re.fullmatch(r"[\w.+-]+", text) else f"{stem}-{_digest(text)}"


def _digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _finished(folder, architecture):
    """Whether the run card is there. If a checkpoint is there, too, the notebook stopped after the training."""
    executed = (folder / f"{architecture}.ipynb").exists() or not any(folder.glob("checkpoint-*"))
    return executed and (folder / CARD).exists()


def _same(folder, values):
    """Whether the folder has a run card with these parameters."""
    try:
        return json.loads((folder / CARD).read_text())["parameters"] == values
    except (OSError, ValueError, KeyError):
        return False


def execute(source: str, architecture: str, values: dict, name: str, place: tuple[str, str] | None) -> dict:
    """Execute one run's notebook: what a worker does.

    Args:
        source: the notebook.
        architecture: its name.
        values: its parameters, but for ``run_dir``.
        name: of the run's folder on this machine's own disk, if ``place`` is None. When this process is killed, whoever
            does the same run on the same machine finds its checkpoint there.
        place: the run's folder and the working directory, if this worker has the disk of who asked.

    Returns:
        ``error``: in one line, or "". ``files``: what the run left, by name, the card last, if ``place`` is None.
        ``folder`` and ``worker``: where they still are.

    Raises:
        RuntimeError: the kernel died or never came up, and it's worth another try.
    """
    import distributed
    import filelock
    import papermill

    if place:  # this process and its kernels are ours: their errors come as messages, and the terminal has the bar
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stderr.fileno())
    worker = distributed.get_worker()
    disk = Path(worker.local_directory).parent / "patchlib"
    folder, cwd = map(Path, place or (disk / name, NOTEBOOKS if NOTEBOOKS.is_dir() else Path.cwd()))
    folder.mkdir(parents=True, exist_ok=True)
    executed, unfinished = folder / f"{architecture}.ipynb", folder / f"{architecture}.unfinished.ipynb"
    os.environ["PATCHLIB_KEEP_CHECKPOINT"] = "1"  # for the kernel, which inherits it
    error = ""
    with filelock.FileLock(folder / ".batch.lock"):  # another batch may be at this run
        with filelock.FileLock(folder / ".lock"):  # a kernel outlives its killed worker by a second
            finished = _finished(folder, architecture)
            if not finished and _same(folder, values):
                (folder / CARD).unlink()  # the checkpoint is still there, and makes the same again
        if not finished:
            unfinished.write_text(source)
            try:
                papermill.execute_notebook(
                    unfinished,
                    unfinished,
                    values | {"run_dir": str(folder)},
                    progress_bar=False,
                    start_timeout=300,
                    resources={"metadata": {"path": str(cwd)}},  # papermill's cwd would move this whole process
                )
                os.replace(unfinished, executed)
            except papermill.PapermillExecutionError as failure:
                error = _one_line(f"{failure.ename}: {failure.evalue}")
        if not error:
            for checkpoint in folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
    left = [] if place else [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    if error:  # a card without a checkpoint beside it means a finished run
        left = [path for path in left if path.name != CARD]
    files = {path.name: path.read_bytes() for path in sorted(left, key=lambda path: path.name == CARD)}
    return {"error": error, "files": files, "folder": str(folder), "worker": worker.address}


def _one_line(text):
    return textwrap.shorten(str(text), 300, placeholder=" ...")


def judge(run: Run, status: str) -> Outcome:
    """A run's outcome by its card, which must hold the wanted parameters; those that it's too old for, as defaults."""
    try:
        card = json.loads((run.folder / CARD).read_text())
        wanted = run.parameters.model_dump(exclude={"run_dir"})
        fields = type(run.parameters).model_fields
        there = {name: field.default for name, field in fields.items() if name in wanted} | card["parameters"]
        for name in sorted(wanted.keys() | there.keys()):
            if wanted.get(name) != there.get(name):
                found = f"{name} is {there.get(name)!r} there and {wanted.get(name)!r} here"
                return Outcome("failed", f"{run.folder} holds another run ({found}): choose another --out.")
        return Outcome(status, "", card["metrics"]["test_accuracy"], card["time"]["seconds"])
    except FileNotFoundError:
        return Outcome("failed", f"the notebook ended without writing {CARD}.")
    except (ValueError, KeyError, TypeError) as error:
        return Outcome("failed", f"{run.folder / CARD} isn't a run card ({error!r}).")


def run_all(runs: list[Run], workers: int = 1, scheduler: str | None = None) -> dict[Run, Outcome]:
    """Execute what isn't finished, and report on stderr: a bar on a terminal, and a line for each run that ends.

    Args:
        runs: as ``plan`` gives them.
        workers: how many processes to start, if there's no ``scheduler``.
        scheduler: address of a Dask cluster's scheduler.

    Raises:
        UsageError: no scheduler answers.
        KeyboardInterrupt: as it came; the runs are stopped by then.
    """
    outcomes = {run: judge(run, "skipped") for run in runs if run.finished}
    todo = [run for run in runs if run not in outcomes]
    if not todo:
        return outcomes

    def done():
        return len(outcomes) + sum(_share(run) for run in runs if run not in outcomes)

    with ExitStack() as stack:
        client = _connect(scheduler, min(workers, len(todo)), stack)
        futures, ended = _submit(client, todo, local=scheduler is None)
        before, start = done(), time.perf_counter()
        skipped = sum(outcome.status == "skipped" for outcome in outcomes.values())
        print(f"{skipped} of {len(runs)} finished before", file=sys.stderr)
        bar = tqdm(initial=round(before, 2), total=len(runs), unit="run", smoothing=0, disable=not sys.stderr.isatty())
        stack.enter_context(bar)
        try:
            while futures:
                with suppress(queue.Empty):
                    run = ended.get(timeout=1)
                    outcomes[run] = outcome = _collect(client, run, futures.pop(run))
                    told = outcome.reason or f"test accuracy {outcome.accuracy:.4f}"
                    rest = (len(runs) - done()) * (time.perf_counter() - start) / max(0.01, done() - before)
                    line = f"{len(outcomes)}/{len(runs)} {run.folder.name}: {outcome.status}, {told}"
                    tqdm.write(f"{line}, {tqdm.format_interval(rest)} left", file=sys.stderr)
                bar.set_postfix(failed=sum(o.status == "failed" for o in outcomes.values()), refresh=False)
                bar.n = round(done(), 2)
                bar.refresh()
        except KeyboardInterrupt:
            _stop(client, list(futures.values()))
            raise
    return {run: outcomes[run] for run in runs}


def _share(run):
    """How much of a run that works here is done, by its newest checkpoint."""
    epochs = [int(path.name[-5:]) for path in run.folder.glob("checkpoint-*[0-9]")]
    return 1.0 if run.finished else max(epochs, default=0) / run.parameters.epochs


def _connect(scheduler, workers, stack):
    """A client of the cluster at this address, or of one started here; ``stack`` closes both."""
    import distributed
    from dask.system import CPU_COUNT

    if scheduler:
        try:
            return stack.enter_context(distributed.Client(scheduler, timeout=10))
        except (OSError, ValueError) as error:
            raise UsageError(f"--scheduler: nothing answers at {scheduler} ({_one_line(error)}).") from None
    shared = {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if workers > 1 else {}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
        shared[name] = str(max(1, CPU_COUNT // workers))
    environment = {name: os.environ.get(name, value) for name, value in shared.items()}
    if "PATCHLIB_DATA" in os.environ:  # the notebooks are executed in another folder
        environment["PATCHLIB_DATA"] = str(Path(os.environ["PATCHLIB_DATA"]).expanduser().absolute())
    cluster = distributed.LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        memory_limit=0,  # it's the kernels that need memory
        dashboard_address="127.0.0.1:0",  # any free port
        silence_logs=logging.CRITICAL,  # the terminal has the bar
        env=environment,
    )
    return stack.enter_context(distributed.Client(stack.enter_context(cluster)))


def _submit(client, runs, local):
    """A future for each run, and a queue that a run enters when it has ended."""
    futures, ended, batch = {}, queue.SimpleQueue(), f"patchlib-{uuid.uuid4().hex}"
    for run in runs:
        source, values = run.notebook.read_text(), run.parameters.model_dump(exclude={"run_dir"})
        name = f"{run.folder.name}-{_digest(source + json.dumps(values))}"
        place = (str(run.folder), str(run.notebook.parent)) if local else None
        futures[run] = client.submit(
            execute, source, run.notebook.stem, values, name, place, key=(batch, run.folder.name), retries=RETRIES
        )
        futures[run].add_done_callback(lambda _, run=run: ended.put(run))
    return futures, ended


def _collect(client, run, future):
    """The outcome of a run that has ended, its files put into its folder if they came as a message."""
    try:
        result = future.result()
        for name, content in result["files"].items():
            run.folder.mkdir(parents=True, exist_ok=True)
            partial = run.folder / f"{name}.partial"
            partial.write_bytes(content)
            os.replace(partial, run.folder / name)
    except (Exception, CancelledError) as error:
        return Outcome("failed", _one_line(error))
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


def table(outcomes: dict[Run, Outcome]) -> str:
    """A line for each run: its name, status, test accuracy and seconds of training, or why it failed."""
    width = max(len(run.folder.name) for run in outcomes)
    lines = [f"{'run':{width}}  status    test accuracy  seconds"]
    for run, ended in outcomes.items():
        told = ended.reason or f"{ended.accuracy:13.4f}  {ended.seconds:7,.0f}"
        lines.append(f"{run.folder.name:{width}}  {ended.status:8}  {told}")
    return "\n".join(lines)


def _parser():
    what = "Execute notebooks x tiers x seeds with papermill, each run in a folder of its own."
    again = "What is finished is skipped, what was interrupted goes on where it stopped."
    codes = "Exit code: 0 all runs are finished, 1 some failed, 2 wrong usage, 130 interrupted."
    parser = argparse.ArgumentParser(prog="patchlib", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help=what, description=f"{what} {again}", epilog=codes, allow_abbrev=False)
    run.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help=f"{', '.join(ARCHITECTURES)} (default: all)")
    run.add_argument("--tier", nargs="+", default=["smoke"], help="smoke (default), baseline, tuned; one or several")
    seeds = run.add_mutually_exclusive_group()
    seeds.add_argument(
        "--seeds", nargs="+", type=_number(0), default=[1], metavar="N", help="3: seeds 0 1 2; 4 7: these"
    )
    seeds.add_argument("--seed", type=_number(0), metavar="N", help="this seed alone")
    add = run.add_argument
    add(
        "--set", dest="settings", action="append", default=[], metavar="NAME=VALUE", help="a parameter; may be repeated"
    )
    add(
        "--out",
        type=Path,
        default=Path("runs"),
        metavar="FOLDER",
        help="the runs' folders are made here (default: runs)",
    )
    add("--notebooks", dest="folder", type=Path, default=NOTEBOOKS, metavar="FOLDER", help="(default: the checkout's)")
    pool = run.add_mutually_exclusive_group()
    pool.add_argument("--workers", type=_number(1), default=1, metavar="N", help="how many runs at a time (default: 1)")
    pool.add_argument("--scheduler", metavar="tcp://HOST:PORT", help="run on the workers of this Dask cluster")
    return parser


def _number(least):
    def number(text):
        if int(text) < least:
            raise ValueError
        return int(text)

    return number


def main(words: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    asked, runs = _parser().parse_args(words), []
    try:
        runs = plan(asked)
        outcomes = run_all(runs, asked.workers, asked.scheduler)
    except UsageError as error:
        print(f"patchlib run: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"patchlib run: {error.name} isn't installed: pip install 'patchlib[notebooks]'.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        finished = f"{sum(run.finished for run in runs)} of {len(runs)} finished"
        print(f"\ninterrupted, {finished}; the same command goes on where they stopped", file=sys.stderr)
        return 130
    print(table(outcomes))
    counts = Counter(outcome.status for outcome in outcomes.values())
    before = f" ({counts['skipped']} before)" if counts["skipped"] else ""
    failed = f", {counts['failed']} failed" if counts["failed"] else ""
    print(f"{counts['finished'] + counts['skipped']} finished{before}{failed}")
    return 1 if failed else 0
