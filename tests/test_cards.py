"""Run cards: read strictly, told apart by what differs, averaged over seeds alone."""

import json
import os

import numpy as np
import pytest

from patchlib import cards
from patchlib.files import PathError
from patchlib.parameters import CCT, ConvMixer

WHERE = "cifar10, 45,000 training images, 5 epochs"


def card(test=0.7, seed=0, tier="tuned", architecture="cct", val=(0.5, 0.72), machine="one", train=45000, **parameters):
    """A run card as ``runs.train`` writes it, with the parts that a comparison reads."""
    return {
        "schema": 1,
        "architecture": architecture,
        "tier": tier,
        "seed": seed,
        "parameters": {"epochs": 5, "seed": seed, "tier": tier, "pad": 4, "flip": True} | parameters,
        "dataset": {"name": "cifar10", "fingerprint": "f" * 64, "train": train, "validation": 5000, "test": 10000},
        "model": {"parameters": 283723, "multiply_adds": 31000000},
        "history": {"val_accuracy": list(val)},
        "best_epoch": int(np.argmax(val)) + 1,
        "metrics": {"val_accuracy": max(val), "test_accuracy": test},
        "time": {"seconds": 100.0 + 20 * seed},
        "hardware": {"processor": machine, "cores": 2, "accelerators": []},
        "started": f"2026-01-01T00:00:0{seed}+00:00",
    }


def write(folder, **contents):
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_cards_that_differ_in_more_than_the_seed_are_not_averaged():
    found = [card(seed=0), card(seed=1), card(seed=2, architecture="vit"), card(seed=3, tier="baseline")]
    found += [card(seed=4, pad=0), card(seed=5, train=15000), card(seed=6) | {"dataset": {**card()["dataset"]}}]
    found[-1]["dataset"]["fingerprint"] = "e" * 64
    together = {name: [c["seed"] for c in group] for name, group in cards.groups(found).items()}
    assert together == {
        ("CCT", "baseline", WHERE): [3],
        ("CCT", "tuned", WHERE): [0, 1],
        ("CCT", "tuned, fingerprint eeeeeeee", WHERE): [6],
        ("CCT", "tuned, pad 0", WHERE): [4],
        ("CCT", "tuned", "cifar10, 15,000 training images, 5 epochs"): [5],
        ("ViT", "tuned", WHERE): [2],
    }


def test_a_parameter_that_a_card_is_too_old_to_know_has_its_default():
    assert len(cards.groups([card(), card(seed=1, zoom=0.0)])) == 1
    assert len(cards.groups([card(), card(seed=1, zoom=0.2)])) == 2


def test_what_is_special_follows_the_tiers_name_and_of_two_the_first_run_is_usual():
    names = [tier for _, tier, _ in cards.groups([card(seed=1, pad=0), card(seed=0)])]
    assert names == ["tuned", "tuned, pad 0"]
    names = [tier for _, tier, _ in cards.groups([card(seed=0, pad=0), card(seed=1), card(seed=2, flip=False)])]
    assert names == ["tuned", "tuned, flip False", "tuned, pad 0"]


def test_what_is_special_is_so_in_all_settings_and_of_two_the_way_of_most_epochs_is_usual():
    short, long = card(epochs=2, pad=0), card(seed=1, epochs=9)
    other = card(seed=2, train=15000, limit=15000, epochs=9)
    other["dataset"]["fingerprint"] = "e" * 64
    names = {(tier, where.rpartition(", ")[2]) for _, tier, where in cards.groups([short, long])}
    assert names == {("tuned", "9 epochs"), ("tuned, pad 0", "2 epochs")}
    names = {tier for _, tier, _ in cards.groups([short, long, other])}
    assert names == {"tuned", "tuned, pad 0"}, "pixels and their number are the setting's"


