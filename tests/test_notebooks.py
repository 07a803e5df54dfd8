"""What holds of every notebook, whatever it says; that its outputs are right is nbval's to check."""

import ast
import base64
import io
import itertools
import re
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
import yaml

from patchlib import plots
from patchlib.parameters import ARCHITECTURES as SCHEMAS
from patchlib.parameters import Compare

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EVERY = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
NETWORKS = pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.stem != "compare"], ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def values_of(cell):
    """What a parameters cell assigns."""
    namespace = {}
    exec(cell.source, namespace)
    return {name: value for name, value in namespace.items() if not name.startswith("__")}


def schema_of(path):
    return Compare if path.stem == "compare" else SCHEMAS[path.stem]


@EVERY
def test_ran_from_top_to_bottom_without_errors(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {(output.output_type, output.get("name")) for cell in cells for output in cell.outputs}
    assert not {kind for kind in kinds if kind[0] == "error" or kind[1] == "stderr"}


@EVERY
def test_metadata_is_clean_and_no_check_is_switched_off(path):
    notebook = nbformat.read(path, as_version=4)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    assert {key for cell in notebook.cells for key in cell.metadata} <= {"tags"}
    known = re.compile(r"parameters|nbval-ignore-output|tolerance-0\.\d+|luck")
    assert all(known.fullmatch(tag) for row in tags for tag in row)
    assert sum("nbval-ignore-output" in tag for tag in tags) <= 1  # the versions
    lucky = [cell.source for cell, tag in zip(notebook.cells, tags, strict=True) if "luck" in tag]
    assert all("where_it_is_wrong(" in source for source in lucky), "which images are shown, and nothing else"
    trains = [tag for cell, tag in zip(notebook.cells, tags, strict=True) if "patchlib.train(" in cell.source]
    assert all(re.match("tolerance", tag[0]) for tag in trains), "a wrong recipe must show in the numbers"
    assert not any("NBVAL" in cell.source for cell in notebook.cells)


@EVERY
def test_outputs_name_no_place_on_this_machine(path):
    for cell in code_cells(path):
        assert str(Path.home()) not in str(cell.outputs) and "/tmp" not in str(cell.outputs)


@EVERY
def test_no_cell_overwrites_a_parameter(path):
    """Or the first cells couldn't be run again."""
    cells = [ast.parse(cell.source) for cell in code_cells(path)[1:]]
    stored = {
        n.id for cell in cells for n in ast.walk(cell) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    assert not stored & set(schema_of(path).model_fields)


@EVERY
def test_imports_stand_in_one_cell_and_nothing_is_defined(path):
    trees = [ast.parse(cell.source) for cell in code_cells(path)]
    assert sum(any(isinstance(n, ast.Import | ast.ImportFrom) for n in ast.walk(tree)) for tree in trees) == 1
    assert not [
        n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.Lambda)
    ]


def test_no_loop_stands_in_two_notebooks():
    """What several notebooks do in more than a line or two is a function of patchlib."""
    loops = [
        (path.stem, ast.unparse(node))
        for path in NOTEBOOKS
        for cell in code_cells(path)
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.For | ast.While | ast.With)
    ]
    texts = [text for _, text in loops]
    assert [loop for loop in loops if texts.count(loop[1]) > 1] == []


@EVERY
def test_there_is_as_much_prose_as_code(path):
    notebook = nbformat.read(path, as_version=4)
    assert 2 * len(code_cells(path)) <= len(notebook.cells)


@EVERY
def test_is_of_a_readable_length(path):
    notebook = nbformat.read(path, as_version=4)
    assert (20 if path.stem == "compare" else 30) <= len(notebook.cells) <= 50
    lengths = sorted(len(cell.source.splitlines()) for cell in code_cells(path)[1:])
    assert lengths[-1] <= 15 and lengths[len(lengths) // 2] <= 8


@EVERY
def test_the_parameters_cell_holds_every_parameter_with_its_type(path):
    (cell,) = [cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])]
    assert cell is code_cells(path)[0] or cell.source == code_cells(path)[0].source
    schema = schema_of(path)
    inferred = papermill.inspect_notebook(str(path))
    assert set(inferred) == set(schema.model_fields)
    schema(**values_of(cell))
    for name, field in schema.model_fields.items():
        declared = inferred[name]["inferred_type_name"]
        assert declared == "str" if "Literal" in str(field.annotation) else declared in str(field.annotation)


