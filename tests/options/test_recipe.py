"""The numbers of the default recipe: results that were published were trained with them."""

from __future__ import annotations

import pytest
from varalign.options.config import TrainConfig
from varalign.options.fields import RECIPE
from varalign.options.recipe import described, fill, filled

CASES = [
    (
        {},
        6000,
        "--embedding-dim 256 --head mlp --hidden-dim 512 --dropout 0.1 --members 0 --epochs 30 --batch-size 64 "
        "--lr 0.0003 --weight-decay 0.01 --input-noise 0 --captions-per-step 5 --captions-as each",
    ),
    (
        {"use_pretrained": True, "start": "random"},
        600,
        "--embedding-dim 256 --head mlp --hidden-dim 512 --dropout 0.1 --members 0 --epochs 30 --batch-size 128 "
        "--lr 0.001 --weight-decay 0.01 --input-noise 0 --captions-per-step 1 --captions-as mean",
    ),
    (
        {"features": "f"},
        6000,
        "--head mlp --hidden-dim 512 --dropout 0 --members 8 --epochs 48 --batch-size 256 --lr 0.003 "
        "--weight-decay 0.05 --input-noise 1 --captions-per-step 1 --captions-as mean --evaluations 5",
    ),
    (
        {"features": "f"},
        600,
        "--head mlp --hidden-dim 512 --dropout 0 --members 0 --epochs 0 --batch-size 200 --lr 0.003 "
        "--weight-decay 0.05 --input-noise 1 --captions-per-step 1 --captions-as mean --evaluations 5",
    ),
    (
        {"features": "f", "voices": "none", "members": 0},
        6000,
        "--head mlp --hidden-dim 1024 --dropout 0.3 --map-lr 0.1 --epochs 40 --batch-size 256 --lr 0.001 "
        "--weight-decay 0 --input-noise 1 --captions-per-step 2 --captions-as mean",
    ),
    (
        {"features": "f", "voices": "none", "members": 0},
        600,
        "--head mlp --hidden-dim 1024 --dropout 0.3 --map-lr 0.3 --epochs 40 --batch-size 256 --lr 3.2e-05 "
        "--weight-decay 0 --input-noise 1 --captions-per-step 2 --captions-as mean",
    ),
    (
        {"features": "f", "head": "linear"},
        60,
        "--members 0 --map-lr 0.3 --epochs 40 --batch-size 256 --lr 3e-05 --weight-decay 0 --input-noise 1 "
        "--captions-per-step 2 --captions-as mean",
    ),
]


@pytest.mark.parametrize(("options", "images", "said"), CASES)
def test_the_recipe_by_start_and_number_of_images(options: dict[str, object], images: int, said: str) -> None:
    config = TrainConfig(**options).validate()  # type: ignore[arg-type]
    assert filled(config, fill(config, images)) == said


@pytest.mark.parametrize(("images", "size"), [(2, 32), (999, 32), (1000, 64), (11_519, 64), (11_520, 128)])
def test_a_batch_from_random_weights_fits_the_number_of_images(images: int, size: int) -> None:
    assert fill(TrainConfig(), images).batch_size == size
    assert fill(TrainConfig(batch_size=16), images).batch_size == 16


def test_the_help_gives_a_default_for_each_start() -> None:
    assert described("lr") == (
        "0.001; closed-form start: 0.003; with a residual: 3.2e-05 at 600 images, 0.001 at 6,000; "
        "text encoder from random weights: 0.0003"
    )
    assert described("batch_size").endswith("; text encoder from random weights: 32 at 600 images, 64 at 6,000")
    assert described("captions_as") == "mean; text encoder from random weights: each"
    assert all(described(name) for name in RECIPE)
