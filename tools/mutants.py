"""Change the code by one small step at a time, in a copy of the project, and see which tests notice: ``make mutants``.

cosmic-ray changes an operator, a comparison, a number, a condition, a loop, an exception or a decorator. Of all these
mutants a sample is drawn, the same one each time for the same source. Its module's own tests try each of them first,
then the others, the quickest first. What survives is code that no test holds; the exit code is 1 if in any module more
than 15% do. Results go to .mutants/results.jsonl as they come: stopped at any time, the same command goes on. Survivors
are tried again once the tests have changed. ``make mutants ARGS="--sample 400 --modules layers models --notebooks"``
"""

import argparse
import ast
import asyncio
import contextlib
import difflib
import hashlib
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from subprocess import DEVNULL
from typing import NamedTuple

from patchlib import markdown

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / ".mutants" / "results.jsonl"
MODULES = ("sources", "data", "augment", "layers", "models", "cost", "optimizers", "training", "cards", "runs")
OWN_TESTS = {name: [f"tests/test_{name}.py"] for name in MODULES}
OWN_TESTS["training"] += OWN_TESTS["runs"]
OWN_TESTS["sources"] += OWN_TESTS["data"]
TEXT_TESTS = ("test_project.py", "test_notebooks.py", "test_mutants.py")  # of the project's files, not of what they do
PYTEST = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-o", "addopts=", "-p", "no:cacheprovider"]
OUTCOMES = ("own tests", "other tests", "timeout", "survived")
# `is` instead of == and the other way round: no difference for the short strings and small numbers compared here. Bits
# of real numbers: an error at once, which any test would notice.
NEVER = ("_Eq_Is", "_Is_Eq", "_NotEq_IsNot", "_IsNot_NotEq", "_BitAnd", "_BitOr", "_BitXor", "_LShift", "_RShift")
ELSEWHERE = "layers/kernels/jax.py"  # is for a backend that these tests don't run on


class Mutant(NamedTuple):
    module: str
    file: str  # below the project's folder
    digest: str  # of the file's text
    operator: str
    occurrence: int  # which of the places in the file where the operator can go
    line: int

    def __str__(self):
        return f"{self.file}:{self.line} {self.operator.removeprefix('core/')}"


def digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def places(project: Path, module: str) -> list[Mutant]:
    """Every place of a module where an operator of cosmic-ray can go, whatever comes of it."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    found = []
    paths = sorted([*project.glob(f"patchlib/{module}.py"), *project.glob(f"patchlib/{module}/**/*.py")])
    for path in (path for path in paths if not path.match(ELSEWHERE)):
        source = path.read_text()
        nodes = list(ast_nodes(get_ast(source)))
        where = module, str(path.relative_to(project)), digest(source)
        for name in operator_names():
            if get_operator(name).arguments() or name.endswith(NEVER):  # those with arguments draw at random
                continue
            lines = [start[0] for node in nodes for start, _ in get_operator(name)().mutation_positions(node)]
            found += [Mutant(*where, name, n, line) for n, line in enumerate(lines)]
    return found


def mutated(project: Path, mutant: Mutant) -> str:
    """The file with the mutant in it; empty where that isn't Python, or differs in nothing but annotations."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = (project / mutant.file).read_text()
    try:
        code = mutate_code(source, get_operator(mutant.operator)(), mutant.occurrence)
        return code if essence(code) != essence(source) else ""
    except (SyntaxError, AttributeError):  # a lone * among parameters; cosmic-ray can't replace `except module.Error`
        return ""


