"""Made-up input: what is wrong is refused in one sentence, what is right means what it says, and nothing is executed.

Hypothesis makes it up, the same in each run of the tests; ``make siege`` tries much more of it, and other each time.
"""

import contextlib
import io
import json
import os
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from test_cards import card
from test_data import images
from test_parameters import SCHEMAS
from test_plan import planned
from test_runs import RECIPE, small_model, stop, tiny

from patchlib import cards, compare, load_data, load_picture, networks, runs
from patchlib.parameters import ARCHITECTURES
from patchlib.pictures import DataError
from patchlib.plan import UsageError
from patchlib.schema import ParameterError

SIEGE = "PATCHLIB_SIEGE" in os.environ
EXECUTED = Path(tempfile.gettempdir(), f"patchlib-executed-{os.getpid()}")  # made if anything here is taken for code


@pytest.fixture
def fuzz(record_property):
    """Try a check with made-up values, so many in the tests and so many in a siege: ``@fuzz(20, 500, x=strategy)``."""

    def tried(quick, long, **strategies):
        count = long if SIEGE else quick
        few = hypothesis.settings(
            max_examples=count,
            deadline=None,
            derandomize=not SIEGE,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )

        def at_once(check):
            with contextlib.redirect_stdout(io.StringIO()):
                few(hypothesis.given(**strategies)(check))()
            record_property("tried", count)
            assert not EXECUTED.exists()

        return at_once

    return tried


def sentence(error):
    assert "\n" not in str(error) and 10 < len(str(error)) < 2000, error


class Evil:
    """What unpickling executes."""

    def __reduce__(self):
        return os.mkdir, (str(EXECUTED),)


CODE = [f"$(mkdir {EXECUTED})", f"`mkdir {EXECUTED}`", f"';mkdir {EXECUTED};'"]
CODE += [f"__import__('os').mkdir('{EXECUTED}')", f"!!python/object/apply:os.mkdir ['{EXECUTED}']"]
TEXTS = st.text(max_size=20) | st.sampled_from(
    [*CODE, "", "1e-3", "true", "010", "1:30", "nan", "~", "a\0b", "x" * 9999, "9" * 9999]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.integers(0, 64) | st.floats() | TEXTS
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner), max_leaves=5
)
LONG = st.sampled_from([10**4000, 10**9999, -(10**9999)])  # integers, of which Python writes the first alone
NAMES = sorted({name for schema in SCHEMAS for name in schema.model_fields})


def test_a_parameter_is_taken_as_it_is_or_refused(fuzz):
    @fuzz(100, 2500, schema=st.sampled_from(SCHEMAS), name=st.sampled_from(NAMES) | TEXTS, value=ANYTHING | LONG)
    def check(schema, name, value):
        try:
            taken = getattr(schema(**{name: value}), name)
        except ParameterError as error:
            return sentence(error)
        assert taken == value and isinstance(value, type(taken) if type(taken) is not float else int | float)


def test_a_word_of_the_command_line_is_taken_by_its_parameters_type_or_refused(fuzz):
    @fuzz(100, 2500, name=st.sampled_from(NAMES) | TEXTS, text=TEXTS | st.integers().map(str) | st.floats().map(str))
    def check(name, text):
        try:
            (run,) = planned("vit", f"--set={name}={text}").values()
        except UsageError as error:
            return sentence(error)
        name, _, text = f"{name}={text}".partition("=")
        taken = getattr(run.parameters, name)
        means = {bool: lambda text: text.lower() == "true", str: os.path.abspath if name == "dataset" else str}
        assert taken in (text, means.get(type(taken), type(taken))(text))


ARRAYS = arrays.arrays(arrays.scalar_dtypes(), arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6))


def test_arrays_become_the_data_that_they_say_or_are_refused(fuzz):
    keys = st.sampled_from(["x_train", "y_train", "x_test", "y_test", "classes"])
    evil = st.just(np.array([Evil()], object))
    labels = arrays.arrays(arrays.integer_dtypes() | arrays.unsigned_integer_dtypes(), st.sampled_from([20, (20, 1)]))

    @fuzz(100, 200, changes=st.dictionaries(keys, ARRAYS | evil | labels, max_size=2))
    def check(changes):
        known = {"x_train": images(20), "y_train": np.arange(20) % 4, "x_test": images(8), "y_test": np.arange(8) % 4}
        given = known | changes
        with tempfile.TemporaryDirectory() as folder:
            np.savez(f"{folder}/own.npz", **given)
            try:
                data = load_data(f"{folder}/own.npz")
            except DataError as error:
                return sentence(error)
        assert len(data.train) + len(data.validation) == len(given["x_train"]) and data.train.images.dtype == np.uint8
        assert (data.test.images == given["x_test"].reshape(*data.test.images.shape[:3], -1)).all()
        assert (data.test.labels == given["y_test"].ravel()).all() and data.test.labels.max() < data.num_classes


