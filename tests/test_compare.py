import json

import numpy as np
import pytest

from patchlib import compare, runs

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
        "time": {"seconds": 100.0 + 20 * seed, "images_per_second": 400.0},
        "hardware": {"processor": machine, "cores": 2, "accelerators": []},
        "started": f"2026-01-01T00:00:0{seed}+00:00",
    }


def write(folder, **cards):
    for name, content in cards.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def rows(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def table(*cards, what=compare.leaderboard):
    return what(compare.by_setting(cards))


def test_cards_come_from_flat_files_and_from_runs_but_not_from_checkpoints(tmp_path):
    write(tmp_path, flat=card(seed=1), copy=card(seed=1))
    for name in ("run", "run/checkpoint-00003", "run/checkpoint-00004.partial", "run/.ipynb_checkpoints"):
        (tmp_path / name).mkdir()
    write(tmp_path / "run", run=card(seed=2))
    for name in ("checkpoint-00003", "checkpoint-00004.partial"):
        (tmp_path / "run" / name / "progress.json").write_text('{"run": {}, "best_epoch": 0}')
    (tmp_path / "run/.ipynb_checkpoints/run-checkpoint.json").write_text("{")
    assert [c["seed"] for c in compare.load(tmp_path)] == [1, 2]
    assert [c["seed"] for c in runs.load_cards(tmp_path)] == [1, 1, 2]


def test_smoke_runs_are_refused_by_name(tmp_path):
    write(tmp_path, good=card(), first=card(tier="smoke"), second=card(tier="smoke", seed=1))
    with pytest.raises(runs.RunError, match=r"Smoke runs have no place.*first\.json, .*second\.json: remove") as caught:
        compare.load(tmp_path)
    assert "good.json" not in str(caught.value)


def test_what_is_no_card_of_this_schema_and_a_missing_folder_are_refused_by_name(tmp_path):
    write(tmp_path, old=card() | {"schema": 0})
    with pytest.raises(runs.RunError, match=r"old\.json isn't a run card of schema 1"):
        compare.load(tmp_path)
    with pytest.raises(runs.RunError, match="nowhere isn't a folder"):
        compare.load(tmp_path / "nowhere")


def test_cards_that_differ_in_more_than_the_seed_are_not_averaged():
    cards = [card(seed=0), card(seed=1), card(seed=2, architecture="vit"), card(seed=3, tier="baseline")]
    cards += [card(seed=4, pad=0), card(seed=5, train=15000), card(seed=6) | {"dataset": {**card()["dataset"]}}]
    cards[-1]["dataset"]["fingerprint"] = "e" * 64
    together = {name: [c["seed"] for c in group] for name, group in runs.groups(cards).items()}
    assert together == {
        ("cct", "baseline", WHERE): [3],
        ("cct", "tuned", WHERE): [0, 1],
        ("cct", "tuned, fingerprint eeeeeeee", WHERE): [6],
        ("cct", "tuned, pad 0", WHERE): [4],
        ("cct", "tuned", "cifar10, 15,000 training images, 5 epochs"): [5],
        ("vit", "tuned", WHERE): [2],
    }


def test_a_parameter_that_a_card_is_too_old_to_know_has_its_default():
    assert len(runs.groups([card(), card(seed=1, zoom=0.0)])) == 1
    assert len(runs.groups([card(), card(seed=1, zoom=0.2)])) == 2


def test_what_is_special_follows_the_tiers_name_and_of_two_the_first_run_is_usual():
    names = [tier for _, tier, _ in runs.groups([card(seed=1, pad=0), card(seed=0)])]
    assert names == ["tuned", "tuned, pad 0"]
    names = [tier for _, tier, _ in runs.groups([card(seed=0, pad=0), card(seed=1), card(seed=2, flip=False)])]
    assert names == ["tuned", "tuned, flip False", "tuned, pad 0"]


def test_a_card_with_a_parameter_that_others_lack_has_its_own_name():
    names = [tier for _, tier, _ in runs.groups([card(), card(seed=1, stride=2), card(seed=2, stride=1)])]
    assert names == ["tuned", "tuned, stride 1", "tuned, stride 2"]
    assert [tier for _, tier, _ in runs.groups([card(stride=2), card(seed=1)])] == ["tuned", "tuned, stride None"]


def test_leaderboard_has_mean_spread_and_seeds_best_first_in_each_setting():
    cards = [card(0.70), card(0.72, seed=1, val=(0.74, 0.6)), card(0.9, architecture="vit"), card(0.8, train=15000)]
    del cards[2]["model"]["multiply_adds"]
    board = table(*cards)
    small, whole = board.split("\n\n**")
    assert small.startswith("**cifar10, 15,000 training images, 5 epochs**") and whole.startswith(WHERE)
    assert rows(whole.split("\n\n")[1]) == [
        ["vit tuned", "283,723", "–", "72.00", "90.00", "1", "100", "400", "one, 2 cores"],
        ["cct tuned", "283,723", "31,000,000", "73.00 ± 1.41", "71.00 ± 1.41", "2", "110", "400", "one, 2 cores"],
    ]
    assert [row[4] for row in rows(small.split("\n\n")[1])] == ["80.00"]


def test_times_of_different_machines_are_not_averaged():
    cards = [card(0.7), card(0.8, seed=1, machine="two")]
    (row,) = rows(table(*cards).split("\n\n")[1])
    assert row[5:] == ["2", "–", "–", "one, 2 cores; two, 2 cores"]
    cards[1]["hardware"]["accelerators"] = ["GPU"]
    panels = compare.points(compare.by_setting(cards), "time", "seconds")
    setting = WHERE.replace(", ", "\n", 1)
    assert panels == {
        f"{setting}\none, 2 cores": {"cct tuned": (100.0, [70.0])},
        f"{setting}\nGPU": {"cct tuned": (120.0, [80.0])},
    }


def test_points_are_a_panel_for_each_setting_without_what_no_card_says():
    cards = [card(0.7), card(0.8, seed=1), card(0.6, train=15000), card(0.5, architecture="vit")]
    del cards[3]["model"]["multiply_adds"]
    panels = compare.points(compare.by_setting(cards), "model", "multiply_adds")
    assert list(panels.values()) == [{"cct tuned": (31e6, [60.0])}, {"cct tuned": (31e6, [70.0, 80.0])}]


def test_curves_are_all_the_runs_of_each_tier():
    cards = [card(), card(seed=1, val=(0.25, 0.5)), card(tier="baseline", val=(0.1, 0.2))]
    ((_, setting),) = panels = compare.curves(compare.by_setting(cards))
    assert panels["cct", setting] == {"baseline": [[10.0, 20.0]], "tuned": [[50.0, 72.0], [25.0, 50.0]]}


def test_coverage_counts_seeds_and_shows_what_is_missing():
    cards = [card(), card(seed=1), card(seed=1, machine="two"), card(tier="baseline", architecture="mine")]
    ((where, *cells),) = rows(table(*cards, what=compare.coverage))
    assert where == WHERE and cells == ["– / –", "– / 2", "– / –", "– / –", "– / –", "– / –", "1 / –"]


def test_steps_list_all_that_changed():
    cards = [card(0.72), card(0.5, tier="baseline", pad=0, flip=False), card(0.9, tier="baseline", architecture="vit")]
    assert rows(table(*cards, what=compare.steps)) == [
        ["cct", WHERE, "flip False → True; pad 0 → 4", "50.00", "72.00", "+22.00", "0.67", "1, 1"]
    ]
    assert "No network has both" in table(card(), what=compare.steps)
    assert "No network has both" in table(card(), card(tier="baseline", train=15000), what=compare.steps)


def test_ingredients_are_compared_with_the_recipe_that_they_were_left_out_of():
    cards = [card(0.72), card(0.73, seed=1), card(0.70, pad=0, seed=2), card(0.735, flip=False, seed=2)]
    cards += [card(0.9, architecture="vit", pad=0), card(0.8, train=15000, pad=0)]
    assert rows(table(*cards, what=compare.ingredients)) == [
        ["cct", WHERE, "flip True → False", "72.50 ± 0.71", "73.50", "+1.00", "0.63", "2, 1"],
        ["cct", WHERE, "pad 0 → 4", "70.00", "72.50 ± 0.71", "+2.50", "0.64", "1, 2"],
    ]


def test_ingredients_that_move_together_are_one_row_and_whole_recipes_are_none():
    cosine, far = {"schedule": "cosine", "warmup_epochs": 1.0}, {"ema": 0.9, "zoom": 0.1, "pad": 1, "mixup": 0.2}
    (row,) = rows(table(card(), card(0.6, seed=1, **cosine), card(0.5, seed=2, **far), what=compare.ingredients))
    assert row[2] == "schedule cosine → constant; warmup_epochs 1.0 → 0.0"
    assert "differ in 3 parameters or fewer yet" in table(card(), what=compare.ingredients)


def test_flattery_is_validation_less_test_of_the_kept_epoch_and_averaged_at_the_end():
    # Standard errors by hand: sqrt(72 * 28 / 5000 + 70 * 30 / 10000), sqrt(50 * 50 / 5000 + 50.5 * 49.5 / 10000).
    cards = [card(0.70), card(0.505, architecture="vit", val=(0.5, 0.1))]
    assert rows(table(*cards, what=compare.flattery)) == [
        ["cct tuned", WHERE, "72.00", "70.00", "+2.00", "0.78", "+0.00"],
        ["vit tuned", WHERE, "50.00", "50.50", "-0.50", "0.87", "+0.00"],
        ["**mean of all rows**", "", "", "", "+0.75", "", "+0.00"],
    ]


def test_luck_is_the_expected_maximum():
    sigma = 100 * (0.9 * 0.1 / 10000) ** 0.5
    assert compare.luck([0.9], 0, 10000) == 0
    np.testing.assert_allclose(compare.luck([0.9] * 2, 1, 10000), sigma / np.pi**0.5, rtol=0.03)
    np.testing.assert_allclose(compare.luck([0.9] * 3, 0, 10000), 1.5 * sigma / np.pi**0.5, rtol=0.03)
    np.testing.assert_allclose(compare.luck([0.9, 0.8], 1, 10000), 10, atol=0.02)  # val_loss kept the worse one


def test_nothing_is_said_where_there_is_no_card(tmp_path):
    settings = compare.by_setting(compare.load(tmp_path))
    assert {compare.leaderboard(settings), compare.flattery(settings)} == {compare.NONE}
    assert not compare.curves(settings) and not compare.points(settings, "model", "parameters")
    assert rows(compare.coverage(settings)) == []
