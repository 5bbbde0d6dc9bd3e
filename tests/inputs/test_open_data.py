"""Which data the options name, and what a run writes down of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from varalign.data.errors import DataError
from varalign.inputs.open_data import open_data
from varalign.options.config import TrainConfig


@pytest.fixture
def apart(tmp_path: Path) -> Path:
    """Captions in one folder, their images in another."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for number in range(12):
        (tmp_path / "photos" / "deep" / f"{number}.jpg").write_bytes(b"%d" % number)
    rows = "".join(f"{number};A dog {number}\n" for number in range(12))
    (tmp_path / "texts" / "all.csv").write_text("Foto;Produkttext\n" + rows)
    return tmp_path


def test_captions_and_images_say_where_things_are(apart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(apart)
    columns = {"image_column": "Foto", "caption_column": "Produkttext"}
    said: list[str] = []
    config, data = open_data(TrainConfig(captions="texts/all.csv", images="photos", **columns), said.append)
    assert said[0] == "12 pairs of 12 images, from all.csv (semicolon-separated, columns 'Foto', 'Produkttext')"
    assert said[1].startswith("all.csv: 12 image names lack the end of their files' names: '0' is 'deep/0.jpg'")
    assert (config.data, config.captions) == (str(apart / "texts"), str(apart / "texts" / "all.csv"))
    assert config.images == str(apart / "photos")
    monkeypatch.chdir("/")
    again, same = open_data(config, said.append)
    assert again == config and same.fingerprint == data.fingerprint
    inside = TrainConfig(data=str(apart), captions="texts/all.csv", images="photos", **columns)
    assert open_data(inside, said.append)[1].fingerprint == data.fingerprint
    with pytest.raises(DataError, match="--images pictures: there is no such folder"):
        open_data(TrainConfig(data=str(apart), captions="texts/all.csv", images="pictures", **columns), said.append)


def test_the_hub_is_said_before_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install '.[hf]'")
    said: list[str] = []

    def refuse(name: str, config: str | None) -> None:
        assert len(said) == 1 and said[0].startswith("hf:a/b: downloaded from http")
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr("huggingface_hub.get_session", lambda: None)  # gives no answer
    with pytest.raises(DataError, match="hf:a/b: the hub does not give this data set"):
        open_data(TrainConfig(data="hf:a/b"), said.append)
