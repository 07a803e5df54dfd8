import json

import numpy as np
import pytest
from test_cards import WHERE, card, write

from patchlib import cards, compare


def rows(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def table(*found, what=compare.leaderboard):
    return what(compare.by_setting(found))


def test_cards_come_from_flat_files_and_from_runs_but_not_from_checkpoints(tmp_path):
    write(tmp_path, flat=card(seed=1), copy=card(seed=1))
    for name in ("run", "run/checkpoint-00003", "run/checkpoint-00004.partial", "run/.ipynb_checkpoints"):
        (tmp_path / name).mkdir()
    write(tmp_path / "run", run=card(seed=2))
    for name in ("checkpoint-00003", "checkpoint-00004.partial"):
        (tmp_path / "run" / name / "progress.json").write_text('{"run": {}, "best_epoch": 0}')
    (tmp_path / "run/.ipynb_checkpoints/run-checkpoint.json").write_text("{")
    assert [c["seed"] for c in compare.load(tmp_path)] == [1, 2]
    assert [c["seed"] for c in cards.load_cards(tmp_path)] == [1, 1, 2]


def test_smoke_runs_are_refused_by_name(tmp_path):
    write(tmp_path, good=card(), first=card(tier="smoke"), second=card(tier="smoke", seed=1))
    with pytest.raises(
        cards.RunError, match=r"Smoke runs have no place.*first\.json, .*second\.json: remove"
    ) as caught:
        compare.load(tmp_path)
    assert "good.json" not in str(caught.value)


def test_what_is_no_card_of_this_schema_and_a_missing_folder_are_refused_by_name(tmp_path):
    write(tmp_path, old=card() | {"schema": 0})
    with pytest.raises(cards.RunError, match=r"old\.json isn't a run card of schema 1"):
        compare.load(tmp_path)
    with pytest.raises(cards.RunError, match="nowhere' isn't a folder"):
        compare.load(tmp_path / "nowhere")


def test_leaderboard_has_mean_spread_and_seeds_best_first_in_each_setting():
    found = [card(0.70), card(0.72, seed=1, val=(0.74, 0.6)), card(0.9, architecture="vit"), card(0.8, train=15000)]
    del found[2]["model"]["multiply_adds"]
    board = table(*found)
    small, whole = board.split("\n\n**")
    assert small.startswith("**cifar10, 15,000 training images, 5 epochs**") and whole.startswith(WHERE)
    assert rows(whole.split("\n\n")[1]) == [
        ["vit tuned", "283,723", "–", "72.00", "90.00", "1", "100", "400", "one, 2 cores"],
        ["cct tuned", "283,723", "31,000,000", "73.00 ± 1.41", "71.00 ± 1.41", "2", "110", "400", "one, 2 cores"],
    ]
    assert [row[4] for row in rows(small.split("\n\n")[1])] == ["80.00"]


def test_times_of_different_machines_are_not_averaged():
    found = [card(0.7), card(0.8, seed=1, machine="two")]
    (row,) = rows(table(*found).split("\n\n")[1])
    assert row[5:] == ["2", "–", "–", "one, 2 cores; two, 2 cores"]


def test_step_times_are_the_measured_ones_of_the_tiers_that_were_measured(tmp_path):
    found = [card(0.7), card(0.8, seed=1), card(0.6, tier="baseline"), card(0.5, tier="fast")]
    found += [card(0.9, architecture="vit")]
    settings, file = compare.by_setting(found), tmp_path / "compare.json"
    assert compare.by_step_time(settings, file) == {}
    tiers = {tier: {"train": {"median": seconds}} for tier, seconds in {"tuned": 0.1, "baseline": 0.2}.items()}
    measured = {"hardware": card()["hardware"], "compare": {"cct": {"contenders": tiers}}}
    file.write_text(json.dumps(measured))
    expected = {"cct baseline, 5 epochs": (200.0, [60.0]), "cct tuned, 5 epochs": (100.0, [70.0, 80.0])}
    panel = "cifar10\n45,000 training images\none, 2 cores"
    assert compare.by_step_time(settings, file) == {panel: expected}


def test_points_are_a_panel_for_each_data_set_without_what_no_card_says():
    found = [card(0.7), card(0.8, seed=1), card(0.6, train=15000), card(0.5, architecture="vit")]
    del found[3]["model"]["multiply_adds"]
    panels = compare.points(compare.by_setting(found), "model", "multiply_adds")
    small, whole = {"cct tuned, 5 epochs": (31e6, [60.0])}, {"cct tuned, 5 epochs": (31e6, [70.0, 80.0])}
    assert panels == {f"cifar10\n{count} training images": p for count, p in (("15,000", small), ("45,000", whole))}


def test_curves_are_all_the_runs_of_each_tier():
    found = [card(), card(seed=1, val=(0.25, 0.5)), card(tier="baseline", val=(0.1, 0.2))]
    ((_, setting),) = panels = compare.curves(compare.by_setting(found))
    assert panels["cct", setting] == {"baseline": [[10.0, 20.0]], "tuned": [[50.0, 72.0], [25.0, 50.0]]}


def test_coverage_counts_seeds_and_shows_what_is_missing():
    found = [card(), card(seed=1), card(seed=1, machine="two"), card(tier="baseline", architecture="mine")]
    ((where, *cells),) = rows(table(*found, what=compare.coverage))
    assert where == WHERE and cells == ["– / – / 2", "1 / – / –"]


def test_steps_list_all_that_changed():
    found = [card(0.72), card(0.5, tier="baseline", pad=0, flip=False), card(0.9, tier="baseline", architecture="vit")]
    assert rows(table(*found, what=compare.steps)) == [
        ["cct", WHERE, "flip False → True; pad 0 → 4", "50.00", "72.00", "+22.00", "0.67", "1, 1"]
    ]
    assert "No network has both" in table(card(), what=compare.steps)
    assert "No network has both" in table(card(), card(tier="baseline", train=15000), what=compare.steps)


def test_ingredients_are_compared_with_the_recipe_that_they_were_left_out_of():
    found = [card(0.72), card(0.73, seed=1), card(0.70, pad=0, seed=2), card(0.735, flip=False, seed=2)]
    found += [card(0.9, architecture="vit", pad=0), card(0.8, train=15000, pad=0)]
    assert rows(table(*found, what=compare.ingredients)) == [
        ["cct", WHERE, "flip True → False", "72.50 ± 0.71", "73.50", "+1.00", "0.63", "2, 1"],
        ["cct", WHERE, "pad 0 → 4", "70.00", "72.50 ± 0.71", "+2.50", "0.64", "1, 2"],
    ]


def test_ingredients_that_move_together_are_one_row_and_whole_recipes_are_none():
    cosine, far = {"schedule": "cosine", "warmup_epochs": 1.0}, {"ema": 0.9, "zoom": 0.1, "pad": 1, "mixup": 0.2}
    (row,) = rows(table(card(), card(0.6, seed=1, **cosine), card(0.5, seed=2, **far), what=compare.ingredients))
    assert row[2] == "schedule cosine → constant; warmup_epochs 1.0 → 0.0"
    assert "differ in 3 parameters or fewer yet" in table(card(), what=compare.ingredients)


def test_selection_bias_is_validation_less_test_of_the_kept_epoch_and_averaged_at_the_end():
    # Standard errors by hand: sqrt(72 * 28 / 5000 + 70 * 30 / 10000), sqrt(50 * 50 / 5000 + 50.5 * 49.5 / 10000).
    found = [card(0.70), card(0.505, architecture="vit", val=(0.5, 0.1))]
    assert rows(table(*found, what=compare.selection_bias)) == [
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
    assert {compare.leaderboard(settings), compare.selection_bias(settings)} == {compare.NONE}
    assert not compare.curves(settings) and not compare.points(settings, "model", "parameters")
    assert rows(compare.coverage(settings)) == []


def said(tmp_path, **ranks):
    for name, rank in ranks.items():
        (tmp_path / name).mkdir()
        architecture, _, rest = name.partition("_")
        tier, _, seed = rest.partition("_")
        content = card(architecture=architecture, tier=tier, seed=int(seed or 0))
        (tmp_path / name / "run.json").write_text(json.dumps(content))
        np.savez_compressed(tmp_path / name / "predictions.npz", rank=np.array(rank, "uint8"))
    return compare.predictions(tmp_path)


def test_which_networks_err_together_and_what_all_get_wrong(tmp_path):
    found = said(tmp_path, vit_tuned=[0, 0, 2, 1], cct_tuned=[0, 3, 0, 4], cct_tuned_1=[0] * 4, cct_fast=[0, 0, 0, 9])
    (networks,) = found.values()
    assert list(found) == ["cifar10"] and list(networks) == ["cct fast", "cct tuned", "vit tuned"]
    assert rows(compare.agreements(networks)) == [["cct tuned", "vit tuned", "1", "1", "1", "1", "0.00", "1.00", "1"]]
    assert compare.missed(networks).tolist() == [3]
    assert compare.agreements(networks, "baseline") == compare.NONE