def test_a_card_with_a_parameter_that_others_lack_has_its_own_name():
    names = [tier for _, tier, _ in cards.groups([card(), card(seed=1, stride=2), card(seed=2, stride=1)])]
    assert names == ["tuned", "tuned, stride 1", "tuned, stride 2"]
    assert [tier for _, tier, _ in cards.groups([card(stride=2), card(seed=1)])] == ["tuned", "tuned, stride None"]


def test_cards_are_read_strictly(tmp_path):
    with pytest.raises(cards.RunError, match="holds no finished run"):
        cards.load_card(tmp_path)
    for content in (b"{", b"\xff", b"[" * 100_000, b"9" * 5000):
        (tmp_path / "run.json").write_bytes(content)
        with pytest.raises(cards.RunError, match="isn't a run card"):
            cards.load_card(tmp_path)
    (tmp_path / "run.json").write_text('{"schema": 0}')
    with pytest.raises(cards.RunError, match="schema"):
        cards.load_cards(tmp_path)
    assert cards.load_cards(tmp_path / "nowhere") == []


def test_table_gives_mean_spread_number_of_seeds_and_epochs_best_first_for_each_data_set():
    found = [card(0.80, seed, "baseline", val=[0.5] * epochs) for seed, epochs in enumerate((4, 3))]
    found += [card(0.91, 0, val=[0.5] * 5), card(0.93, 1, val=[0.6] * 5), card(0.2, architecture="mine", val=[0.5] * 5)]
    found[4]["dataset"]["name"] = "apples"
    del found[4]["model"]["multiply_adds"]
    counts = "283,723 | 31,000,000"
    assert cards.table(found).splitlines()[2:] == [
        "| mine | tuned | apples | 45,000 | 5 | 283,723 | – | 50.00 | 20.00 | 1 |",
        f"| CCT | tuned | cifar10 | 45,000 | 5 | {counts} | 55.00 ± 7.07 | 92.00 ± 1.41 | 2 |",
        f"| CCT | baseline | cifar10 | 45,000 | 3–4 of 5 | {counts} | 50.00 ± 0.00 | 80.00 ± 0.00 | 2 |",
    ]


def test_a_folders_name_tells_runs_apart():
    name = cards.folder_name
    assert name("convmixer", ConvMixer()) == "convmixer-smoke-digits-seed0"
    p = CCT(tier="tuned", dataset="cifar10", seed=3, learning_rate=1e-5, flip=False)
    assert name("cct", p, ["learning_rate", "flip"]) == "cct-tuned-cifar10-flip=False-learning_rate=1e-05-seed3"
    assert name("cct", p, ["dataset"]) == name("cct", p)  # where it stands once already
    paths = [name("cct", CCT(dataset=path)) for path in ("/a/my photos", "/b/my photos")]
    assert paths[0] != paths[1] and all("/" not in path and "-my_photos-" in path for path in paths)
    long = [name("cct", CCT(tier="t" * 300, seed=seed)) for seed in (0, 1)]
    assert long[0] != long[1] and max(map(len, long)) <= 200


