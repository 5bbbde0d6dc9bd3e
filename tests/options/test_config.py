"""The options: ranges, files, precedence, and the words of every refusal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from varalign.losses import LOSSES
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError, checkpoint_interval
from varalign.options.fields import OPTIONS, RECIPE
from varalign.options.layers import known_options, read_config_file, resolve
from varalign.options.recipe import fill
from varalign.options.rules import RULES, check_rules, idle_options
from varalign.runs.folder import RunFolder
from varalign.schedules import SCHEDULES


def test_defaults_are_valid_and_pick_the_custom_encoders() -> None:
    config = TrainConfig().validate()
    assert (config.image_spec, config.text_spec) == ("resnet18", "lstm")
    assert all(getattr(config, name) is None for name in RECIPE)
    assert (config.frozen_towers, config.resolved_start) == (False, "random")


def test_use_pretrained_picks_clip_and_bert_and_an_explicit_spec_goes_over_it() -> None:
    config = resolve([{"use_pretrained": True, "text_encoder": "lstm"}])
    assert (config.image_spec, config.text_spec) == ("clip:ViT-B-32@openai", "lstm")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": -3}, "--epochs is -3, but must be at least 1"),
        ({"epochs": "many"}, "--epochs takes a whole number, not 'many'"),
        ({"lr": float("nan")}, "--lr takes a finite number"),
        ({"batch_size": True}, "--batch-size takes a whole number, not True"),
        ({"schedule": "varience"}, "did you mean 'variance'?"),
        ({"dropout": 1.5}, "--dropout is 1.5, but must be at most 0.95"),
        ({"data": "a", "features": "b"}, "--data and --features exclude each other"),
        (
            {"features": "b", "use_pretrained": True},
            "--use-pretrained names encoders, and a features file",
        ),
        ({"schedule": "replay"}, "--schedule replay needs the run whose weights it replays"),
        ({"seed": None}, "--seed needs a value"),
        ({"start": "closed-form"}, "an encoder that trains from random weights has none yet (resnet18, lstm)"),
        ({"features": "b", "start": "random", "ridge": 1.0}, "--ridge belongs to --start closed-form"),
        ({"pair_weighting": "closed-form"}, "scores features of frozen encoders: freeze both, or pass moments"),
        ({"features": "b", "decoded_cache": True}, "--decoded-cache needs images and captions"),
        (
            {"features": "b", "loss": "adversarial-inputs", "feature_mixup": 1.0},
            "--feature-mixup trains on mixed pairs, and --loss adversarial-inputs changes the inputs",
        ),
        ({"input_noise": 1.0}, "--input-noise needs features whose standard deviations do not change"),
    ],
)
def test_refusals_name_the_option(options: dict[str, object], words: str) -> None:
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
        ({"color_jitter": 0.4, "use_pretrained": True}, "--color-jitter is part of the augmentation"),
        ({"features": "b", "color_jitter": 0.4}, "--color-jitter needs images and captions"),
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


def test_a_later_layer_goes_over_an_earlier_one() -> None:
    assert resolve([{"epochs": 3, "seed": 5}, {"epochs": 4}]) == TrainConfig(epochs=4, seed=5)


def test_config_files_in_toml_json_and_a_runs_own(tmp_path: Path) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text("epochs = 2\nbatch-size = 16\nlr = 1\n")
    assert read_config_file(toml) == {"epochs": 2, "batch_size": 16, "lr": 1.0}
    own = tmp_path / "config.json"
    own.write_text(json.dumps({"kind": "varalign-run", "options": TrainConfig(epochs=7).as_dict()}))
    assert resolve([read_config_file(own)]) == TrainConfig(epochs=7)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.toml", "epochs = = 2", "not valid TOML"),
        ("a.json", "[1, 2]", "wanted options by name"),
        ("a.json", "{", "not valid JSON"),
        ("a.toml", "epoch = 2", "unknown option 'epoch'; did you mean 'epochs'?"),
    ],
)
def test_bad_config_files(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_config_file(tmp_path / name)
    assert words in str(caught.value) and name in str(caught.value)


def test_the_decoded_cache_was_a_switch_and_still_answers_to_one(tmp_path: Path) -> None:
    own = tmp_path / "config.json"
    for old, new in ((True, "disk"), (False, "off")):
        own.write_text(json.dumps({"kind": "varalign-run", "options": {"decoded_cache": old}}))
        assert resolve([read_config_file(own)]).decoded_cache == new == TrainConfig(decoded_cache=old).decoded_cache  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="--decoded-cache 'gpu' is not known: it takes off, disk$"):
        resolve([{"decoded_cache": "gpu"}])


def test_a_removed_value_of_an_old_file_is_replaced_with_a_remark(tmp_path: Path) -> None:
    own = tmp_path / "config.json"
    own.write_text(json.dumps({"kind": "varalign-run", "options": {"decoded_cache": "device", "seed": 3}}))
    remarks: list[str] = []
    assert read_config_file(own, remarks.append) == {"decoded_cache": "disk", "seed": 3}
    assert remarks == ["--decoded-cache device was removed; disk is used instead"]
    assert RunFolder(tmp_path).options() == {"decoded_cache": "disk", "seed": 3}
    with pytest.raises(ConfigError, match="--decoded-cache 'device' is not known: it takes off, disk$"):
        resolve([{"decoded_cache": "device"}])


def test_every_rule_names_options_and_can_be_asked_of_any_config() -> None:
    configs = [TrainConfig(), TrainConfig(features="a"), TrainConfig(use_pretrained=True)]
    configs += [fill(config, 600) for config in configs]
    for rule in RULES:
        assert set(rule.options.split()) <= set(OPTIONS)
        assert all(isinstance(rule.broken(config), bool) and rule.reason.format(c=config) for config in configs)
    for config in configs:
        check_rules(config)
        assert set(idle_options(config)) <= set(RECIPE)


def test_a_missing_config_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read"):
        read_config_file(tmp_path / "nowhere.toml")


def test_unknown_options_are_refused_with_their_source() -> None:
    with pytest.raises(ConfigError, match=r"x\.toml: unknown option 'zzz'$"):
        known_options({"zzz": 1}, "x.toml")


def test_schedule_names_are_those_of_the_schedules() -> None:
    assert set(OPTIONS["schedule"].choices) == set(SCHEDULES)
    assert set(OPTIONS["loss"].choices) == set(LOSSES)


def test_every_option_has_a_help_and_a_group() -> None:
    assert all(option.help and option.group for option in OPTIONS.values())


def test_checkpoints_come_every_so_many_steps_or_minutes() -> None:
    assert [checkpoint_interval(text) for text in (0, 200, "200", "10m", "0.5M")] == [
        (0, 0.0),
        (200, 0.0),
        (200, 0.0),
        (0, 600.0),
        (0, 30.0),
    ]
    for wrong in ("10s", "-1", "m", "nanm", "infm", "1e3", ""):
        with pytest.raises(ConfigError, match="--checkpoint-every"):
            TrainConfig(checkpoint_every=wrong).validate()
