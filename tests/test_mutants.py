import asyncio
import time
from collections import Counter
from pathlib import Path

import mutants
import pytest
from mutants import Mutant, draw, judge, judge_all, shares

COUNTS = {"data": 500, "augment": 900, "training": 530, "runs": 560, "layers": 2500, "models": 40}


@pytest.mark.parametrize("size", [1, 5, 47, 90, 200, 1000, 6000])
def test_a_sample_is_shared_out_by_numbers_with_a_least_for_each(size):
    sizes = shares(COUNTS, size)
    assert sum(sizes.values()) == min(size, sum(COUNTS.values()))
    assert all(min(15, size // 6) <= sizes[module] <= COUNTS[module] for module in COUNTS)
    above = [module for module in COUNTS if sizes[module] > 15]
    for module in above:  # as evenly as whole numbers allow
        rest = sum(COUNTS[m] for m in above)
        assert abs(sizes[module] - sum(sizes[m] for m in above) * COUNTS[module] / rest) < 2


def test_every_module_has_mutants_of_its_own_in_the_smallest_samples():
    assert shares({"data": 0, "augment": 3}, 10) == {"data": 0, "augment": 3}


def pool(module, files=("a.py", "b.py"), places=40):
    return [
        Mutant(module, file, "", operator, i, i) for file in files for operator in ("x", "y") for i in range(places)
    ]


@pytest.fixture
def even_only(monkeypatch):
    """As if only every second place could be mutated."""
    monkeypatch.setattr(mutants, "mutated", lambda project, mutant: "" if mutant.occurrence % 2 else "code")


def test_a_draw_is_the_same_each_time_and_grows_with_the_sample(even_only):
    pools = {"data": pool("data"), "augment": pool("augment")}
    turned = {module: places[::-1] for module, places in pools.items()}
    small, again, large = (draw(Path(), p, n) for p, n in ((pools, 30), (turned, 30), (pools, 60)))
    assert set(small) == set(again) < set(large)
    assert Counter(mutant.module for mutant in large) == {"data": 30, "augment": 30}
    assert not any(mutant.occurrence % 2 for mutant in large)


def test_a_draw_is_no_run_of_neighbours_and_keeps_its_mutants_when_another_file_changes(even_only):
    before = draw(Path(), {"layers": pool("layers", places=200)}, 40)
    after = draw(Path(), {"layers": pool("layers", ("a.py",), 200) + pool("layers", ("c.py",), 200)}, 40)
    kept = [mutant for mutant in before if mutant.file == "a.py" and mutant in after]
    assert len(kept) >= 8
    occurrences = sorted(mutant.occurrence for mutant in before)
    assert occurrences[0] < 60 and occurrences[-1] > 140


SOURCE = "def double(x):\n    return 2 * x\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of one function; its own test and another see different bugs."""
    monkeypatch.setattr(mutants, "RESULTS", tmp_path / "results" / "results.jsonl")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # starts in half the time
    folder = tmp_path / "project"
    for file, text in {
        "patchlib/__init__.py": "",
        "patchlib/data.py": SOURCE,
        "tests/test_data.py": "from patchlib.data import double\n\ndef test():\n    assert double(2) == 4\n",
        "tests/test_other.py": "import os\nfrom patchlib.data import double\n\ndef test():\n    assert double(3) == 6\n"
        "    assert os.environ['PYTHONPATH'] == os.getcwd(), 'what a test starts sees another patchlib'\n",
    }.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    return folder


MUTANT = Mutant("data", "patchlib/data.py", mutants.digest(SOURCE), "core/Some", 0, 2)
CHECKS = ["tests/test_data.py", "tests/test_other.py"]


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ("3 * x", "own tests"),
        ("2 + x", "other tests"),
        ("x + x", "survived"),
        ("2 * x\nimport nothing_of_the_kind", "own tests"),
    ],
)
def test_a_mutant_reaches_the_tests_and_only_the_copy(project, body, outcome):
    code = SOURCE.replace("2 * x", body)
    assert asyncio.run(judge(project, MUTANT, code, dict.fromkeys(CHECKS, 1.0))) == outcome
    assert (project / "patchlib/data.py").read_text() == SOURCE


def test_tests_that_take_far_longer_than_without_the_mutant_have_noticed_it(project, monkeypatch):
    limits = []

    async def slow(copy, checks, limit):
        limits.append(limit)
        return 0 if "tests/test_data.py" in checks else None

    monkeypatch.setattr(mutants, "pytest", slow)
    seconds = {"tests/test_data.py": 1.0, "tests/test_other.py": 10.0, "tests/test_more.py": 5.0}
    assert asyncio.run(judge(project, MUTANT, SOURCE, seconds)) == "timeout"
    assert limits == [63, 105]


def test_what_runs_past_its_limit_is_stopped(project):
    (project / "patchlib/data.py").write_text("import time\n\ntime.sleep(600)\n")
    assert asyncio.run(mutants.pytest(project, CHECKS, limit=0.5)) is None