def test_a_run_is_finished_when_there_is_its_card_and_no_checkpoint_any_more(tmp_path):
    assert not cards.finished(tmp_path / "nowhere")
    (tmp_path / "checkpoint-00002").mkdir()
    assert not cards.finished(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    assert not cards.finished(tmp_path)
    (tmp_path / "checkpoint-00002").rename(tmp_path / "checkpoint-00003.partial")
    assert cards.finished(tmp_path)


def test_progress_is_the_newest_checkpoints_and_at_the_end_the_cards(tmp_path):
    assert cards.progress(tmp_path) == {}
    (tmp_path / "run.json").write_text('{"history": {"loss": [3, 2, 1]}}')
    assert cards.progress(tmp_path)["history"]["loss"] == [3, 2, 1]
    for epoch in (2, 10):
        (tmp_path / f"checkpoint-{epoch:05}").mkdir()
        (tmp_path / f"checkpoint-{epoch:05}" / "progress.json").write_text(json.dumps({"best_epoch": epoch}))
    (tmp_path / "checkpoint-00011").mkdir()  # of which nothing can be read, as when it's removed at this moment
    assert cards.progress(tmp_path) == {"best_epoch": 10}


@pytest.mark.parametrize(
    "content",
    ["5", "[]", "[" * 10**6, "9" * 9999, '{"history": 5}', '{"history": {"loss": [null]}}', '{"run": 5}', None],
)
def test_what_says_nothing_of_a_runs_progress_is_passed_over(tmp_path, content):
    for path in (tmp_path / "run.json", tmp_path / "checkpoint-00001" / "progress.json"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(content) if content else os.mkfifo(path)
    assert cards.progress(tmp_path) == {}


def test_no_file_without_an_end_or_of_more_than_a_cards_size_is_read(tmp_path):
    os.truncate(os.open(tmp_path / "run.json", os.O_CREAT | os.O_WRONLY), 2**40)
    with pytest.raises(
        cards.RunError, match=r"run\.json isn't a run card \(1,099,511,627,776 bytes, accepted: at most"
    ):
        cards.load_card(tmp_path)


@pytest.mark.parametrize("load", [cards.load_card, cards.load_cards])
@pytest.mark.parametrize("path", [5, None, b"run", "~nobody-of-this-name"])
def test_what_is_no_path_is_refused(load, path):
    with pytest.raises(PathError, match="isn't a path"):
        load(path)


def test_the_first_difference_is_told():
    assert cards.difference({"a": 1, "b": 2}, {"a": 1, "b": 2}) == ""
    assert cards.difference({"a": 1, "b": 2}, {"a": 1, "b": 3}) == "b is 2 there and 3 here"
    assert cards.difference({"a": 1}, {}) == "a is 1 there and None here"


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (["metrics", "test_accuracy"], "high", "metrics.test_accuracy is 'high', accepted: a valid number."),
        (["history", "val_accuracy"], [0.1, None], "history.val_accuracy.1 is None, accepted: a valid number."),
        (["time", "seconds"], float("nan"), "time.seconds is nan, accepted: a finite number."),
        (["dataset"], None, "dataset is None, accepted: a valid dictionary."),
        (["seed"], "x" * 999, f"seed is '{'x' * 199}...', accepted: a valid integer."),
        (["hardware"], ..., "hardware is missing."),
        (["parameters", "epochs"], ..., "parameters.epochs is missing."),
        (["parameters", "pad"], [4], "parameters.pad.bool is [4], accepted: a valid boolean."),
        (["history", "x" * 999], 1, f"history.{'x' * 192}... is 1, accepted: a valid list."),
        (["metrics", "test_accuracy"], 1.5, "metrics.test_accuracy is 1.5, accepted: less than or equal to 1."),
        (["history", "val_accuracy"], [0.1, -1], "history.val_accuracy.1 is -1, accepted: greater than or equal to 0."),
        (["dataset", "test"], 0, "dataset.test is 0, accepted: greater than or equal to 1."),
        (["best_epoch"], 3, "best_epoch is 3, accepted: one of the 2 epochs of its history."),
        (["history", "val_accuracy"], [], "best_epoch is 2, accepted: one of the 0 epochs of its history."),
        (["history"], {}, "history.val_accuracy is missing."),
        (["calibration"], {"temperature": 0}, "calibration.temperature is 0, accepted: greater than 0."),
        (["calibration"], 5, "calibration is 5, accepted: a valid dictionary."),
        (["dataset", "test"], 2**63, "dataset.test is 9223372036854775808, accepted: less than 9223372036854775808."),
    ],
)
def test_of_a_hostile_card_file_and_key_are_named(tmp_path, keys, value, said):
    content = card()
    (tmp_path / "run.json").write_text(json.dumps(content))
    assert cards.load_card(tmp_path) == content
    *inner, last = keys
    part = content[inner[0]] if inner else content
    part.pop(last) if value is ... else part.update({last: value})
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(cards.RunError) as caught:
        cards.load_card(tmp_path)
    assert str(caught.value) == f"{tmp_path / 'run.json'}: {said}"
