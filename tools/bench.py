"""How fast patchlib is, beside the published examples: ``make bench``, or ``python tools/bench.py --help``.

Each contender is a process, and they take turns, so that a ratio within a run holds on a noisy machine too; numbers
are medians, with the quartiles of their spread. What is measured stands in ``contender.py``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import matplotlib
import numpy as np
import yaml

from patchlib import machine, markdown

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
TIERS = HERE.parent / "notebooks" / "tiers"
JAX = HERE.parent / ".venv-jax" / "bin" / "python"
ARCHITECTURES = list(yaml.safe_load((HERE / "examples.yaml").read_text()))
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
    """A ``contender.py`` on a tier's parameters: ``process("train")`` asks for a task's result."""

    def __init__(self, architecture, tier, backend="tensorflow", changes=None, **arguments):
        values = yaml.safe_load((TIERS / f"{architecture}-{tier}.yaml").read_text()) | {"seed": 0} | (changes or {})
        arguments |= {"architecture": architecture, "parameters": values}
        environment = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(HERE.parent)}
        if backend == "jax":  # whose memory comes from malloc: large pages make it faster
            environment["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        python = str(JAX) if backend == "jax" else sys.executable
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, it closes with this object
        self.process = subprocess.Popen(
            [python, HERE / "contender.py", json.dumps(arguments)],
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


def spread(values):
    """Median and quartiles."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"median": middle, "quartiles": [low, high], "n": len(values)}


def take_turns(contenders, tasks, rounds):
    """{name: {task: spread}}, after one round of warming up that doesn't count."""
    _ready(contenders)
    found = {name: {task: [] for task in tasks} for name in contenders}
    for i in range(rounds + 1):
        for name, process in contenders.items():
            for task in tasks:
                if not (task == "feed" and name == "original"):  # part of its model, or of tf.data
                    found[name][task] += [process(task)] * (i > 0)
    return {name: {task: spread(v) for task, v in tasks.items() if v} for name, tasks in found.items()}


def _ready(contenders):
    """Wait until all have built their models, so that none does while another is timed."""
    for process in contenders.values():
        process("memory")


def compare(architectures, rounds):
    """Original, baseline and tuned tier of each architecture, all at a batch of 128; ConvMixer on JAX as well."""
    results = {}
    for architecture in architectures:
        print(f"{architecture} ...", file=sys.stderr)
        with ExitStack() as stack:
            same = {"changes": {"batch_size": 128}}
            start = {
                "original": Process(architecture, "baseline", original=True),
                "baseline": Process(architecture, "baseline", **same),
                "tuned": Process(architecture, "tuned", **same),
            }
            if architecture == "convmixer" and JAX.exists():
                start["baseline, JAX"] = Process(architecture, "baseline", "jax", **same)
            contenders = {name: stack.enter_context(process) for name, process in start.items()}
            rows = take_turns(contenders, ["train", "infer", "feed"], rounds)
            for name, process in contenders.items():
                rows[name]["memory"] = process("memory")
            tuned = contenders["tuned"]
            results[architecture] = {"contenders": rows, "floor": _floor(tuned("work"), tuned("machine"))}
            results[architecture]["profile"] = {
                name: contenders[name]("profile") for name in ("original", "baseline", "tuned")
            }
    return results


def _floor(work, machine):
    """Seconds that the tuned tier's step would take at the machine's best, in arithmetic and in memory traffic."""
    return {what: work[what] / machine[what] for what in work} | {"machine": machine}


def time_to_accuracy(architecture="cct", dataset="cifar10", epochs=5, short=2):
    """Epoch by epoch in turns: the original to its fifth, and how long the tuned tier takes to get where it is then.

    The tuned tier's schedule is over so few epochs as it's given; its rate falls in them.
    """
    with ExitStack() as stack:
        start = {
            "original": Process(architecture, "baseline", original=True, dataset=dataset),
            "tuned": Process(architecture, "tuned", dataset=dataset, changes={"epochs": short, "validation": "last"}),
        }
        contenders = {name: stack.enter_context(process) for name, process in start.items()}
        found = {name: [] for name in contenders}
        _ready(contenders)
        for epoch in range(epochs):
            for name, process in contenders.items():
                if name != "tuned" or epoch < short:
                    found[name].append(process("until"))
                    print(name, found[name][-1], file=sys.stderr)
    target = found["original"][-1]["val_accuracy"]
    reached = {
        name: next((row["seconds"] for row in rows if row["val_accuracy"] >= target), None)
        for name, rows in found.items()
    }
    return {"architecture": architecture, "dataset": dataset, "target": target, "seconds": reached, "epochs": found}


def growth(rounds):
    """{parameter: {architecture: [{value, train, memory}, ...]}} of tuned tiers."""
    results = {}
    for parameter, (architectures, values) in GROWTH.items():
        for architecture in architectures:
            print(f"{architecture}: {parameter} ...", file=sys.stderr)
            with ExitStack() as stack:
                base = {"batch_size": 128 if parameter == "depth" else 32}
                changes = {value: base | {parameter: value} for value in values}
                contenders = {
                    value: stack.enter_context(
                        Process(architecture, "tuned", changes=change, images=4 * change["batch_size"])
                    )
                    for value, change in changes.items()
                }
                rows = take_turns(contenders, ["train"], rounds)
                results.setdefault(parameter, {})[architecture] = [
                    {"value": value, **rows[value], "memory": contenders[value]("memory")} for value in values
                ]
    return results


