"""The command line: ``patchlib run``, ``predict``, ``evaluate``, ``export`` and ``notebooks``.

A command is two functions: one that adds its parser, and one that does what was asked and returns the exit code. The
first needs the standard library alone, so help is there at once; the second imports what it needs.
"""

import argparse
import contextlib
import csv
import json
import math
import os
import shlex
import shutil
import sys
from collections import Counter
from pathlib import Path

import patchlib

_ENDINGS = {"onnx": ".onnx", "litert": ".tflite", "saved_model": "-saved_model"}
_EXTRA = "distributed jupyterlab papermill pyyaml"  # that of the name notebooks
_MODEL = "such as cct-cifar10, a run's folder or a .keras file"


def main(words: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    asked = _parser().parse_args(words)
    try:
        from patchlib import files, networks, pictures, plan

        code = asked.do(asked)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        unsaid = f"{error.name} isn't installed: pip install {_EXTRA}"
        code, reason = 2, error.msg if "pip install" in error.msg else unsaid
    except BrokenPipeError:  # whoever reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, FloatingPointError) as error:
        code, reason = 1, str(error)
    except (plan.UsageError, pictures.DataError, networks.ModelError, files.PathError) as error:
        code, reason = 2, str(error)
    print(f"patchlib {asked.command}: {reason}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        super().error(message if len(message) <= 300 else f"{message[:300]}...")


def _parser():
    ends = "Example: patchlib run convmixer. Each command has --help, with its own example and exit codes."
    parser = _Parser(prog="patchlib", epilog=ends, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"patchlib {patchlib.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for add in (_add_run, _add_predict, _add_evaluate, _add_export, _add_notebooks):
        add(commands)
    return parser


def _command(commands, do, what, more, example, codes):
    ends = f"Example: patchlib {example}. Exit code: {codes}, 2 wrong usage, 130 interrupted."
    name, description = do.__name__.removeprefix("_"), f"{what} {more}".rstrip()
    command = commands.add_parser(name, help=what, description=description, epilog=ends, allow_abbrev=False)
    command.set_defaults(do=do)
    return command


def _number(least):
    def number(text):
        if not text.isdecimal() or len(text) > 10 or int(text) < least:
            accepted = f"a whole number from {least} on, of at most ten digits"
            raise argparse.ArgumentTypeError(f"received {text[:80]!r}, accepted: {accepted}.")
        return int(text)

    return number


def _add_run(commands):
    what = "Execute notebooks x tiers x seeds with papermill, each run in a folder of its own."
    again = "What is finished is skipped, what was interrupted goes on where it stopped."
    example, codes = "run cct vit --tier fast --seeds 3 --set dataset=photos/", "0 all runs are finished, 1 some failed"
    run = _command(commands, _run, what, again, example, codes)
    run.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="convmixer, cct, ... (default: all)")
    add, seeds = run.add_argument, run.add_mutually_exclusive_group()
    add("--tier", nargs="+", default=["smoke"], help="smoke (default), baseline, fast, tuned; one or several")
    seeds.add_argument(
        "--seeds", nargs="+", type=_number(0), default=[1], metavar="N", help="3: seeds 0 1 2; 4 7: these"
    )
    seeds.add_argument("--seed", type=_number(0), metavar="N", help="this seed alone")
    add("--set", dest="settings", action="append", default=[], metavar="NAME=VALUE", help="a parameter; repeatable")
    add("--out", type=Path, default=Path("runs"), metavar="FOLDER", help="where the runs' folders are made (runs)")
    add("--notebooks", dest="folder", type=Path, metavar="FOLDER", help="(default: patchlib's own)")
    add("--timeout", type=_number(1), metavar="SECONDS", help="a run fails if one of its cells takes longer")
    pool = run.add_mutually_exclusive_group()
    pool.add_argument("--workers", type=_number(1), metavar="N", help="runs at a time (one for each GPU, or one)")
    pool.add_argument("--scheduler", metavar="tcp://HOST:PORT", help="run on the workers of this Dask cluster")


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

    folder = Path(_short(run.folder))
    command = [_short(sys.executable), "-m", "patchlib", "predict", str(folder), "picture.jpg"]
    lines = {
        "test accuracy": f"{outcome.accuracy:.4f} on {outcome.images:,} images",
        "notebook": folder / run.notebook.name,
        "run card": folder / cards.CARD,
        "model": folder / cards.MODEL,
        "classify a picture": shlex.join(command),
    }
    return "\n".join(f"{name}: {value}" for name, value in lines.items())


def _short(path):
    """A path from the working directory on; as it is, where there's none, as on Windows to another drive."""
    with contextlib.suppress(ValueError):
        return os.path.relpath(path)
    return str(path)


def _add_predict(commands):
    what = "Classify pictures with a trained network."
    example = "predict cct-cifar10 photos/ 'more/*.png' --top 1 --csv > answers.csv"
    codes = "0 all pictures are classified, 1 some can't be read"
    predict = _command(commands, _predict, what, "", example, codes)
    predict.add_argument("model", metavar="MODEL", help=_MODEL)
    predict.add_argument("paths", nargs="+", metavar="PATH", help="a picture, a folder of them, or a quoted pattern")
    predict.add_argument("--top", type=_number(1), default=5, metavar="N", help="how many classes to name (default: 5)")
    form = predict.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="print CSV, a row for each picture and class")
    form.add_argument("--json", action="store_true", help="print JSON, a line for each picture")


def _predict(asked):
    from tqdm import tqdm

    from patchlib import networks, pictures
    from patchlib.schema import printable

    networks.locate(asked.model)
    paths, broken = pictures.expand(asked.paths), 0
    from patchlib import prediction  # not before, since it takes a second

    model = networks.load_model(asked.model)
    answers, rows = prediction.answers(model, paths, asked.top), csv.writer(sys.stdout, lineterminator="\n")
    if asked.csv:
        rows.writerow(["path", "class", "probability"])
    width, longest = (max(map(len, map(str, texts))) for texts in (paths, networks.classes(model)))
    hidden = sys.stdout.isatty() or not sys.stderr.isatty()  # the lines on the terminal show how far it is
    for path, answer in zip(paths, tqdm(answers, total=len(paths), unit="picture", disable=hidden), strict=True):
        name = printable(str(path))
        if isinstance(answer, pictures.DataError):
            broken += 1
            tqdm.write(f"patchlib predict: {answer}", file=sys.stderr)
        elif asked.csv:
            rows.writerows([name, *pair] for pair in answer.items())
        elif asked.json:
            print(json.dumps({"path": name, "classes": answer}))
        else:
            shares = [f"{share:6.1%} {label:{longest}}" for label, share in answer.items()]
            print("  ".join([f"{name:{width}}", *shares]).rstrip())
    if broken:
        print(f"{broken} of {len(paths)} pictures can't be read", file=sys.stderr)
    return 1 if broken else 0


def _add_evaluate(commands):
    what = "Say how good a trained network is on a data set's test images, and where it is wrong."
    example = "evaluate cct-cifar10 photos/ --out answers/"
    evaluate = _command(commands, _evaluate, what, "", example, "0 done, 1 failed")
    evaluate.add_argument("model", metavar="MODEL", help=_MODEL)
    evaluate.add_argument("data", metavar="DATA", help="digits, cifar10, cifar100, an .npz file, a .csv file, a folder")
    evaluate.add_argument("--out", type=Path, metavar="FOLDER", help="a new folder for a figure and tables")


def _evaluate(asked):
    from patchlib import files, networks, plan
    from patchlib.schema import shown

    networks.locate(asked.model)
    plan.data_set(asked.data)
    out = asked.out and _new(asked.out)
    from patchlib import data, evaluation, markdown, plots, training  # not before, since they take seconds

    model = networks.load_model(asked.model)
    classes, (height, width) = networks.classes(model), model.input_shape[1:3]
    found = data.load_data(asked.data, image_size=height if height == width else 0)
    pairs = {"images of": (found.input_shape, model.input_shape[1:]), "the classes": (found.classes, tuple(classes))}
    for what, (there, here) in pairs.items():
        if there != here:
            raise plan.UsageError(f"{asked.data} has {what} {shown(there)}, accepted: the model's, {shown(here)}.")
    shares = evaluation.probabilities(training.logits(model, found.test), networks.temperature(model))
    test, predicted = found.test, shares.argmax(axis=1)
    tables = evaluation.tables(test.labels, predicted, shares.max(axis=1), classes, test.files)

    def fill(folder):
        for name, rows in tables.items():
            with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows(rows)
        plots.mistakes(found.test.images, tables).savefig(folder / "mistakes.png", dpi=150)

    if out:
        files.put_folder(out, fill)
    print(evaluation.headline(tables))
    names, *rows = tables["classes"]
    worst = sorted((row for row in rows if row[1]), key=lambda row: row[3])[:10]
    said = [[name, images, "–" if math.isnan(p) else f"{p:.3f}", f"{r:.3f}"] for name, images, p, r in worst]
    print(markdown.table(names, said))
    if out:
        print(f"tables and a figure: {asked.out}")
    return 0


def _new(path):
    """Where something is to be written; refused before any work, if it's there already or can't be made."""
    from patchlib import files, plan

    path = files.user_path(path).absolute()
    if path.exists() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise plan.UsageError(f"--out: received {path}, accepted: a new name in a folder that can be written into.")
    return path


def _add_export(commands):
    what = "Write a trained network in a format that runs without patchlib, if it gives the same logits there."
    example = "export cct-cifar10 --to onnx --out cct.onnx"
    codes = "0 the file is written, 1 the network can't be converted"
    export = _command(commands, _export, what, "", example, codes)
    export.add_argument("model", metavar="MODEL", help=_MODEL)
    export.add_argument("--to", choices=_ENDINGS, required=True, help="saved_model is a folder, others are a file")
    export.add_argument("--out", metavar="FILE", help="what to write, which must be new (default: MODEL.onnx, ...)")


def _export(asked):
    from patchlib import networks, plan

    networks.locate(asked.model)
    name = Path(asked.model).absolute().name.removesuffix(".keras")
    path = _new(asked.out or f"{name}{_ENDINGS[asked.to]}")
    from patchlib import exporting

    try:
        apart = exporting.export(networks.load_model(asked.model), asked.to, path)
    except exporting.ExportError as error:
        print(f"patchlib export: {error}", file=sys.stderr)
        return 1
    except ValueError as error:
        raise plan.UsageError(str(error)) from None
    print(f"{_short(path)}: its logits for crops of two photographs are the network's to {apart:.1g}")
    return 0


def _add_notebooks(commands):
    what = "Copy the notebooks, their tiers and their diagrams into a folder, to be read, changed and run there."
    copy = _command(commands, _notebooks, what, "", "notebooks notebooks/", "0 all are copied, 1 failed")
    copy.add_argument("folder", metavar="FOLDER", help="a new one, or one without these files")


def _notebooks(asked):
    from patchlib import plan

    folder = plan.folder("FOLDER", asked.folder)
    if there := sorted(path.name for path in plan.NOTEBOOKS.iterdir() if (folder / path.name).exists()):
        raise plan.UsageError(f"received {folder}, which has {', '.join(there)}; accepted: a folder without these.")
    shutil.copytree(plan.NOTEBOOKS, folder, ignore=shutil.ignore_patterns("runs", ".*"), dirs_exist_ok=True)
    print(f"to open the notebooks: jupyter lab {shlex.quote(_short(folder))}")
    return 0
