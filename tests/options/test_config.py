"""What follows from several options."""

from __future__ import annotations

import pytest
from varalign.options.config import TrainConfig
from varalign.options.fields import RECIPE
from varalign.options.layers import resolve


def test_defaults_are_valid_and_pick_the_custom_encoders() -> None:
    config = TrainConfig().validate()
    assert (config.image_spec, config.text_spec) == ("resnet18", "lstm")
    assert all(getattr(config, name) is None for name in RECIPE)
    assert (config.frozen_towers, config.resolved_start) == (False, "random")


def test_use_pretrained_picks_clip_and_bert_and_an_explicit_spec_goes_over_it() -> None:
    config = resolve([{"use_pretrained": True, "text_encoder": "lstm"}])
    assert (config.image_spec, config.text_spec) == ("clip:ViT-B-32@openai", "lstm")


def test_dev_is_evaluated_after_evenly_spaced_epochs_and_the_last() -> None:
    assert TrainConfig(epochs=4).evaluated_epochs == {1, 2, 3, 4}
    assert TrainConfig(epochs=10, evaluations=3).evaluated_epochs == {3, 7, 10}
    assert TrainConfig(epochs=2, evaluations=5).evaluated_epochs == {1, 2}


@pytest.mark.parametrize(
    ("options", "trains", "tunes"),
    [
        ({}, (True, True), False),
        ({"use_pretrained": True}, (False, False), False),
        ({"use_pretrained": True, "unfreeze": 1}, (True, True), True),
        ({"use_pretrained": True, "lora": 4}, (True, True), False),
        ({"use_pretrained": True, "freeze": "image"}, (False, True), True),
        ({"image_encoder": "resnet18@imagenet"}, (False, True), False),
    ],
)
def test_which_towers_train_and_which_of_them_are_pretrained(
    options: dict[str, object], trains: tuple[bool, bool], tunes: bool
) -> None:
    config = TrainConfig(**options).validate()  # type: ignore[arg-type]
    assert (config.trains("image"), config.trains("text")) == trains
    assert config.tunes_towers is tunes and config.frozen_towers is not any(trains)
