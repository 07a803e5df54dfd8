import json

import numpy as np
import pytest
from test_cards import WHERE, card, write

from patchlib import cards, compare


def rows(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def table(*found, what):
    return what(cards.groups(found))


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


def test_the_summary_counts_seeds_and_says_how_far_recipes_and_networks_lie_apart():
    found = [card(0.72), card(0.74, 1), card(0.5, tier="baseline"), card(0.9, architecture="vit")]
    alike, points = "on the same data for equally many epochs", "points of test accuracy."
    assert table(*found, what=compare.summary).splitlines() == [
        "- 4 runs of 3 recipes: 2 with 1 seed, 1 with 2 seeds.",
        f"- Between baseline and tuned, {alike}: 23.0 to 23.0 {points}",
        f"- Between the best and the worst network of a tier (CCT, ViT), {alike}: 17.0 to 17.0 {points}",
    ]
    apart = card(0.8, tier="baseline", epochs=6), card(0.9, architecture="vit", train=15000)
    assert table(card(), *apart, what=compare.summary) == "- 3 runs of 3 recipes: 3 with 1 seed."


def test_costs_are_the_cards_and_the_measured_ones_of_tiers_as_they_are(tmp_path):
    found = [card(0.7, val=[0.5] * 3), card(0.8, seed=1), card(0.6, seed=2, pad=0), card(0.5, train=15000)]
    found += [card(0.9, architecture="vit", tier="fast")]
    del found[4]["model"]["multiply_adds"]
    groups, file = cards.groups(found), tmp_path / "compare.json"
    whole, small = "cifar10, 45,000 training images", "cifar10, 15,000 training images"
    cct, vit = [70.0, 80.0], [90.0]
    expected = {
        "epochs": [("CCT", "tuned", 2.5, cct), ("ViT", "fast", 2.0, vit)],
        "parameters": [("CCT", "tuned", 283723.0, cct), ("ViT", "fast", 283723.0, vit)],
        "multiply-adds for one image": [("CCT", "tuned", 31e6, cct)],
    }
    panels = compare.costs(groups, file)
    assert panels[whole] == expected and set(panels) == {whole, small}
    contenders = {"tuned": {"train": {"median": 0.25}}, "baseline": {"train": {"median": 9.0}}}
    file.write_text(json.dumps({"compare": {"cct": {"contenders": contenders}}}))
    measured = {"milliseconds of a training step": [("CCT", "tuned", 250.0, cct)]}
    assert compare.costs(groups, file)[whole] == expected | measured


def test_curves_are_all_the_runs_of_each_tier_and_of_several_networks_those_of_tiers_as_they_are():
    found = [card(), card(seed=1, val=(0.25, 0.5)), card(tier="baseline", val=(0.1, 0.2)), card(seed=2, pad=0)]
    baseline, tuned = [[10.0, 20.0]], [[50.0, 72.0], [25.0, 50.0]]
    (panels,) = compare.curves(cards.groups(found)).values()
    special = ("tuned, pad 0", [[50.0, 72.0]])
    assert panels == {"baseline": [("baseline", baseline)], "tuned": [("tuned", tuned), special]}
    (panels,) = compare.curves(cards.groups([*found, card(architecture="vit", epochs=9)])).values()
    assert panels == {"baseline": [("CCT", baseline)], "tuned": [("CCT", tuned), ("ViT", [[50.0, 72.0]])]}


def test_steps_list_all_that_changed_whatever_is_special():
    found = [card(0.72, pad=3), card(0.5, tier="baseline", pad=0, flip=False), card(0.7, epochs=9)]
    found += [card(0.9, tier="baseline", architecture="vit"), card(0.4, tier="fast")]
    assert rows(table(*found, what=compare.steps)) == [
        ["CCT", WHERE, "50.00", "72.00", "+22.00", "0.67", "1, 1", "flip False → True; pad 0 → 3"]
    ]
    assert table(card(), card(tier="baseline", train=15000), what=compare.steps) == compare.NONE


def test_ingredients_are_compared_with_the_recipe_that_they_were_left_out_of():
    found = [card(0.72), card(0.73, seed=1), card(0.70, pad=0, seed=2), card(0.735, flip=False, seed=2)]
    found += [card(0.9, architecture="vit", pad=0), card(0.8, train=15000, zoom=0.1)]
    # Standard errors by hand: sqrt(70 * 30 / 10000 + 72.5 * 27.5 / 10000 + 0.5 * (1 + 1 / 2)), where seeds vary by 0.5.
    assert rows(table(*found, what=compare.ingredients)) == [
        ["CCT", WHERE, "70.00", "72.50 ± 0.71", "+2.50", "1.08", "1, 2", "pad 0 → 4"],
        ["CCT", WHERE, "72.50 ± 0.71", "73.50", "+1.00", "1.07", "2, 1", "flip True → False"],
    ]


def test_ingredients_that_move_together_are_one_row_and_whole_recipes_are_none():
    cosine, far = {"schedule": "cosine", "warmup_epochs": 1.0}, {"erasing": 0.9, "zoom": 0.1, "pad": 1, "mixup": 0.2}
    (row,) = rows(table(card(), card(0.6, seed=1, **cosine), card(0.5, seed=2, **far), what=compare.ingredients))
    assert row[-1] == "schedule cosine → constant; warmup_epochs 1.0 → 0.0"
    assert table(card(), what=compare.ingredients) == compare.NONE


def test_selection_bias_is_validation_less_test_of_the_epoch_that_accuracy_chose_and_averaged_for_each_data_set():
    # Standard errors by hand: sqrt(72 * 28 / 5000 + 70 * 30 / 10000), sqrt(50 * 50 / 5000 + 50.5 * 49.5 / 10000).
    found = [card(0.70), card(0.505, architecture="vit", val=(0.5, 0.1)), card(tier="baseline", select_by="val_loss")]
    assert rows(table(*found, what=compare.selection_bias)) == [
        ["CCT tuned", WHERE, "72.00", "70.00", "+2.00", "0.78", "+0.00"],
        ["ViT tuned", WHERE, "50.00", "50.50", "-0.50", "0.87", "+0.00"],
        ["**mean**", "**cifar10**", "", "", "+0.75", "0.82", "+0.00"],
    ]
    found[1]["dataset"]["name"] = "cifar100"
    assert "mean" not in table(*found, what=compare.selection_bias)


def test_luck_is_the_expected_maximum():
    sigma = 100 * (0.9 * 0.1 / 10000) ** 0.5
    assert compare.luck([0.9], 0, 10000) == 0
    np.testing.assert_allclose(compare.luck([0.9] * 2, 1, 10000), sigma / np.pi**0.5, rtol=0.03)
    np.testing.assert_allclose(compare.luck([0.9] * 3, 0, 10000), 1.5 * sigma / np.pi**0.5, rtol=0.03)
    np.testing.assert_allclose(compare.luck([0.9, 0.8], 1, 10000), 10, atol=0.02)  # val_loss kept the worse one


def test_nothing_is_said_where_there_is_no_card(tmp_path):
    groups = cards.groups(compare.load(tmp_path))
    assert compare.summary(groups) == compare.selection_bias(groups) == compare.missed({}) == compare.NONE
    assert not compare.curves(groups) and not compare.costs(groups, tmp_path / "compare.json")


def test_how_consistently_all_networks_of_a_tier_err_is_a_square(tmp_path):
    ranks = {"vit_fast": [0, 0, 2, 1], "cct_fast": [0, 3, 0, 1], "cct_fast_1": [0, 3, 2, 1], "fnet_fast": [0, 0, 2, 1]}
    (networks,) = said(tmp_path, **ranks, fnet_fast_2=[0] * 4).values()
    # Kappa of CCT and its other seed by hand: (3/4 - 1/2) / (1 - 1/2), where (3/4 - 1/2) / (1 - 1/2) is possible.
    assert rows(compare.consistency(networks, "fast")) == [
        ["CCT", "1.00", "0.00", "0.00"],
        ["FNet", "0.00", "", "1.00"],
        ["ViT", "0.00", "1.00", ""],
    ]
    assert compare.consistency(networks, "tuned") == compare.NONE
    text = compare.each({"a": {1: 2}, "b": {}}, lambda answers, tier: f"{answers} {tier}", "fast")
    assert text == "**a**\n\n{1: 2} fast\n\n**b**\n\n{} fast"
    assert compare.each({}, compare.missed) == compare.NONE


def said(tmp_path, **ranks):
    for name, rank in ranks.items():
        (tmp_path / name).mkdir()
        architecture, _, rest = name.partition("_")
        tier, _, seed = rest.partition("_")
        content = card(architecture=architecture, tier=tier, seed=int(seed or 0))
        content["dataset"]["classes"] = ["apple", "bear", "cup"]
        (tmp_path / name / "run.json").write_text(json.dumps(content))
        label = np.arange(len(rank)) % 3
        arrays = {"label": label, "predicted": (label + rank) % 3, "rank": np.array(rank, "uint8")}
        np.savez_compressed(tmp_path / name / "predictions.npz", **arrays)
    return compare.predictions(tmp_path)


def test_which_networks_err_together_and_what_all_get_wrong(tmp_path):
    found = said(tmp_path, vit_tuned=[0, 0, 2, 1], cct_tuned=[0, 3, 0, 1], cct_tuned_1=[0] * 4, cct_fast=[0] * 4)
    (networks,) = found.values()
    assert list(found) == ["cifar10"]
    assert list(networks) == ["CCT fast", "CCT tuned", "CCT tuned, another seed", "ViT tuned"]
    assert rows(compare.agreements(networks)) == [
        ["CCT", "CCT, another seed", "2", "0", "2", "0", "0.00", "0.00", "–", "0.5"],
        ["CCT", "ViT", "1", "1", "1", "1", "0.00", "1.00", "0.00", "1"],
    ]
    assert compare.agreements(networks, "baseline") == compare.NONE
    text, _, listed = compare.missed(networks).partition("\n\n")
    assert text.startswith("1 images, where 1 would be expected") and "; 1 of them all take" in text
    assert listed.splitlines()[0] == "| number | class | CCT | ViT |"
    assert rows(listed) == [["3", "apple", "bear", "bear"]]
    (networks,) = said(tmp_path, vit_mine=[1, 2, 0, 1], cct_mine=[1] * 4).values()
    text, _, listed = compare.missed(networks, "mine", most=2).partition("\n\n")
    assert text.startswith("3 images, where 3 would") and "; 2 of them all take" in text
    assert rows(listed) == [["0", "apple", "bear", "bear"], ["1", "bear", "cup", "apple"]]
