"""How fast patchlib is, beside the published examples: ``make bench``, or ``python tools/bench.py --help``.

Each contender is a process, and they take turns, so that a ratio within a run holds on a noisy machine too; numbers
are medians, with the quartiles of their spread. What is measured stands in ``contender.py``.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import matplotlib
import numpy as np
import yaml

from patchlib import cards, machine, markdown
from patchlib.parameters import ARCHITECTURES

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
RESULTS = HERE / "results"
TIERS = HERE.parent / "notebooks" / "tiers"
PYTORCH = HERE.parent / ".venv-torch" / "bin" / "python"
EXAMPLES = yaml.safe_load((HERE / "examples.yaml").read_text())
PYTORCH_FORMS = {
    "PyTorch": {"compiled": False, "bfloat16": False},
    "PyTorch, bfloat16": {"compiled": False, "bfloat16": True},
    "PyTorch, compiled": {"compiled": True, "bfloat16": False},
    "PyTorch, compiled, bfloat16": {"compiled": True, "bfloat16": True},
}
# By which libraries can be told to compute as on a processor with fewer instructions.
TOLD = ("ONEDNN_MAX_CPU_ISA", "XLA_FLAGS", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "OPENBLAS_CORETYPE")
ONEDNN = {"TF_ENABLE_ONEDNN_OPTS": "1"}  # of patchlib's own, which in contender.py aren't the first to import Keras
# What grows, for which architectures and from which to which value; the rest as in the tuned tier.
GROWTH = {
    "batch_size": (["convmixer", "cct", "gmlp"], [32, 64, 128, 256]),
    "depth": (["convmixer", "cct", "gmlp"], [1, 2, 4, 8]),
    "image_size": (["cct", "mlp_mixer", "convmixer"], [16, 32, 48, 64]),
    "patch_size": (["mlp_mixer", "fnet", "convmixer"], [2, 4, 8]),
}
# The image's side and the patch's in what the work should grow with, at a side of 32 pixels.
AXES = {
    "image_size": ("pixels of an image", lambda side: side**2),
    "patch_size": ("patches of an image", lambda side: (32 // side) ** 2),
}


class Process:
    """A contender in a process of its own: ``process("train")`` asks for a task's result."""

    def __init__(self, script, arguments, python=sys.executable, **environment):
        environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(HERE.parent)}
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, it closes with this object
        self.process = subprocess.Popen(
            [python, HERE / script, json.dumps(arguments)],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def __call__(self, task):
        try:
            self.process.stdin.write(f"{task}\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            self.process.kill()
            self.errors.seek(0)
            raise RuntimeError(f"{task}: this contender ended:\n{self.errors.read()[-2000:]}") from None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def tier(architecture, name, changes=(), environment=ONEDNN, **arguments):
    """A contender that trains a tier, with changes."""
    values = yaml.safe_load((TIERS / f"{architecture}-{name}.yaml").read_text()) | {"seed": 0} | dict(changes)
    arguments |= {"architecture": architecture, "parameters": values}
    return Process("contender.py", arguments, **environment)


def example(architecture):
    """A contender that trains the Keras example as its users do: with oneDNN where TensorFlow takes it by itself."""
    by_itself = any(word in machine.instructions() for word in ("VNNI", "BF16", "AMX"))
    environment = {"TF_ENABLE_ONEDNN_OPTS": str(int(by_itself))}
    return tier(architecture, "baseline", environment=environment, original=True)


def pytorch(architecture, **form):
    """A contender that trains the tuned tier's network in PyTorch."""
    return Process("pytorch.py", {"architecture": architecture, **form}, PYTORCH)


def spread(values):
    """Median and quartiles."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"median": middle, "quartiles": [low, high], "n": len(values)}


def take_turns(contenders, tasks, rounds):
    """{name: {task: spread}}, after one round of warming up that doesn't count."""
    for process in contenders.values():
        process("memory")  # so that all have built their models, and none does while another is timed
    found = {name: {task: [] for task in tasks} for name in contenders}
    for i in range(rounds + 1):
        for name, process in contenders.items():
            for task in tasks:
                found[name][task] += [process(task)] * (i > 0)
    return {name: {task: spread(v) for task, v in tasks.items()} for name, tasks in found.items()}


def compare(architectures, rounds):
    """A training step of each way to train each architecture, in seconds for 128 images, all in turns."""
    if not PYTORCH.exists():
        print("PyTorch is left out: `make .venv-torch/ready` installs it.", file=sys.stderr)
    results = {}
    for architecture in architectures:
        print(f"{architecture} ...", file=sys.stderr)
        with ExitStack() as stack:
            start = {"example": example(architecture)} if architecture in EXAMPLES else {}
            start |= {
                "baseline": tier(architecture, "baseline"),
                "tuned, float32": tier(architecture, "tuned", {"precision": "float32"}),
                "tuned": tier(architecture, "tuned"),
            }
            for name, form in PYTORCH_FORMS.items() if PYTORCH.exists() and architecture in EXAMPLES else ():
                if machine.has_bfloat16() or not form["bfloat16"]:  # else it's slower than anything else
                    start[name] = pytorch(architecture, **form)
            contenders = {name: stack.enter_context(process) for name, process in start.items()}
            rows = take_turns(contenders, ["train"], rounds)
            for name, process in contenders.items():
                rows[name]["memory"] = process("memory")
            tuned = contenders["tuned"]
            results[architecture] = {"contenders": rows, "floor": tuned("floor"), "profile": tuned("profile")}
    return results


def time_to_accuracy(architectures, rounds):
    """The example's published epochs at its own pace here, and ``fast`` from the command to the card.

    That has data, compilation, validation and test in it, and not the figures that the notebook draws afterwards.
    """
    results = {}
    for architecture in architectures:
        published = EXAMPLES[architecture]["accuracy"]
        with example(architecture) as process:
            step = take_turns({"example": process}, ["train"], rounds)["example"]["train"]["median"]
        steps = EXAMPLES[architecture]["values"]["epochs"] * math.ceil(45_000 / 128)
        with tempfile.TemporaryDirectory() as folder:
            start = time.time()
            command = [sys.executable, "-m", "patchlib", "run", architecture, "--tier", "fast", "--out", folder]
            subprocess.run(command, check=True, stdout=sys.stderr)
            (path,) = Path(folder).glob("*/run.json")
            seconds, fast = path.stat().st_mtime - start, cards.load_card(path)
        results[architecture] = {
            "published": published,
            "example": step * steps,
            "epochs": EXAMPLES[architecture]["values"]["epochs"],
            "fast": seconds,
            "test_accuracy": fast["metrics"]["test_accuracy"],
            "card": fast,
        }
        print(architecture, results[architecture], file=sys.stderr)
    return results


def start_up(rounds):
    """Seconds until something happens, each in a fresh process."""
    python = [sys.executable, "-c"]
    first_step = (
        "import numpy as np\nfrom patchlib import models, optimizers, parameters\n"
        "model = models.convmixer(dim=32, depth=2)\noptimizers.compile_model(model, parameters.Recipe(), 1)\n"
        "model.train_on_batch(np.zeros((16, 32, 32, 3)), np.eye(10)[:1].repeat(16, 0))"
    )
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "import patchlib": [*python, "import patchlib"],
            "import keras, as patchlib does": [*python, "import patchlib.backend"],
            "first step of a small ConvMixer": [*python, first_step],
            "make run": [sys.executable, "-m", "patchlib", "run", "convmixer", "--out", folder],
        }
        found = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                start = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                found[name].append(time.perf_counter() - start)
                shutil.rmtree(folder)
                os.mkdir(folder)
    return {name: spread(seconds) for name, seconds in found.items()}


def feed(architectures, workers):
    """Images a second that are prepared without training, by tier and number of threads, and what each costs."""
    rows = {}
    for architecture in architectures:
        for name in ("baseline", "fast", "tuned"):
            with tier(architecture, name, images=20_000) as process:
                speeds = {count: process(f"feed {count}") for count in workers}
                rows[f"{architecture}, {name}"] = {"speeds": speeds, "multiply_adds": process("multiply_adds")}
    return rows


def operations(rounds):
    """Seconds of the value and the gradient of each operation in ``layers.kernels``, and of Keras' own, in turns."""
    rows = {}
    for dtype in ("float32", "bfloat16"):
        with Process("operations.py", {"dtype": dtype}) as process:
            names = process("names")
            taken = {name: {"patchlib": [], "Keras": []} for name in names}
            for i in range(rounds + 1):
                for name in names:
                    for whose, seconds in process(name).items():
                        taken[name][whose] += [seconds] * (i > 0)
        rows[dtype] = {name: {w: spread(v) for w, v in found.items()} for name, found in taken.items()}
    return rows


def growth(rounds):
    """{parameter: {architecture: [{value, step, memory}, ...]}} of tuned tiers; a step is in seconds."""
    results = {}
    for parameter, (architectures, values) in GROWTH.items():
        for architecture in architectures:
            print(f"{architecture}: {parameter} ...", file=sys.stderr)
            with ExitStack() as stack:
                base = {"batch_size": 128 if parameter == "depth" else 32}
                changes = {value: base | {parameter: value} for value in values}
                contenders = {
                    value: stack.enter_context(tier(architecture, "tuned", change, images=4 * change["batch_size"]))
                    for value, change in changes.items()
                }
                rows = take_turns(contenders, ["train"], rounds)
                results.setdefault(parameter, {})[architecture] = [
                    {
                        "value": value,
                        "step": rows[value]["train"]["median"] * change["batch_size"] / 128,
                        "memory": contenders[value]("memory"),
                    }
                    for value, change in changes.items()
                ]
    return results


def summary(measured):
    """A training step of each architecture, and of how many the example's takes the time, as Markdown.

    Args:
        measured: {kind of processor: as ``compare`` measured on it}.
    """
    rows = []
    pairs = [(kind, *pair) for kind, compared in measured.items() for pair in compared.items()]
    for kind, architecture, result in pairs:
        step = {name: row["train"]["median"] for name, row in result["contenders"].items()}
        best = min((seconds for name, seconds in step.items() if name in PYTORCH_FORMS), default=None)
        reference = step.get("example")
        times = [reference, best, step["baseline"], step["tuned, float32"], step["tuned"]]
        cells = [f"{1000 * seconds:,.0f}" if seconds else "" for seconds in times]
        times_as_fast = f"{reference / step['tuned']:.1f}" if reference else ""
        rows.append([ARCHITECTURES[architecture].title, kind, *cells, times_as_fast])
    columns = ["", "processor", "example, ms", "PyTorch's best form, ms", "baseline, ms", "tuned in float32, ms"]
    return markdown.table([*columns, "tuned, ms", "times as fast as the example"], rows)


def _report_compare(compared):
    rows, floors = [], []
    for architecture, result in compared.items():
        reference = result["contenders"].get("example")
        for name, row in result["contenders"].items():
            step, (low, high) = row["train"]["median"], row["train"]["quartiles"]
            times = [f"{1000 * seconds:,.0f}" for seconds in (step, low, high)]
            times.append(f"{reference['train']['median'] / step:.2f}" if reference else "")
            rows.append([architecture, name, *times, f"{row['memory'] / 1e6:,.0f}"])
        floor, step = result["floor"], result["contenders"]["tuned"]["train"]["median"]
        most = ", ".join(f"{kind} {ms:,.0f}" for kind, ms in list(result["profile"].items())[:6])
        floors.append(
            [architecture, *(f"{1000 * s:,.0f}" for s in (step, floor["multiply_adds"], floor["bytes"])), most]
        )
    columns = ["", "", "128 images, ms", "lower quartile", "upper", "times as fast", "memory, MB"]
    floor_columns = ["tuned tier", "128 images, ms", "arithmetic's floor, ms", "memory's floor, ms", "most time in"]
    return f"{markdown.table(columns, rows)}\n\n{markdown.table(floor_columns, floors)}"


ACCURACY = ["published, %", "example, minutes", "`fast`, %", "`fast`, minutes", "times as fast"]
ACCURACY += ["the same by our baseline's epochs"]


def accuracy_summary(measured):
    """Time to the published accuracy, as Markdown: by the example's epochs, and by as many as our baselines needed.

    Args:
        measured: {kind of processor: as ``time_to_accuracy`` measured on it}.
    """
    rows = [[title, kind, *cells] for kind, found in measured.items() for title, *cells in _accuracy_rows(found)]
    return markdown.table(["", "processor", *ACCURACY], rows)


def _report_accuracy(found):
    return markdown.table(["", *ACCURACY], _accuracy_rows(found))


def _accuracy_rows(found):
    rows = []
    for architecture, row in found.items():
        accuracies = [f"{100 * row[key]:.2f}" for key in ("published", "test_accuracy")]
        times = [f"{row['example'] / 60:,.0f}", f"{row['fast'] / 60:.1f}", f"{row['example'] / row['fast']:.1f}"]
        baselines = cards.load_cards(HERE.parent / "results", architecture=architecture, tier="baseline")
        sooner = by_baselines(row, [card["history"]["val_accuracy"] for card in baselines])
        rows.append([ARCHITECTURES[architecture].title, accuracies[0], times[0], accuracies[1], *times[1:], sooner])
    return rows


def by_baselines(row, curves):
    """How many times as fast ``fast`` is as the example until our baseline first validates at what was published.

    The median of the runs that get there, and how many those are.
    """
    first = [
        next((epoch for epoch, reached in enumerate(curve, 1) if reached >= row["published"]), 0) for curve in curves
    ]
    there = [epoch for epoch in first if epoch]
    times = f"{row['example'] * np.median(there) / row['epochs'] / row['fast']:.1f}" if there else "never"
    return f"{times} ({len(there)} of {len(curves)})" if curves else ""


def _report_start_up(found):
    return markdown.table(["", "seconds"], [[name, f"{row['median']:.1f}"] for name, row in found.items()])


def _report_feed(found):
    rows = []
    for name, row in found.items():
        speeds = row["speeds"].values()
        # forward, for the input's gradient and for the weights': a product and a sum for each multiply-add
        fed = 3 * 2 * row["multiply_adds"] * max(speeds) / 1e12
        rows.append([name, *(f"{speed:,.0f}" for speed in speeds), f"{fed:,.1f}"])
    columns = [f"{count} thread{'s' * (int(count) > 1)}" for count in next(iter(found.values()))["speeds"]]
    return markdown.table(["images/s prepared", *columns, "busy up to, TFLOP/s"], rows)


def _report_operations(found):
    rows = []
    for name in found["float32"]:
        cells = []
        for row in (found[dtype][name] for dtype in ("float32", "bfloat16")):
            ours, theirs = (1000 * row[whose]["median"] for whose in ("patchlib", "Keras"))
            cells += [f"{theirs:.1f}", f"{ours:.1f}", f"{ours / theirs:.2f}"]
        rows.append([name, *cells])
    columns = [f"{what}, {dtype}" for dtype in ("float32", "bfloat16") for what in ("Keras, ms", "here, ms", "share")]
    return markdown.table(["value and gradient", *columns], rows)


def figure(found):
    """Step time and memory over what grows."""
    figure, axes = plt.subplots(2, len(found), figsize=(3.4 * len(found), 6), layout="constrained")
    for column, (parameter, lines) in enumerate(found.items()):
        label, measure = AXES.get(parameter, (parameter, int))
        for architecture, rows in lines.items():
            x, color = [measure(row["value"]) for row in rows], f"C{list(EXAMPLES).index(architecture)}"
            times, memory = [1000 * row["step"] for row in rows], [row["memory"] / 1e6 for row in rows]
            axes[0, column].plot(x, times, ".-", color=color, label=architecture)
            axes[1, column].plot(x, memory, ".-", color=color)
        axes[0, column].legend(fontsize=8)
        for ax, what in zip(axes[:, column], ("step, ms", "peak memory, MB"), strict=True):
            ax.set(xlabel=label, ylabel=what, xlim=(0, None), ylim=(0, None), xticks=x)
            ax.grid(alpha=0.3)
    return figure


# What is measured as Markdown; growth is a figure.
REPORTS = {
    "compare": _report_compare,
    "time_to_accuracy": _report_accuracy,
    "start_up": _report_start_up,
    "feed": _report_feed,
    "operations": _report_operations,
}


def kept(before, shared, what):
    """Rows that were measured before on the same hardware with the same versions: those of other architectures stay."""
    return before[what] if before == shared | {what: before[what]} else {}


def main():
    parser = argparse.ArgumentParser(description="Speed beside the published examples, and PyTorch.")
    kinds = ("compare", "time_to_accuracy", "start_up", "feed", "operations", "growth")
    parser.add_argument("what", nargs="*", default=["compare"], metavar="WHAT", help=f"{', '.join(kinds)} (compare)")
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES), choices=ARCHITECTURES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="threads of feed")
    parser.add_argument("--out", type=Path, default=RESULTS, help="with a folder for each kind of processor")
    asked = parser.parse_args()
    measure = {
        "compare": lambda: compare(asked.architectures, asked.rounds),
        "time_to_accuracy": lambda: time_to_accuracy([a for a in asked.architectures if a in EXAMPLES], asked.rounds),
        "start_up": lambda: start_up(asked.rounds),
        "feed": lambda: feed(asked.architectures, asked.workers),
        "operations": lambda: operations(asked.rounds),
        "growth": lambda: growth(asked.rounds),
    }
    if unknown := set(asked.what) - set(kinds):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(kinds)}")
    if asked.rounds < 1:
        parser.error(f"--rounds: received {asked.rounds}, accepted: 1 or more")
    folder = asked.out / machine.instructions()
    folder.mkdir(parents=True, exist_ok=True)
    told = {name: os.environ[name] for name in TOLD if name in os.environ}
    shared = {"hardware": machine.hardware() | told, "versions": machine.versions()}
    for what in asked.what:
        found, path = measure[what](), folder / f"{what}.json"
        if what in ("compare", "time_to_accuracy", "feed") and path.exists():
            found = kept(json.loads(path.read_text()), shared, what) | found
        path.write_text(json.dumps(shared | {what: found}, indent=1) + "\n")
        if what == "growth":
            figure(found).savefig(folder / "growth.png", dpi=100)
        else:
            (folder / f"{what}.md").write_text(REPORTS[what](found) + "\n")
            print(REPORTS[what](found), flush=True)


if __name__ == "__main__":
    main()
