"""The table of rules: every refusal names the option."""

from __future__ import annotations

import pytest
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError
from varalign.options.fields import OPTIONS, RECIPE
from varalign.options.layers import resolve
from varalign.options.recipe import fill
from varalign.options.rules import RULES, check_rules, idle_options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"features": "b", "split_by": "seed"},
            "a features file is none: leave it out, or name the folder of its pictures",
        ),
        (
            {"features": "b", "use_pretrained": True},
            "--use-pretrained names encoders, and a features file",
        ),
        ({"schedule": "replay"}, "--schedule replay needs the run whose weights it replays"),
        ({"start": "closed-form"}, "an encoder that trains from random weights has none yet (resnet18, lstm)"),
        ({"features": "b", "start": "random", "ridge": 1.0}, "--ridge belongs to --start closed-form"),
        ({"pair_weighting": "closed-form"}, "scores features of frozen encoders: freeze both, or pass moments"),
        ({"features": "b", "decoded_cache": True}, "--decoded-cache needs images and captions"),
        (
            {"features": "b", "loss": "adversarial-inputs", "feature_mixup": 1.0},
            "--feature-mixup trains on mixed pairs, and --loss adversarial-inputs changes the inputs",
        ),
        ({"features": "b", "word_vectors": "v"}, "--word-vectors fills the word embedding of --text-encoder lstm"),
        ({"features": "b", "average_weights": 0.9}, "--average-weights averages the weights of encoders that train"),
        ({"shard": True, "average_weights": 0.9}, "--average-weights needs the whole weights on each process"),
        ({"input_noise": 1.0}, "--input-noise needs features whose standard deviations do not change"),
    ],
)
def test_a_broken_rule_names_the_option(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve([options])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"features": "b", "flip": 0.0},
            "--flip needs images and captions: a features file",
        ),
        ({"features": "b", "decode": "fast"}, "--decode needs images and captions"),
        ({"features": "b", "max_bad": 0.5}, "--max-bad needs images and captions"),
        ({"features": "b", "tower_lr": 1e-4}, "--tower-lr needs the encoders, which a features file does not have"),
        ({"features": "b", "freeze": "both"}, "--freeze needs the encoders"),
        ({"features": "b", "feature_precision": "bf16"}, "--feature-precision needs the encoders"),
        ({"feature_precision": "bf16"}, "--feature-precision is that of the features of frozen encoders"),
        (
            {"use_pretrained": True, "tower_lr": 1e-4},
            "--tower-lr is the learning rate of pretrained",
        ),
        (
            {"use_pretrained": True, "lora": 4, "tower_lr": 1e-4},
            "--tower-lr is the learning rate of pretrained",
        ),
        ({"use_pretrained": True, "flip": 0.0}, "--flip is part of the augmentation, which this run does not have"),
        ({"color_jitter": 0.4, "augment": False}, "--color-jitter is part of the augmentation"),
        ({"crop_area": 0.2, "use_pretrained": True}, "--crop-area is part of the augmentation"),
        ({"color_jitter": 0.4, "use_pretrained": True}, "--color-jitter is part of the augmentation"),
        ({"features": "b", "color_jitter": 0.4}, "--color-jitter needs images and captions"),
        (
            {"features": "b", "members": 0, "members_share": 0.5},
            "--members-share is the part of members in the similarity",
        ),
        ({"fixed_weight": 0.3}, "--fixed-weight belongs to --schedule fixed"),
        ({"pair_warmup": 0.5}, "--pair-warmup belongs to --pair-weighting moments"),
        ({"head": "linear", "hidden_dim": 64}, "--hidden-dim belongs to --head mlp"),
        ({"features": "b", "head": "linear", "dropout": 0.5}, "--dropout belongs to --head mlp"),
    ],
)
def test_what_changes_nothing_is_refused_where_it_is_said(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve([options])
    assert str(caught.value).startswith(words)
    resolve([options, {"epochs": 3}])  # a file, perhaps of another run
    resolve([{name: OPTIONS[name].default if name in words.replace("-", "_") else options[name] for name in options}])


@pytest.mark.parametrize(
    "options",
    [
        {"use_pretrained": True, "tower_lr": 1e-4, "unfreeze": 1},
        {"use_pretrained": True, "tower_lr": 1e-4, "lora": 4, "freeze": "image"},
        {"use_pretrained": True, "tower_lr": 1e-4, "freeze": "none"},
        {"use_pretrained": True, "flip": 0.0, "augment": True},
        {"use_pretrained": True, "decode": "fast"},
        {"use_pretrained": True, "feature_precision": "bf16", "freeze": "text"},
        {"flip": 0.0},
        {"schedule": "fixed", "fixed_weight": 0.3},
        {"pair_weighting": "moments", "pair_warmup": 0.5},
        {"hidden_dim": 64, "dropout": 0.5},
    ],
)
def test_the_same_options_pass_where_they_change_something(options: dict[str, object]) -> None:
    resolve([options])


def test_adversarial_embeddings_are_of_mixed_features_too() -> None:
    assert resolve([{"features": "b", "loss": "adversarial", "feature_mixup": 1.0}]).feature_mixup == 1.0


def test_every_rule_names_options_and_can_be_asked_of_any_config() -> None:
    configs = [TrainConfig(), TrainConfig(features="a"), TrainConfig(use_pretrained=True)]
    configs += [fill(config, 600) for config in configs]
    for rule in RULES:
        assert set(rule.options.split()) <= set(OPTIONS)
        assert all(isinstance(rule.broken(config), bool) and rule.reason.format(c=config) for config in configs)
    for config in configs:
        check_rules(config)
        assert set(idle_options(config)) <= set(RECIPE)
