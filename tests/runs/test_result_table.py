"""The result table to the letter."""

from __future__ import annotations

from varalign.runs.result_table import final_table, result_columns

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
