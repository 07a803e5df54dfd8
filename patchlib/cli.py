"""The command line: ``patchlib run``.

A command is two functions: one that adds its parser, and one that does what was asked and returns the exit code. The
first needs the standard library alone, so help is there at once; the second imports what it needs.
"""

import argparse
import json
import os
import shlex
import sys
from collections import Counter
from pathlib import Path


def main(words: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    asked = _parser().parse_args(words)
    from patchlib import plan

    try:
        return asked.do(asked)
    except plan.UsageError as error:
        reason = str(error)
    except ModuleNotFoundError as error:
        unsaid = f"{error.name} isn't installed: pip install 'patchlib[notebooks]'."
        reason = error.msg if "pip install" in error.msg else unsaid
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    print(f"patchlib {asked.command}: {reason}", file=sys.stderr)
    return 2


def _parser():
    parser = argparse.ArgumentParser(prog="patchlib", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for add in (_add_run,):
        add(commands)
    return parser


def _number(least):
    def number(text):
        if int(text) < least:
            raise ValueError
        return int(text)

    return number


def _add_run(commands):
    what = "Execute notebooks x tiers x seeds with papermill, each run in a folder of its own."
    again = "What is finished is skipped, what was interrupted goes on where it stopped."
    codes = "Exit code: 0 all runs are finished, 1 some failed, 2 wrong usage, 130 interrupted."
    run = commands.add_parser("run", help=what, description=f"{what} {again}", epilog=codes, allow_abbrev=False)
    run.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="convmixer, cct, ... (default: all)")
    run.add_argument(
        "--tier", nargs="+", default=["smoke"], help="smoke (default), baseline, fast, tuned; one or several"
    )
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
    add(
        "--notebooks",
        dest="folder",
        type=Path,
        metavar="FOLDER",
        help="(default: the checkout's)",
    )
    add("--timeout", type=_number(1), metavar="SECONDS", help="a run fails if one of its cells takes longer")
    pool = run.add_mutually_exclusive_group()
    pool.add_argument("--workers", type=_number(1), default=1, metavar="N", help="how many runs at a time (default: 1)")
    pool.add_argument("--scheduler", metavar="tcp://HOST:PORT", help="run on the workers of this Dask cluster")
    run.set_defaults(do=_run)


def _run(asked):
    from patchlib import batch, plan

    runs = plan.plan(asked)
    try:
        outcomes = batch.run_all(runs, asked.workers, asked.scheduler, asked.timeout)
    except KeyboardInterrupt:
        finished = f"{sum(run.finished for run in runs)} of {len(runs)} finished"
        print(f"\ninterrupted, {finished}; the same command goes on where it stopped", file=sys.stderr)
        return 130
    (run, outcome), *others = outcomes.items()
    print(_table(outcomes) if others or outcome.reason else _details(run, outcome))
    counts = Counter(outcome.status for outcome in outcomes.values())
    before = f" ({counts['skipped']} before)" if counts["skipped"] else ""
    failed = f", {counts['failed']} failed" if counts["failed"] else ""
    print(f"{counts['finished'] + counts['skipped']} finished{before}{failed}")
    return 1 if failed else 0


def _table(outcomes):
    """A line for each run: its name, status, test accuracy and seconds of training, or why it failed."""
    width = max(len(run.folder.name) for run in outcomes)
    lines = [f"{'run':{width}}  status    test accuracy  seconds"]
    for run, ended in outcomes.items():
        told = ended.reason or f"{ended.accuracy:13.4f}  {ended.seconds:7,.0f}"
        lines.append(f"{run.folder.name:{width}}  {ended.status:8}  {told}")
    return "\n".join(lines)


def _details(run, outcome):
    """A finished run's accuracy and files, and a command that classifies a picture with its model."""
    from patchlib import cards

    folder = Path(os.path.relpath(run.folder))
    code = (
        f"import patchlib as p; model = p.load_model({json.dumps(str(folder))}); "
        'classes = model.card["dataset"]["classes"]; '
        'pixels = p.load_picture("picture.jpg", model.input_shape[1:3]); '
        "print(classes[model.predict(pixels[None], verbose=0).argmax()])"
    )
    lines = {
        "test accuracy": f"{outcome.accuracy:.4f}",
        "notebook": folder / run.notebook.name,
        "run card": folder / cards.CARD,
        "model": folder / cards.MODEL,
        "classify a picture": shlex.join([os.path.relpath(sys.executable), "-c", code]),
    }
    return "\n".join(f"{name}: {value}" for name, value in lines.items())