def summary(compared):
    """A training step of each architecture and of how many the example's takes the time, as Markdown."""
    rows = []
    for architecture, result in compared.items():
        steps = [result["contenders"][name]["train"]["median"] for name in ("original", "baseline", "tuned")]
        times = [f"{1000 * step:,.0f}" for step in steps]
        rows.append([architecture, *times, *(f"{steps[0] / step:.2f}" for step in steps[1:])])
    columns = ["", "example, ms", "baseline, ms", "tuned, ms", "baseline, times as fast", "tuned, times as fast"]
    return markdown.table(columns, rows)


def report(found):
    """The findings as Markdown."""
    parts = []
    if "compare" in found:
        parts += [_steps(found["compare"]), _floors(found["compare"])]
    if "time_to_accuracy" in found:
        result = found["time_to_accuracy"]
        parts.append(
            f"Seconds to a validation accuracy of {100 * result['target']:.1f}%, the original's after its "
            f"{len(result['epochs']['original'])}th epoch ({result['architecture']}, {result['dataset']}):"
        )
        whole = result["seconds"]["original"]
        rows = [
            [name, f"{seconds:,.0f}", f"{seconds / whole:.2f}"] if seconds else [name, "not reached", ""]
            for name, seconds in result["seconds"].items()
        ]
        parts.append(markdown.table(["", "seconds", "of the original's"], rows))
    return "\n\n".join(parts)


def _steps(compared):
    rows = []
    for architecture, result in compared.items():
        reference = result["contenders"]["original"]["train"]["median"]
        for name, row in result["contenders"].items():
            step, (low, high) = row["train"]["median"], row["train"]["quartiles"]
            times = [f"{1000 * seconds:,.0f}" for seconds in (step, low, high)] + [f"{reference / step:.2f}"]
            feed = f"{row['feed']['median']:,.0f}" if "feed" in row else ""
            rows.append([architecture, name, *times, f"{row['infer']['median']:,.0f}", feed])
            rows[-1].append(f"{row['memory'] / 1e6:,.0f}")
    columns = ["", "", "step, ms", "lower quartile", "upper", "times as fast", "inference, images/s", "input, images/s"]
    return markdown.table([*columns, "memory, MB"], rows)


def _floors(compared):
    rows = []
    for architecture, result in compared.items():
        floor, step = result["floor"], result["contenders"]["tuned"]["train"]["median"]
        most = ", ".join(f"{kind} {ms:,.0f}" for kind, ms in list(result["profile"]["tuned"].items())[:5])
        times = [f"{1000 * seconds:,.0f}" for seconds in (step, floor["multiply_adds"], floor["bytes"])]
        rows.append([architecture, *times, most])
    columns = ["tuned tier", "step, ms", "arithmetic's floor, ms", "memory's floor, ms", "most time in"]
    return markdown.table(columns, rows)


def figure(found):
    """Step time and memory over what grows."""
    figure, axes = plt.subplots(2, len(found), figsize=(3.4 * len(found), 6), layout="constrained")
    for column, (parameter, lines) in enumerate(found.items()):
        label, measure = AXES.get(parameter, (parameter, int))
        for architecture, rows in lines.items():
            x, color = [measure(row["value"]) for row in rows], f"C{ARCHITECTURES.index(architecture)}"
            times, memory = [1000 * row["train"]["median"] for row in rows], [row["memory"] / 1e6 for row in rows]
            axes[0, column].plot(x, times, ".-", color=color, label=architecture)
            axes[1, column].plot(x, memory, ".-", color=color)
        axes[0, column].legend(fontsize=8)
        for ax, what in zip(axes[:, column], ("step, ms", "peak memory, MB"), strict=True):
            ax.set(xlabel=label, ylabel=what, xlim=(0, None), ylim=(0, None), xticks=x)
            ax.grid(alpha=0.3)
    return figure


def main():
    parser = argparse.ArgumentParser(description="Speed beside the published examples.")
    parser.add_argument("what", nargs="*", default=["compare"], help="compare (default), time_to_accuracy, growth")
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES, choices=ARCHITECTURES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    asked = parser.parse_args()
    measure = {
        "compare": lambda: compare(asked.architectures, asked.rounds),
        "time_to_accuracy": time_to_accuracy,
        "growth": lambda: growth(asked.rounds),
    }
    if unknown := set(asked.what) - set(measure):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(measure)}")
    if asked.rounds < 1:
        parser.error(f"--rounds: received {asked.rounds}, accepted: 1 or more")
    asked.out.mkdir(parents=True, exist_ok=True)
    shared = {"hardware": machine.hardware(), "versions": machine.versions()}
    for what in asked.what:
        found = shared | {what: measure[what]()}
        (asked.out / f"{what}.json").write_text(json.dumps(found, indent=1) + "\n")
        if what == "growth":
            figure(found["growth"]).savefig(asked.out / "growth.png", dpi=100)
        else:
            (asked.out / f"{what}.md").write_text(report(found) + "\n")
            print(report(found), flush=True)


if __name__ == "__main__":
    main()
