"""The result table to the letter."""

from __future__ import annotations

from varalign.runs.result_table import chance_remark, final_table, result_columns

ROWS = [
    {"model": "resnet18 + lstm", "epochs": 30, "loss": 0.51234, "cosine_similarity": 0.6}
    | {"t2i_recall@10": 0.5, "i2t_recall@10": 0.45, "i2t_recall@1": 0.125, "images": 1000, "texts": 5000},
    {"model": "chance", "i2t_recall@1": 0.001, "i2t_recall@10": 0.01, "t2i_recall@10": 0.01}
    | {"images": 1000, "texts": 5000, "loss": None},
]


def test_the_table() -> None:
    assert final_table(ROWS).splitlines() == [
        "model            epochs    loss  cosine similarity  i2t R@1  i2t R@10  t2i R@10",
        "───────────────  ──────  ──────  ─────────────────  ───────  ────────  ────────",
        "resnet18 + lstm      30  0.5123             0.6000     12.5      45.0      50.0",
        "chance                –       –                  –      0.1       1.0       1.0",
        "Recall in percent, among 1,000 images, 5,000 texts.",
    ]


def test_candidates_become_a_column_where_they_differ() -> None:
    table = final_table([ROWS[0], {**ROWS[1], "images": 100, "texts": 500}, {"model": "a"}])
    assert "100 images, 500 texts" in table.splitlines()[3] and "among" not in table


def test_missing_and_undefined_numbers_are_a_dash() -> None:
    columns, note = result_columns([{"epochs": 1000, "loss": float("nan"), "i2t_recall@1": None}])
    assert columns == {
        "model": ["–"],
        "epochs": ["1,000"],
        "loss": ["–"],
        "cosine similarity": ["–"],
        "i2t R@1": ["–"],
    }
    assert note == ""


def test_intervals_stand_below_their_row_and_few_images_are_said() -> None:
    row = {**ROWS[0], "images": 24, "texts": 120}
    row["intervals"] = {key: [0.9 * row[key], 1.0] for key in row if "recall@" in key}
    assert final_table([row, {**ROWS[1], "images": 24, "texts": 120}]).splitlines()[2:] == [
        "resnet18 + lstm      30  0.5123             0.6000        12.5        45.0        50.0",
        "  95 % interval                                     11.2–100.0  40.5–100.0  45.0–100.0",
        "chance                –       –                  –         0.1         1.0         1.0",
        "Recall in percent, among 24 images, 120 texts. Of 24 images one is 4.2 points: with fewer than 30 such "
        "figures say little.",
    ]


def test_folds_are_said_and_few_images_are_those_that_were_judged() -> None:
    row = {**ROWS[0], "images": 8, "texts": 16, "folds": 5, "judged": {"images": 40, "texts": 80}}
    row |= {"uncorrected": {name: row[name] for name in row if "recall@" in name} | {"images": 8, "texts": 16}}
    note = final_table([row, {**ROWS[1], "images": 8, "texts": 16, "folds": 5}]).splitlines()[-1]
    assert note == (
        "Recall in percent, among 8 images, 16 texts of each of 5 folds. No test split: nested cross-validation by "
        "image. Each of 5 folds was scored by voices that were fitted, chosen and corrected on the others alone, so "
        "all 40 images and 80 texts were judged once. The model of this run is fitted on all of them."
    )


def test_a_run_is_at_chance_where_no_interval_lies_above_it() -> None:
    chance = {"i2t_recall@1": 0.1, "t2i_recall@1": 0.1}
    at = {"intervals": {"i2t_recall@1": [0.1, 0.4], "t2i_recall@1": [0.0, 0.2]}}
    above = {"intervals": {**at["intervals"], "t2i_recall@1": [0.11, 0.2]}}
    assert chance_remark(at, chance) == ["no better than chance: the 95 % interval of every recall reaches down to it"]
    assert chance_remark(above, chance) == []