@NETWORKS
def test_each_parameter_has_a_comment_and_stands_in_a_group(path):
    lines = code_cells(path)[0].source.splitlines()
    groups = [number for number, line in enumerate(lines) if line.startswith("# ")]
    assert groups[0] == 0 and len(groups) == 5 and all(b - a > 4 for a, b in itertools.pairwise([*groups, len(lines)]))
    assert all("  # " in line for number, line in enumerate(lines) if number not in groups)


@NETWORKS
def test_as_it_stands_a_notebook_is_a_smoke_run(path):
    smoke = SCHEMAS[path.stem](**values_of(code_cells(path)[0]))
    assert (smoke.tier, smoke.dataset, smoke.run_dir) == ("smoke", "digits", "")


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks" / "tiers").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_tier_is_parameters_of_its_notebook(path):
    architecture, tier = path.stem.rsplit("-", 1)
    values = yaml.safe_load(path.read_text())
    assert SCHEMAS[architecture](**values).tier == tier
    smoke = values_of(code_cells(ROOT / "notebooks" / f"{architecture}.ipynb")[0])
    usual = {name: field.default for name, field in SCHEMAS[architecture].model_fields.items()}
    assert not {name for name in smoke if smoke[name] != usual[name]} - set(values), "whatever is left out is smoke's"
    always = {"tier", "dataset", "epochs", "batch_size", "learning_rate"}
    assert not {name for name in set(values) - always if smoke[name] == usual[name] == values[name]}, "needn't be said"
    assert list(values) == [name for name in smoke if name in values], "in the order of the parameters cell"


def test_every_architecture_has_its_notebook_and_tiers():
    assert {*SCHEMAS, "compare"} == {path.stem for path in NOTEBOOKS}
    tiers = {path.stem for path in (ROOT / "notebooks" / "tiers").glob("*.yaml")}
    wanted = {
        f"{name}-{tier}" for name in SCHEMAS for tier in ("baseline", "fast", "tuned")
    }  # or `make full` would run none
    assert wanted <= tiers, f"there is no {', '.join(sorted(wanted - tiers))}"


def test_a_mistyped_parameter_stops_a_papermill_run_before_training(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="unknown parameter 'epoch'.*'epochs'"):
        papermill.execute_notebook(
            NOTEBOOKS[0], tmp_path / "out.ipynb", {"epoch": 3}, cwd=ROOT / "notebooks", progress_bar=False
        )


def stream(text, name="stdout"):
    return {"output_type": "stream", "name": name, "text": text}


@pytest.mark.parametrize(
    ("new", "same"),
    [
        ("epoch 1/3: loss 1.25, accuracy 0.71\n", True),
        ("epoch 1/3: loss 1.2111, accuracy 0.6666\n", True),
        ("epoch 1/3: loss 1.31, accuracy 0.70\n", False),  # too far
        ("epoch 1/3: loss nan, accuracy 0.70\n", False),
        ("epoch 1/4: loss 1.20, accuracy 0.70\n", False),  # whole numbers and words count
        ("epoch 1/3: loss 1.20\n", False),
        ("epoch 1/3: loss 1.20, accuracy 0.70, more 0.70\n", False),
        ("epoch 1/3: loss 0.70, accuracy 1.20\n", False),
    ],
)
def test_trained_numbers_may_differ_within_their_tolerance_and_nothing_else_may(new, same):
    from conftest import within

    stored = [stream("a warning of 3.0\n", "stderr"), stream("epoch 1/3: loss 1.20, accuracy 0.70\n")]
    compared = within([stream(new)], stored, 0.1)
    assert (compared[0]["text"] == stored[1]["text"]) == same
    value = {"output_type": "execute_result", "data": {"text/plain": "0.5", "image/png": "1.5"}}
    near = {"output_type": "execute_result", "data": {"text/plain": "0.55", "image/png": "1.5"}}
    assert within([near], [value], 0.1) == [value] != within([near], [value], 0.01)