def places(node, path=()):
    """The paths of all that a card holds."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


def test_a_card_can_be_compared_or_is_refused(fuzz):
    @fuzz(200, 150, place=st.sampled_from(places(card())), value=ANYTHING | st.just(10**4000))
    def check(place, value):
        changed = {"card": card()}
        *outer, last = ("card", *place)
        node = changed
        for key in outer:
            node = node[key]
        node[last] = value
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "run.json").write_text(json.dumps(changed["card"]))
            (Path(folder) / "other.json").write_text(json.dumps(card(seed=1)))
            try:
                found = cards.load_cards(folder)
            except cards.RunError as error:
                return sentence(error)
        groups = cards.groups(found)
        assert cards.table(found).count("\n") >= 2
        for summary in (compare.summary, compare.steps, compare.ingredients, compare.selection_bias, compare.curves):
            summary(groups)
        compare.costs(groups, Path("nowhere"))


def damaged(content, place, cut):
    """A file of which a byte is another, or the rest is lost."""
    at = int(place * (len(content) - 1))
    return content[:at] if cut else content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :]


DAMAGE = {"place": st.floats(0, 1), "cut": st.booleans()}


def test_a_damaged_picture_is_read_or_refused(fuzz):
    @fuzz(60, 150, kind=st.sampled_from(["png", "jpeg", "gif", "webp", "tiff", "bmp", "ppm", "tga", "ico"]), **DAMAGE)
    def check(kind, place, cut):
        file = io.BytesIO()
        Image.fromarray(images(1, (16, 16, 3))[0]).save(file, kind)
        try:
            assert load_picture(io.BytesIO(damaged(file.getvalue(), place, cut)), 16).shape == (16, 16, 3)
        except DataError as error:
            sentence(error)


def test_a_damaged_array_file_is_read_as_it_was_or_refused(fuzz):
    file = io.BytesIO()
    np.savez_compressed(file, x_train=images(20), y_train=np.arange(20) % 4, x_test=images(8), y_test=np.arange(8) % 4)

    @fuzz(30, 60, **DAMAGE)
    def check(place, cut):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "own.npz").write_bytes(damaged(file.getvalue(), place, cut))
            try:
                data = load_data(f"{folder}/own.npz")
            except DataError as error:
                return sentence(error)
        np.testing.assert_array_equal(data.test.images, images(8))


def test_a_damaged_network_answers_as_it_did_or_is_refused(fuzz, tmp_path):
    model, path = small_model(), tmp_path / "model.keras"
    networks.save(model, card(), path)
    content = path.read_bytes()

    @fuzz(12, 60, **DAMAGE)
    def check(place, cut):
        path.write_bytes(damaged(content, place, cut))
        try:
            loaded = networks.load_model(path)
        except ValueError as error:
            return sentence(error)
        for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(fuzz, tmp_path, monkeypatch):
    stop(tmp_path / "run", monkeypatch, small_model(), after=2)
    model = small_model()
    identity, newest = runs._identity(model, tiny(), RECIPE), cards.checkpoints(tmp_path / "run")[-1]
    whole = {path: path.read_bytes() for path in newest.iterdir()}

    @fuzz(20, 80, file=st.sampled_from(sorted(whole)), **DAMAGE)
    def check(file, place, cut):
        file.write_bytes(damaged(whole[file], place, cut))
        progress, *_ = runs._resume(tmp_path / "run", identity, model)
        assert progress.epoch == 1
        file.write_bytes(whole[file])


def test_what_could_execute_something_would_be_noticed():
    assert {*ARCHITECTURES} and not EXECUTED.exists()
    import pickle

    pickle.loads(pickle.dumps(Evil()))
    assert EXECUTED.exists()
    EXECUTED.rmdir()
