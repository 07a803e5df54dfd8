"""What to run: notebooks x tiers x seeds as runs, their parameters checked, each in a folder of its own."""

import argparse
import ast
import json
import os
from dataclasses import dataclass
from pathlib import Path

from patchlib import cards, data, networks, sources
from patchlib.files import PathError, read_text, user_path
from patchlib.parameters import ARCHITECTURES, RunParameters
from patchlib.schema import ParameterError, brief, nearest, shown

NOTEBOOKS = networks.PROJECT / "notebooks"

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
        return cards.finished(self.folder)


def plan(asked: argparse.Namespace) -> list[Run]:
    """All runs that the command line asks for, their parameters checked; every notebook and tier before a second seed.

    Raises:
        UsageError: a notebook, a tier, a parameter or a data set is unknown or not accepted.
    """
    settings, seeds, runs = _settings(asked.settings), list(_seeds(asked)), []
    out, notebooks = folder("--out", asked.out), folder("--notebooks", asked.folder or NOTEBOOKS)
    for architecture in dict.fromkeys(asked.notebooks or ARCHITECTURES):
        _refuse_unknown("notebook", architecture, ARCHITECTURES)
        notebook = notebooks / f"{architecture}.ipynb"
        smoke = parameters_cell(notebook)
        kind = ARCHITECTURES[architecture]
        given = {name: kind.parse(name, text) for name, text in settings.items()}
        for tier in dict.fromkeys(asked.tier):
            values = smoke | _tier(notebooks / "tiers", architecture, tier) | given
            if isinstance(values.get("dataset"), str):
                values["dataset"] = data_set(values["dataset"], local=asked.scheduler is None)
            if values.get("init_from") and asked.scheduler is None:
                values["init_from"] = _network(values["init_from"])
            for seed in seeds:
                try:
                    parameters = kind(**values | {"seed": seed, "run_dir": ""})
                except ParameterError as error:
                    raise UsageError(f"{architecture}, tier {tier}: {error}") from None
                runs.append(Run(notebook, parameters, out / cards.folder_name(architecture, parameters, settings)))
    return sorted(runs, key=lambda run: seeds.index(run.parameters.seed))


def folder(option: str, path: str | os.PathLike) -> Path:
    """The absolute path of the folder that ``option`` names, which may not be there yet.

    Raises:
        UsageError: it can't be a folder.
    """
    try:
        path = user_path(path).absolute()
        there = next(some for some in (path, *path.parents) if some.exists())
        if there.is_dir():
            return path
        raise PathError(f"{shown(str(there))} isn't a folder.")
    except PathError as error:
        raise UsageError(f"{option}: {error}") from None


def _refuse_unknown(kind, name, known):
    if name not in known:
        raise UsageError(
            f"unknown {kind} {shown(name)}: did you mean {nearest(name, known)!r}? There are {', '.join(known)}."
        )


def _settings(words):
    """``["epochs=5"]`` to ``{"epochs": "5"}``."""
    settings = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (name and equals):
            raise UsageError(f"--set: received {shown(word)}, accepted: NAME=VALUE.")
        if name in _REFUSED:
            raise UsageError(f"--set {name}: not accepted, {_REFUSED[name]}.")
        settings[name] = text
    return settings


def _seeds(asked):
    if asked.seed is not None:
        return [asked.seed]
    if asked.seeds == [0]:
        raise UsageError("--seeds 0: a single number says how many; for seed 0 alone use --seed 0.")
    return range(asked.seeds[0]) if len(asked.seeds) == 1 else list(dict.fromkeys(asked.seeds))


def parameters_cell(notebook):
    """What stands in a notebook's parameters cell: the smoke tier."""
    if not notebook.is_file():
        raise UsageError(f"there is no {notebook}: name the folder of the notebooks with --notebooks.")
    try:
        cells = json.loads(read_text(notebook))["cells"]
        (cell,) = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
        return {
            statement.target.id: ast.literal_eval(statement.value)
            for statement in ast.parse("".join(cell["source"])).body
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value
        }
    except Exception as error:  # what isn't as it should be raises nearly anything, in a tier as well
        raise UsageError(f"{notebook} isn't a notebook with one parameters cell ({brief(error)}).") from None


def _tier(folder, architecture, tier):
    import yaml

    known = [path.stem.removeprefix(f"{architecture}-") for path in sorted(folder.glob(f"{architecture}-*.yaml"))]
    _refuse_unknown(f"tier of {architecture}", tier, ["smoke", *known])
    if tier == "smoke":
        return {}
    path = folder / f"{architecture}-{tier}.yaml"
    try:
        return dict(**yaml.safe_load(read_text(path)))
    except Exception as error:
        raise UsageError(f"{path} isn't a tier ({brief(error)}).") from None


def _network(name):
    """A trained network's name, or its path as the notebook understands it, which is executed elsewhere."""
    try:
        path = networks.locate(name)
    except (networks.ModelError, PathError) as error:
        raise UsageError(f"init_from: {error}") from None
    return name if name in networks.published() else str(path.absolute())


def data_set(name: str, local: bool = True) -> str:
    """A data set's name, or its path as the notebook understands it, which is executed elsewhere.

    Raises:
        DataError: it's a folder without one named "train".
        UsageError: there's no such data set.
    """
    try:
        path, names = user_path(name), ", ".join(data.NAMES)
    except PathError as error:
        raise UsageError(f"data set {error}") from None
    if name in data.NAMES or (not local and path.is_absolute()):
        return name
    if local and path.exists():
        if path.is_dir():
            sources.refuse_unsorted(path)
        return str(path.absolute())
    where = f"a path, and there is no {path.absolute()}" if local else "an absolute path on the workers' own disks"
    meant = "" if "/" in name else f" did you mean {nearest(name, data.NAMES)!r}?"
    raise UsageError(f"data set {shown(name)}:{meant} Accepted: {names}, or {where}.")