CARD = {"history": {"loss": [2.0, 1.0], "val_loss": [2.2, 1.5], "accuracy": [0.2, 0.6], "val_accuracy": [0.1, 0.5]}}
KERNELS = np.random.default_rng(0).normal(size=(5, 5, 64))


def png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return {"output_type": "display_data", "data": {"image/png": base64.b64encode(file.getvalue()).decode()}}


@pytest.mark.parametrize(
    ("figure", "same", "near"),
    [
        (plots.filters(KERNELS), True, True),
        (plots.filters(KERNELS + 0.05), False, True),
        (plots.filters(KERNELS[..., ::-1]), False, False),  # swapped rows
        (plots.learning_curves({"a": CARD}), False, False),  # quite another one
    ],
)
def test_pictures_are_compared_strictly_and_trained_ones_within_a_tolerance(figure, same, near):
    from conftest import _DRAWN, _TRAINED, pictured

    stored = [stream("words"), png(plots.filters(KERNELS))]
    for accepted, wanted in ((_DRAWN, same), (_TRAINED, near)):
        outputs, references = pictured([stream("words"), png(figure)], stored, accepted)
        assert references[1]["data"]["picture"] == "as stored"
        assert (outputs[1]["data"]["picture"] == "as stored") == wanted
    outputs, _ = pictured([png(figure), png(figure)], stored, 1.0)
    assert outputs[1]["data"]["picture"].startswith("differs"), "nothing is stored in its place"


def test_a_wrong_series_of_two_is_another_picture():
    from conftest import _DRAWN, pictured

    history = CARD["history"]
    swapped = {"history": history | {"loss": history["val_loss"], "val_loss": history["loss"]}}
    stored, new = ([png(plots.learning_curves({"a": each}))] for each in (CARD, swapped))
    assert pictured(new, stored, _DRAWN)[0][0]["data"]["picture"].startswith("differs by 0.00")


# Data that a user may bring, as (shape, classes, images), and what the recipe may ask for.
ODD = {
    "wide": ((24, 32), 3, 40, {"pad": 4, "flip": True, "depth": 1, "schedule": "plateau", "patience": 1}),
    "few": ((16, 16), 2, 12, {"limit": 8, "pad": 8, "patch_size": 8, "batch_size": 512, "precision": "mixed_bfloat16"}),
    "resized": ((40, 20), 4, 40, {"resize": 24, "patch_size": 6}),
}
TINY = {"epochs": 1, "depth": 2, "dim": 8, "key_dim": 4, "mlp_dim": 8, "conv_dim": 4}
TINY |= {"tokens_dim": 4, "channels_dim": 8}


def odd_data(path, shape, classes, count):
    """An .npz file of pictures sorted by class, each its own mirror image: stripes of random colours."""
    labels = np.sort(np.arange(count) % classes)
    rows = np.random.default_rng(0).integers(0, 256, (count, shape[0], 1, 3), dtype="uint8")
    images = np.broadcast_to(rows, (count, *shape, 3))
    np.savez(path, x_train=images, y_train=labels, x_test=images[::3], y_test=labels[::3])
    return str(path)


@pytest.mark.parametrize(
    ("path", "case"),
    [
        pytest.param(path, case, id=f"{path.stem}-{case}", marks=pytest.mark.bfloat16 if case == "few" else ())
        for number, path in enumerate(path for path in NOTEBOOKS if path.stem in SCHEMAS)
        # By turns, for time's sake, and of the three that resize one.
        for case in ("few" if number % 2 else "wide", *(["resized"] if path.stem == "mlp_mixer" else []))
    ],
)
def test_runs_on_all_that_the_library_accepts(path, case, tmp_path, monkeypatch, eagerly):
    shape, classes, count, wanted = ODD[case]
    dataset = odd_data(tmp_path / "odd.npz", shape, classes, count)
    values = TINY | wanted | {"dataset": dataset, "run_dir": str(tmp_path / "run")}
    namespace, (first, *cells) = {}, code_cells(path)
    exec(first.source, namespace)
    namespace |= {name: value for name, value in values.items() if name in namespace}
    monkeypatch.chdir(path.parent)
    for number, cell in enumerate(cells, start=2):
        if "cost." not in cell.source:  # of published models, the same for all parameters
            exec(compile(cell.source, f"{path.stem}, cell {number}", "exec"), namespace)