def essence(code: str) -> str:
    """The code without layout, comments and annotations."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        for field in {"annotation", "returns"} & set(node._fields):
            setattr(node, field, None)
    return ast.dump(tree)


def draw(project: Path, pools: dict[str, list[Mutant]], size: int) -> dict[Mutant, str]:
    """A sample and its code: the first of each module, in an order that changes to other files leave as it is."""
    sizes, drawn = shares({module: len(pool) for module, pool in pools.items()}, size), {}
    for module, pool in pools.items():
        ranked = sorted(pool, key=lambda mutant: digest(mutant.file, mutant.operator, str(mutant.occurrence)))
        real = ((mutant, code) for mutant in ranked if (code := mutated(project, mutant)))
        drawn |= itertools.islice(real, sizes[module])
    return drawn


def shares(counts: dict[str, int], size: int, least: int = 15) -> dict[str, int]:
    """A sample's size shared out among modules by their numbers of mutants, with at least 15 each where that can be."""
    sizes = {module: min(count, least, size // len(counts)) for module, count in counts.items()}
    while sum(sizes.values()) < min(size, sum(counts.values())):
        unfilled = [module for module in counts if sizes[module] < counts[module]]
        sizes[min(unfilled, key=lambda module: sizes[module] / counts[module])] += 1
    return sizes


async def pytest(project: Path, checks: list[str], limit: float | None = None) -> int | None:
    """The exit code of pytest, which sees only this copy of the project; None past the limit in seconds."""
    notebooks = any(check.endswith(".ipynb") for check in checks)
    command = [*PYTEST, *(["--nbval"] if notebooks else ["-p", "no:nbval"]), *checks]  # importing it takes seconds
    environment = os.environ | {"PYTHONPATH": str(project), "TMPDIR": str(project.parent)}
    process = await asyncio.create_subprocess_exec(
        *command, cwd=project, env=environment, stdout=DEVNULL, stderr=DEVNULL, process_group=0
    )
    try:
        return await asyncio.wait_for(process.wait(), limit)
    except TimeoutError:
        return None
    finally:  # whatever the tests started ends with them
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def control(project: Path, check: str) -> str:
    return "red" if await pytest(project, [check]) else "green"


async def judge(project: Path, mutant: Mutant, code: str, seconds: dict[str, float]) -> str:
    """The outcome for a mutant; ``seconds`` is what each test file takes without one."""
    own = OWN_TESTS[mutant.module]
    others = sorted(seconds.keys() - set(own), key=seconds.get)
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(project, Path(folder) / "project")
        (copy / mutant.file).write_text(code)
        for outcome, checks in (("own tests", own), ("other tests", others)):
            status = await pytest(copy, checks, 60 + 3 * sum(map(seconds.get, checks)))
            if status != 0:
                return "timeout" if status is None else outcome
    return "survived"


async def judge_all(project: Path, codes: dict[Mutant, str], checks: list[str]) -> dict[Mutant, str]:
    """The mutants' outcomes, as many at a time as there are cores, after a control without any."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.touch()
    known = {tuple(row["key"]): row for row in map(json.loads, RESULTS.read_text().splitlines())}
    slots, clock = asyncio.Semaphore(os.cpu_count()), asyncio.get_running_loop().time
    package = [path.read_text() for path in sorted(project.glob("patchlib/**/*.py"))]
    texts = [(project / check).read_text() for check in checks]

    async def settle(key, work, *arguments):
        row = known.get(key)
        if row and (row["outcome"] != "survived" or row["tests"] == digest(*texts)):
            return row
        async with slots:
            start = clock()
            row = {"key": key, "outcome": await work(project, *arguments), "tests": digest(*texts)}
        row["seconds"] = round(clock() - start, 1)
        if row["outcome"] != "red":
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
        print(f"{arguments[0]}: {row['outcome']}, {row['seconds']} s", file=sys.stderr, flush=True)
        return row

    keys = [(check, digest(text, *package)) for check, text in zip(checks, texts, strict=True)]
    rows = await asyncio.gather(*(settle(key, control, key[0]) for key in keys))
    if red := [check for check, row in zip(checks, rows, strict=True) if row["outcome"] == "red"]:
        raise SystemExit(f"{' and '.join(red)} fail without any mutant: see to `make test` first.")
    seconds = {check: row["seconds"] for check, row in zip(checks, rows, strict=True)}
    rows = await asyncio.gather(*(settle(mutant, judge, mutant, code, seconds) for mutant, code in codes.items()))
    return {mutant: row["outcome"] for mutant, row in zip(codes, rows, strict=True)}


def table(outcomes: dict[Mutant, str]) -> tuple[str, float]:
    """The outcomes by module in Markdown, and the least share killed."""
    rows, killed = [], []
    for module in dict.fromkeys(mutant.module for mutant in outcomes):
        these = [outcome for mutant, outcome in outcomes.items() if mutant.module == module]
        killed.append(1 - these.count("survived") / len(these))
        rows.append([module, len(these), *map(these.count, OUTCOMES), f"{killed[-1]:.0%}"])
    return markdown.table(["module", "sampled", *OUTCOMES, "killed"], rows), min(killed)


def difference(source: str, code: str) -> str:
    """What a mutant changes, as two lines."""
    lines = list(difflib.unified_diff(source.splitlines(), code.splitlines(), n=0))[2:]
    return "\n".join(f"{sign} " + " ".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=200, help="how many mutants; 200 unless given")
    parser.add_argument("--modules", nargs="+", choices=OWN_TESTS, default=list(OWN_TESTS))
    parser.add_argument("--notebooks", action="store_true", help="let the notebooks try what the unit tests let pass")
    chosen = parser.parse_args()
    if chosen.sample < 1:
        parser.error(f"argument --sample: received {chosen.sample}, accepted: 1 or more")
    os.nice(19)
    with tempfile.TemporaryDirectory() as folder:  # the project as it is now, whatever is edited meanwhile
        ignored = shutil.ignore_patterns(".*", "runs", "__pycache__")
        project = shutil.copytree(ROOT, Path(folder) / "project", ignore=ignored)
        codes = draw(project, {module: places(project, module) for module in chosen.modules}, chosen.sample)
        paths = [*project.glob("tests/test_*.py"), *(project.glob("notebooks/*.ipynb") if chosen.notebooks else ())]
        checks = sorted(str(path.relative_to(project)) for path in paths if path.name not in TEXT_TESTS)
        outcomes = asyncio.run(judge_all(project, codes, checks))
        rows, least_killed = table(outcomes)
        print(rows)
        for mutant, code in codes.items():
            if outcomes[mutant] == "survived":
                print(f"\n{mutant}\n```diff\n{difference((project / mutant.file).read_text(), code)}\n```")
    return int(least_killed < 0.85)


if __name__ == "__main__":
    sys.exit(main())
