"""The command line: ``patchlib run``, ``patchlib predict`` and ``patchlib export``.

A command is two functions: one that adds its parser, and one that does what was asked and returns the exit code. The
first needs the standard library alone, so help is there at once; the second imports what it needs.
"""

import argparse
import csv
import itertools
import json
import os
import shlex
import sys
import tempfile
from collections import Counter
from pathlib import Path

_ENDINGS = {"onnx": ".onnx", "litert": ".tflite", "saved_model": "-saved_model"}


def main(words: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    asked = _parser().parse_args(words)
    from patchlib import files, networks, pictures, plan

    try:
        code = asked.do(asked)
        sys.stdout.flush()
        return code
    except (plan.UsageError, pictures.DataError, networks.ModelError, files.PathError) as error:
        code, reason = 2, str(error)
    except ModuleNotFoundError as error:
        unsaid = f"{error.name} isn't installed: pip install 'patchlib[notebooks]'."
        code, reason = 2, error.msg if "pip install" in error.msg else unsaid
    except BrokenPipeError:  # whoever reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        code, reason = 1, str(error)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    print(f"patchlib {asked.command}: {reason}", file=sys.stderr)
    return code


def _parser():
    parser = argparse.ArgumentParser(prog="patchlib", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for add in (_add_run, _add_predict, _add_export):
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
    command = [os.path.relpath(sys.executable), "-m", "patchlib", "predict", str(folder), "picture.jpg"]
    lines = {
        "test accuracy": f"{outcome.accuracy:.4f}",
        "notebook": folder / run.notebook.name,
        "run card": folder / cards.CARD,
        "model": folder / cards.MODEL,
        "classify a picture": shlex.join(command),
    }
    return "\n".join(f"{name}: {value}" for name, value in lines.items())


def _add_predict(commands):
    what = "Classify pictures with a trained network."
    example = "Example: patchlib predict cct-cifar10 photos/ 'more/*.png' --top 1 --csv answers.csv."
    codes = "Exit code: 0 all pictures are classified, 1 some can't be read, 2 wrong usage, 130 interrupted."
    predict = commands.add_parser(
        "predict", help=what, description=what, epilog=f"{example} {codes}", allow_abbrev=False
    )
    _add_model(predict)
    predict.add_argument("paths", nargs="+", metavar="PATH", help="a picture, a folder of them, or a quoted pattern")
    predict.add_argument("--top", type=_number(1), default=5, metavar="N", help="how many classes to name (default: 5)")
    form = predict.add_mutually_exclusive_group()
    form.add_argument("--csv", metavar="FILE", help="write a row for each picture there; - is standard output")
    form.add_argument("--json", metavar="FILE", help="write a list of objects there; - is standard output")
    predict.set_defaults(do=_predict)


def _add_model(command):
    command.add_argument("model", metavar="MODEL", help="such as cct-cifar10, a run's folder or a .keras file")


def _predict(asked):
    from patchlib import files, networks, pictures

    networks.locate(asked.model)
    paths, target, broken = pictures.expand(asked.paths), asked.csv or asked.json or "-", []
    if target != "-":
        target = _writable("--csv" if asked.csv else "--json", target)
    model = networks.load_model(asked.model)

    def write(path):
        with open(path, "w", newline="", encoding="utf-8") as file:
            _answer(asked, model, paths, broken, file)

    if target == "-":
        _answer(asked, model, paths, broken, sys.stdout)
    else:
        files.put(target, write)
    if broken:
        print(f"{len(broken)} of {len(paths)} pictures can't be read", file=sys.stderr)
    return 1 if broken else 0


def _answer(asked, model, paths, broken, file):
    """Write what each picture is taken for, as it's known: as CSV, JSON or a table."""
    from patchlib import networks

    answered, names = _answered(model, paths, asked.top, broken, file), networks.classes(model)
    if asked.csv:
        rows = csv.writer(file, lineterminator="\n")
        places = range(1, min(asked.top, len(names)) + 1)
        rows.writerow(["path", *(f"{kind}_{place}" for place in places for kind in ("class", "probability"))])
        rows.writerows([path, *itertools.chain(*answer.items())] for path, answer in answered)
    elif asked.json:
        file.write("[")
        for number, (path, answer) in enumerate(answered):
            file.write(f"{',' if number else ''}\n{json.dumps({'path': path, 'classes': answer})}")
        file.write("\n]\n")
    else:
        width, longest = (max(map(len, map(str, texts))) for texts in (paths, names))
        for path, answer in answered:
            columns = (f"  {share:6.1%} {name:{longest}}" for name, share in answer.items())
            print(f"{path:{width}}{''.join(columns)}".rstrip(), file=file)


def _writable(option, name):
    """The path of what is to be written; refused before any work, if its folder can't be written into."""
    from patchlib import files, plan

    path = files.user_path(name)
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise plan.UsageError(f"{option} {name}: {path.parent} can't be written into ({error.strerror}).") from None
    return path


def _answered(model, paths, top, broken, file):
    """Each picture's path and answer; one that can't be read is a line on stderr and goes into ``broken``.

    There's a bar, unless the lines on the terminal show how far it is.
    """
    from tqdm import tqdm

    from patchlib import prediction

    hidden = file.isatty() or not sys.stderr.isatty()
    stream = tqdm(prediction.answers(model, paths, top), total=len(paths), unit="picture", disable=hidden)
    for path, answer in zip(paths, stream, strict=True):
        if isinstance(answer, prediction.DataError):
            broken.append(path)
            tqdm.write(f"patchlib predict: {answer}", file=sys.stderr)
        else:
            yield str(path).encode(errors="backslashreplace").decode(), answer  # names needn't be UTF-8


def _add_export(commands):
    what = "Write a trained network in a format that runs without patchlib, if it gives the same logits there."
    example = "Example: patchlib export cct-cifar10 --to onnx --out cct.onnx."
    codes = "Exit code: 0 the file is written, 1 the network can't be converted, 2 wrong usage, 130 interrupted."
    export = commands.add_parser("export", help=what, description=what, epilog=f"{example} {codes}", allow_abbrev=False)
    _add_model(export)
    export.add_argument("--to", choices=_ENDINGS, required=True, help="saved_model is a folder, others are a file")
    export.add_argument("--out", metavar="FILE", help="what to write, which must be new (default: MODEL.onnx, ...)")
    export.set_defaults(do=_export)


def _export(asked):
    from patchlib import networks, plan

    networks.locate(asked.model)
    name = Path(asked.model).absolute().name.removesuffix(".keras") + _ENDINGS[asked.to]
    path = _writable("--out", asked.out or name)
    from patchlib import exporting

    try:
        apart = exporting.export(networks.load_model(asked.model), asked.to, path)
    except exporting.ExportError as error:
        print(f"patchlib export: {error}", file=sys.stderr)
        return 1
    except ValueError as error:
        raise plan.UsageError(str(error)) from None
    print(f"{path}: its logits for crops of two photographs are the network's to {apart:.1g}")
    return 0
