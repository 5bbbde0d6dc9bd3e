"""The sentences on a run's figures: what is said of a good run, one at chance, a collapsed one, and of training."""

from __future__ import annotations

from typing import Any

from varalign.runs.verdict import training_lines, verdict, voices_sentence

CHANCE = {"model": "chance", "i2t_recall@1": 0.001, "t2i_recall@1": 0.001}


def row(i2t: float, t2i: float, width: float = 0.02) -> dict[str, Any]:
    bounds = {
        "i2t_recall@1": [max(0.0, i2t - width), i2t + width],
        "t2i_recall@1": [max(0.0, t2i - width), t2i + width],
    }
    return {"images": 1000, "texts": 5000, "i2t_recall@1": i2t, "t2i_recall@1": t2i, "intervals": bounds}


def test_a_run_beside_chance_and_clip() -> None:
    zero_shot = {"model": "zero-shot clip", "i2t_recall@1": 0.512, "t2i_recall@1": 0.3}
    assert verdict([row(0.24, 0.18), zero_shot, CHANCE]) == [
        "On test, the model finds the right caption first for 24 of 100 images (95 %: 22 to 26; chance 0.1; zero-shot "
        "CLIP 51.2) among 5,000 texts, and the right image first for 18 of 100 captions (95 %: 16 to 20; chance 0.1; "
        "zero-shot CLIP 30) among 1,000 images.",
        "On the mean of both, that is 19.6 points below CLIP as published.",
    ]


def test_folds_in_place_of_a_test_split() -> None:
    ours = {**row(0.24, 0.18), "folds": 5, "judged": {"images": 5000, "texts": 25000}}
    said = verdict([ours, CHANCE], split="train")[0]
    assert said.startswith(
        "On pairs that its fit had not seen, in 5 folds (there is no test split), the recipe finds the right caption "
        "first for 24 of 100 images"
    )


def test_a_run_at_chance_and_a_collapsed_one() -> None:
    assert verdict([row(0.002, 0.001), CHANCE])[:1] == [
        "No better than chance: the 95 % interval of every recall reaches down to it."
    ]
    assert verdict([row(0.0, 0.0)], ["image", "text"]) == [
        "All image and all text embeddings are one point: the model has collapsed."
    ]
    assert verdict([{"model": "x"}]) == ["No result is recorded."]


def test_what_training_did() -> None:
    def look(epoch: int, recall: float) -> dict[str, Any]:
        return {"kind": "eval", "split": "dev", "epoch": epoch, "i2t_recall@1": recall, "t2i_recall@1": recall}

    assert training_lines([{"kind": "step"}], {}) == []
    assert training_lines([look(0, 0.2), look(1, 0.1), look(2, 0.15)], {"epochs": 5}) == [
        "No epoch of training was better on dev than the start (mean recall 20), so the start was kept.",
        "Training ended after epoch 2 of 5: it was interrupted.",
    ]
    looks = [look(0, 0.1), look(1, 0.2), look(2, 0.15), look(3, 0.15)]
    assert training_lines(looks, {"epochs": 5, "patience": 2}) == [
        "Mean recall on dev rose from 10 at the start to 20 at epoch 1, the best.",
        "Training ended after epoch 3 of 5: dev had not improved for 2 epochs (--patience 2).",
    ]
    assert training_lines([look(1, 0.1), look(2, 0.125)], {"epochs": 2}) == [
        "Mean recall on dev: 10 at epoch 1, 12.5 at epoch 2, the best."
    ]
    assert training_lines([look(0, 0.15)], {"epochs": 0}) == [
        "The model was fitted without steps of training; its mean recall on dev is 15."
    ]


def test_which_voices_count() -> None:
    assert voices_sentence({"closed-form": 1.0, "kernel": 0.0, "lexical": 0.0}) == (
        "Similarity: the closed form alone; the kernel, the lexical kernel: tried, not kept."
    )
    assert voices_sentence({"kernel": 0.75, "members": 0.25}) == "Similarity: 0.75 × the kernel + 0.25 × the members."
