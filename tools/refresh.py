"""Run notebooks in place and keep what is the same on every run: ``python tools/refresh.py notebooks/*.ipynb``.

This is the only way in which stored outputs change. Streams on stderr, timing and the Python version are left out, so
that two refreshes in a row leave no difference. The tables of the READMEs and of the measurements, and the README of
the tiers, are written along with them.
"""

import json
import os
import re
import sys
import tempfile
import textwrap
from pathlib import Path

import bench
import ingredients
import nbformat
import publish
import yaml
from nbclient import NotebookClient

from patchlib import cards, files, markdown
from patchlib.parameters import ARCHITECTURES

OF_A_RUN = {"tier", "image_size", "init_from", "limit", "seed", "tensorboard", "run_dir"}
ROOT = Path(__file__).parents[1]
TIERS = ROOT / "notebooks" / "tiers"
KIND = "AVX512_BF16"  # of the processor whose times stand beside accuracies


def refresh(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {key: value for key, value in cell.metadata.items() if key == "tags"}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    files.put(path, lambda partial: nbformat.write(notebook, partial))


def readme(text: str) -> str:
    """The project's README with its tables, and the sentences on them, as cards and measurements have them."""
    found, timed = cards.load_cards(ROOT / "results"), measured("time_to_accuracy")
    text = _with_table(text, "## Results", publish.overview(found, bench.EXAMPLES, timed[KIND]))
    text = _with_table(text, "**Every published accuracy", bench.accuracy_summary(timed))
    headline, distances = (say(found, bench.EXAMPLES) for say in (publish.headline, publish.distances))
    above, table, below, rest = re.fullmatch(
        r"(.*## Results\n\n).*?\n\n(\|.*?\|\n\n).*?(Test accuracy, .*?)(\n\n.*)", text, re.DOTALL
    ).groups()
    headline, below = (
        textwrap.fill(text, 120, break_on_hyphens=False, break_long_words=False)
        for text in (headline, f"{distances} {' '.join(below.split())}")
    )
    return f"{above}{headline}\n\n{table}{below}{rest}"


def tools_readme(text: str) -> str:
    """The README of the tools with its table, as measurements have it."""
    return _with_table(text, "**A step**", bench.summary(measured("compare")))


def reports() -> dict[Path, str]:
    """The measurements' own tables: cards of the baselines are read into one of them."""
    tables = {bench.RESULTS / "ingredients.md": ingredients.report(bench.RESULTS / "ingredients")}
    for what, report in bench.REPORTS.items():
        for kind, found in measured(what).items():
            tables[bench.RESULTS / kind / f"{what}.md"] = report(found)
    return {path: table + "\n" for path, table in tables.items()}


def measured(what: str) -> dict[str, dict]:
    """What was measured on each kind of processor, that of most tables first."""
    paths = sorted(bench.RESULTS.glob(f"*/{what}.json"), key=lambda path: (path.parent.name != KIND, path))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8"))[what] for path in paths}


def _with_table(text, mark, table):
    """The text with another table in place of the first one after a mark."""
    old = re.search(rf"{re.escape(mark)}.*?\n\n(\|.*?\|)\n\n", text, re.DOTALL)
    return text[: old.start(1)] + table + text[old.end(1) :]


def tiers_readme() -> str:
    """Every hyperparameter of every example beside the tiers', in Markdown; from their files and a transcription."""
    examples = yaml.safe_load(Path(__file__).with_name("examples.yaml").read_text())
    tiers = {}
    for path in sorted(TIERS.glob("*.yaml")):
        architecture, tier = path.stem.rsplit("-", 1)
        values = ARCHITECTURES[architecture](**yaml.safe_load(path.read_text())).model_dump(exclude=OF_A_RUN)
        tiers.setdefault(architecture, {})[tier] = values
    parts = [_ABOUT_TIERS]
    for architecture, columns in tiers.items():
        example = examples.get(architecture)
        parts.append(f"## {architecture}\n")
        if example:
            columns = {"example": example["values"]} | columns
            parts.append(f"Reproduced: {example['page']}, {example['run']}. Its optimiser: {example['optimiser']}.\n")
        parts.append(_tiers_table(columns, example))
        if example:
            parts.append("What the baseline does otherwise:\n")
            parts.append("\n".join(f"- **{name}**: {words}." for name, words in example["differences"].items()) + "\n")
    return "\n".join(parts)


def _tiers_table(columns, example):
    rows = []
    for name in next(reversed(columns.values())):
        rows.append([name, *(values.get(name, "") for values in columns.values())])
        if name == "weight_decay":  # which the optimisers count differently
            a_step = [
                example["decay"] if column == "example" else values["learning_rate"] * values[name]
                for column, values in columns.items()
            ]
            rows.append(["decay of a step at the peak rate", *(f"{decay:.3g}" for decay in a_step)])
    return markdown.table(["", *columns], rows) + "\n"


_ABOUT_TIERS = """# Tiers

A tier is a file of parameters for one notebook. `baseline` is the published Keras example as its numbers were made,
`fast` is made to reach the accuracy that it publishes in few minutes on a processor, `tuned` is a better recipe, both
at no more parameters. Made from these files and a transcription of the examples by `make refresh`; a test holds that
each baseline equals its example, or that the difference is declared below.
"""


if __name__ == "__main__":
    for path, written in ((ROOT / "README.md", readme), (ROOT / "tools" / "README.md", tools_readme)):
        path.write_text(written(path.read_text()))
    for path, text in {TIERS / "README.md": tiers_readme(), **reports()}.items():
        path.write_text(text)
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as runs:
            os.environ["PATCHLIB_RUNS"] = runs
            refresh(Path(name))
        print("refreshed", name)
