"""Configuration files, options of older versions, and which source takes precedence."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError
from varalign.options.layers import known_options, read_config_file, replace_removed, resolve


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
        ("a.json", '{"epochs": 2, "epochs": 3}', "an object has the key 'epochs' twice"),
        ("a.json", "[" * 100_000, "not valid JSON"),
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
    assert replace_removed({"decoded_cache": "device"}) == {"decoded_cache": "disk"}
    with pytest.raises(ConfigError, match="--decoded-cache 'device' is not known: it takes off, disk$"):
        resolve([{"decoded_cache": "device"}])


def test_a_missing_config_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read"):
        read_config_file(tmp_path / "nowhere.toml")


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.toml")
    with pytest.raises(ConfigError, match=r"a\.toml: not a file but a named pipe"):
        read_config_file(tmp_path / "a.toml")


def test_unknown_options_are_refused_with_their_source() -> None:
    with pytest.raises(ConfigError, match=r"x\.toml: unknown option 'zzz'$"):
        known_options({"zzz": 1}, "x.toml")