def test_nothing_that_the_tests_started_outlives_them(project):
    beats = project.parent / "beats"
    child = f"import time\nwhile True:\n    open({str(beats)!r}, 'a').write('.')\n    time.sleep(0.02)\n"
    starts = f"import subprocess, sys, time\n\nsubprocess.Popen([sys.executable, '-c', {child!r}])\n"
    (project / "patchlib/data.py").write_text(starts + "time.sleep(600)\n")

    async def stopped_meanwhile():
        running = asyncio.create_task(mutants.pytest(project, CHECKS))
        while not beats.exists():
            await asyncio.sleep(0.05)
        running.cancel()
        await asyncio.wait([running])

    asyncio.run(stopped_meanwhile())
    before = beats.stat().st_size
    time.sleep(0.3)
    assert beats.stat().st_size == before


@pytest.fixture
def calls(monkeypatch):
    """What would be run, instead of running it; even mutants survive."""
    made = []

    async def control(project, check):
        made.append(check)
        return "green"

    async def judge(project, mutant, code, seconds):
        assert seconds.keys() == set(CHECKS)
        made.append(mutant.occurrence)
        return "own tests" if mutant.occurrence % 2 else "survived"

    monkeypatch.setattr(mutants, "control", control)
    monkeypatch.setattr(mutants, "judge", judge)
    return made


def judged(project, occurrences):
    codes = {MUTANT._replace(occurrence=i): "" for i in occurrences}
    outcomes = asyncio.run(judge_all(project, codes, CHECKS))
    return {mutant.occurrence: outcome for mutant, outcome in outcomes.items()}


def test_what_is_known_is_not_run_again(project, calls):
    first = judged(project, range(4))
    assert first == {0: "survived", 1: "own tests", 2: "survived", 3: "own tests"}
    assert calls[:2] == CHECKS and sorted(calls[2:]) == [0, 1, 2, 3]
    calls.clear()
    assert judged(project, range(6)) == first | {4: "survived", 5: "own tests"}
    assert sorted(calls) == [4, 5]


def test_a_stopped_command_goes_on_where_it_was(project, calls, monkeypatch):
    monkeypatch.setattr(mutants.os, "cpu_count", lambda: 1)
    whole = mutants.judge

    async def stopped_at_the_third(project, mutant, *rest):
        if mutant.occurrence == 2:
            raise KeyboardInterrupt
        return await whole(project, mutant, *rest)

    monkeypatch.setattr(mutants, "judge", stopped_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        judged(project, range(4))
    monkeypatch.setattr(mutants, "judge", whole)
    calls.clear()
    assert len(judged(project, range(4))) == 4
    assert calls == [2, 3]


def test_new_tests_meet_the_survivors_again_and_only_them(project, calls):
    judged(project, range(4))
    calls.clear()
    with (project / CHECKS[1]).open("a") as file:
        file.write("# more\n")
    judged(project, range(4))
    assert calls == [CHECKS[1], 0, 2]


def test_a_mutant_of_changed_code_is_another(project, calls):
    judged(project, [1])
    calls.clear()
    asyncio.run(judge_all(project, {MUTANT._replace(occurrence=1, digest="other"): ""}, CHECKS))
    assert calls == [1]


def test_without_a_mutant_the_tests_must_pass(project, monkeypatch):
    (project / CHECKS[1]).write_text("def test():\n    assert False\n")
    with pytest.raises(SystemExit, match=r"tests/test_other\.py fail without any mutant"):
        asyncio.run(judge_all(project, {MUTANT: SOURCE}, CHECKS))
    stored = mutants.RESULTS.read_text()  # neither a mutant's outcome nor the failure, which may be gone next time
    assert CHECKS[0] in stored and CHECKS[1] not in stored and MUTANT.digest not in stored


def test_the_table_counts_each_outcome_by_module_and_finds_the_weakest():
    outcomes = {MUTANT._replace(occurrence=i): outcome for i, outcome in enumerate([*mutants.OUTCOMES, "own tests"])}
    outcomes[MUTANT._replace(module="runs")] = "timeout"
    text, least = mutants.table(outcomes)
    assert text.splitlines()[2:] == ["| data | 5 | 2 | 1 | 1 | 1 | 80% |", "| runs | 1 | 0 | 0 | 1 | 0 | 100% |"]
    assert least == 0.8


def test_a_difference_is_two_lines():
    assert mutants.difference(SOURCE, SOURCE.replace("*", "+")) == "- return 2 * x\n+ return 2 + x"
    assert mutants.difference("f(\n    1,\n    2)\n", "f( 2,\n    2)\n") == "- f( 1,\n+ f( 2,"


def test_every_module_and_its_tests_exist():
    for module, checks in mutants.OWN_TESTS.items():
        assert any((mutants.ROOT / "patchlib").glob(f"{module}*"))
        assert all((mutants.ROOT / check).exists() for check in checks)


def test_annotations_and_what_is_not_python_are_no_mutants(project):
    pytest.importorskip("cosmic_ray", reason="only `make mutants` installs it")
    text = "def f(x: int | None, *, y=1) -> int | str:\n    z: int | str = x + y  # 3\n    return z\n"
    (project / "patchlib/data.py").write_text(text)
    codes = {mutants.mutated(project, mutant) for mutant in mutants.places(project, "data")} - {""}
    assert {mutants.essence(code) for code in codes} and all("# 3" in code for code in codes)
    for code in codes:
        assert "x: int | None, " in code and "-> int | str" in code and "z: int | str" in code
    assert sum("x - y" in code for code in codes) == 1 and sum("y= 2" in code for code in codes) == 1
