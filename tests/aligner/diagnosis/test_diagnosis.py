"""`varalign diagnose`: from features, from a folder, from a run; what it writes and what it refuses."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from varalign.aligner.diagnosis import gather as gathering
from varalign.aligner.diagnosis.diagnosis import average_precisions, diagnose
from varalign.aligner.diagnosis.gather import Settings
from varalign.aligner.diagnosis.write import COLUMNS
from varalign.cli import main
from varalign.data.errors import DataError
from varalign.data.features import FeatureSet, load_features, save_features
from varalign.runs.run_errors import RunError


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 images, 400 of them in training, three texts each: noisy views of common factors."""
    random = np.random.default_rng(0)
    common = random.normal(size=(500, 16))
    owner = np.repeat(np.arange(500), 3)
    features = FeatureSet(
        (common @ random.normal(size=(16, 30)) + 3 * random.normal(size=(500, 30))).astype(np.float32),
        (common[owner] @ random.normal(size=(16, 20)) + 3 * random.normal(size=(1500, 20))).astype(np.float32),
        owner,
        np.repeat([0, 1, 2], [400, 50, 50]).astype(np.int8),
        np.arange(500),
        [f"{row:03}.jpg" for row in range(500)],
    )
    path = tmp_path_factory.mktemp("many") / "features.safetensors"
    save_features(path, features, dtype="float32")
    return path


@pytest.mark.parametrize("noise,by", [("swap-images=0.4", "image"), ("swap-captions=0.4", "pair")])
def test_injected_noise_is_found_and_how_it_came(many: Path, tmp_path: Path, noise: str, by: str) -> None:
    found = diagnose(Settings(features=many, noise=noise, out=tmp_path), say=quiet)
    assert found.by == by and found.pairs == 1200 and found.images == 400 and found.method == "closed-form"
    assert found.wrong_share == pytest.approx(0.4, abs=0.1) and found.low <= 0.4 <= found.high
    assert found.average_precision["pair"] > 0.85
    with open(found.csv, newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 1200
    assert {row["caption_row"] for row in rows} == {str(row) for row in range(1200)}
    key = "image_score" if by == "image" else "score"
    scores = [float(row[key]) for row in rows]
    assert scores == sorted(scores)
    # The columns say again what the result says: the precision from the file, by its definition.
    wrong = np.array([row["injected"] == "1" for row in rows])
    assert wrong.sum() == 480
    precision = (np.cumsum(wrong) / np.arange(1, 1201))[wrong].mean()
    assert precision == pytest.approx(found.average_precision["pair"], abs=2e-3)
    page = found.page.read_text()
    assert page.count('class="example"') == 50 and "made wrong on purpose" in page and "<svg" in page


def test_clean_pairs_are_not_called_wrong_and_two_calls_agree(many: Path, tmp_path: Path) -> None:
    one = diagnose(Settings(features=many, out=tmp_path / "a", worst=3), say=quiet)
    two = diagnose(Settings(features=many, out=tmp_path / "b", worst=3), say=quiet)
    assert one.low == 0 and one.wrong_share < 0.05 and one.average_precision == {}
    assert one.csv.read_bytes() == two.csv.read_bytes() and one.page.read_bytes() == two.page.read_bytes()


def test_a_table_of_features_has_the_captions_beside_them(many: Path, tmp_path: Path) -> None:
    data = load_features(many)
    texts = [f"caption {row}" for row in range(len(data.text_features))]
    save_features(tmp_path / "worded.safetensors", replace(data, texts=texts), dtype="float32")
    found = diagnose(Settings(features=tmp_path / "worded.safetensors", out=tmp_path / "out"), say=quiet)
    with found.csv.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows and all(row["caption"] == f"caption {row['caption_row']}" for row in rows)


def test_average_precision_by_image_needs_whole_images() -> None:
    owner = np.array([0, 0, 1, 1])
    rank = np.array([-1.0, -2.0, 1.0, 2.0])
    assert average_precisions(np.array([True, True, False, False]), rank, owner) == {"pair": 1.0, "image": 1.0}
    # Rank -2 right, -1 wrong: the only wrong pair comes second.
    assert average_precisions(np.array([True, False, False, False]), rank, owner) == {"pair": 0.5}


def test_a_run_of_features_brings_its_noise_and_its_epochs(
    features_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = "--start random --epochs 20 --lr 0.01 --batch-size 32 --embedding-dim 16 --hidden-dim 64"
    options += " --noise swap-images=0.3"
    assert main(["train", "--features", str(features_file), "--out", str(out), *options.split()]) == 0
    capsys.readouterr()
    assert main(["diagnose", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "closed-form" and found["pairs"] == 240 and found["average_precision_pair"] > 0.6
    assert 120 < sum(found["kinds"].values()) <= 240  # draws of one of two captions may leave a few unseen
    with open(out / "diagnosis" / "pairs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(row["injected"] == "1" for row in rows) == 72
    seen = [row for row in rows if row["epochs_kind"]]
    assert len(seen) == sum(found["kinds"].values()) and all(0 <= float(row["epochs_mean"]) <= 1 for row in seen)
    with pytest.raises(DataError, match="leave out --data, --features, --noise"):
        diagnose(Settings(run=out, noise="swap-images=0.2"))


def test_a_run_from_scratch_is_judged_by_its_epochs_and_shows_its_pictures(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    line = f"train --data {image_folder} --out {out} --epochs 2 --batch-size 16 --image-size 32 --embedding-dim 8"
    assert main([*line.split(), "--noise", "swap-captions=0.2", "--device", "cpu"]) == 0
    found = diagnose(Settings(run=out, worst=4), say=quiet)
    assert "over the epochs, 0.0474 by chance" in found.abstains, "(1/16 + 1/31) / 2; two epochs teach it nothing"
    monkeypatch.setattr(gathering, "_chance", lambda *_: 0.02)
    found = diagnose(Settings(run=out, worst=4), say=quiet)
    assert found.method == "moments" and 0 < found.pairs <= 120 and found.average_precision
    page = found.page.read_text()
    assert page.count("data:image/jpeg") == 4 and "mean probability" in page
    with pytest.raises(DataError, match="saw no pair of this split"):
        diagnose(Settings(run=out, split="test"), say=quiet)


def test_features_with_their_folder_show_its_pictures_and_captions(image_folder: Path, tmp_path: Path) -> None:
    from varalign.data.datasets import load_dataset

    data, random = load_dataset(image_folder), np.random.default_rng(1)
    order = random.permutation(len(data.captions))  # the file's own order of captions
    order = order[np.argsort(data.caption_image_ids[order] * 1000 + order, kind="stable")]
    rows = random.permutation(80)
    place, common = np.argsort(rows), random.normal(size=(80, 6)).astype(np.float32)
    features = FeatureSet(
        common[rows],
        common[data.caption_image_ids[order]] + random.normal(size=(160, 6)).astype(np.float32) / 9,
        place[data.caption_image_ids[order]],
        data.split[rows],
        np.arange(80),
        [data.image_names[row] for row in rows.tolist()],
    )
    file = tmp_path / "features.safetensors"
    save_features(file, features)
    found = diagnose(Settings(features=file, data=image_folder, out=tmp_path / "out", worst=5, by="pair"), say=quiet)
    with open(found.csv, newline="") as opened:
        for row in csv.DictReader(opened):
            caption = data.captions[order[int(row["caption_row"])]]
            assert row["caption"] == caption and caption in [
                data.captions[i] for i in data.caption_rows([data.image_names.index(row["image"])])
            ]
    assert found.page.read_text().count("data:image/jpeg") == 5
    (tmp_path / "features.names.jsonl").write_text("".join(f'"x{row}.jpg"\n' for row in range(80)))
    with pytest.raises(DataError, match=r"80 of its images are not there: x0\.jpg"):
        diagnose(Settings(features=file, data=image_folder, out=tmp_path / "out"), say=quiet)


@pytest.mark.parametrize(
    "options,message",
    [
        ({}, "name what to diagnose"),
        ({"features": "F", "noise": "swap-images=2"}, "between 0 and 1"),
        ({"features": "F", "noise": "blur=0.2"}, "only swap-images and swap-captions"),
        ({"features": "F", "noise": "swaps=0.2"}, "swap-images, swap-captions"),
        ({"features": "F", "image_encoder": "resnet18"}, "leave out the encoders"),
        ({"features": "F", "worst": -1}, "--worst is -1"),
        ({"data": "D", "image_encoder": "resnet18", "text_encoder": "lstm"}, "random weights say nothing"),
    ],
)
def test_wrong_use_is_refused(
    many: Path, image_folder: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    given = {key: {"F": many, "D": image_folder}.get(str(value), value) for key, value in options.items()}
    with pytest.raises(DataError, match=message):
        diagnose(Settings(**given, out=tmp_path / "out"), say=quiet)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_and_a_folder_that_is_no_run(many: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="is a file; name a folder"):
        diagnose(Settings(features=many, out=tmp_path / "file"), say=quiet)
    (tmp_path / "file").unlink()
    (tmp_path / "captions.txt").write_text("image,caption\n")
    with pytest.raises(DataError, match=r"holds what this command did not write \(captions.txt\)"):
        diagnose(Settings(features=many, out=tmp_path), say=quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.txt"]
    with pytest.raises(RunError, match="no such run folder"):
        diagnose(Settings(run=tmp_path / "nowhere"), say=quiet)


def test_features_that_know_nothing_of_the_pairs_are_no_judge(
    many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, random = load_features(many), np.random.default_rng(3)
    file = tmp_path / "noise.safetensors"
    noise = random.normal(size=data.image_features.shape).astype(np.float32)
    for images in (noise, 1 + 1e-7 * noise):  # at chance; collapsed but for rounding
        save_features(file, replace(data, image_features=images), dtype="float32")
        options = ["--features", str(file), "--noise", "swap-images=0.4", "--out", str(tmp_path / "out"), "--json"]
        assert main(["diagnose", *options]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["wrong_share"] is found["low"] is found["high"] is None and found["abstains"]
        assert found["pairs"] == 1200 and "average_precision_pair" not in found
        with open(found["csv"], newline="") as opened:
            rows = list(csv.DictReader(opened))
        assert [row["caption_row"] for row in rows] == [str(row) for row in range(1200)]
        assert not any(row[name] for row in rows for name in ("score", "image_score", "probability_right"))
        assert sum(row["injected"] == "1" for row in rows) == 480, "what is known is there"
        page = Path(found["page"]).read_text()
        assert "not judged" in page and 'class="example"' not in page and "<img" not in page and "<svg" not in page


def test_a_run_at_chance_is_no_judge(many: Path, tmp_path: Path) -> None:
    data, random = load_features(many), np.random.default_rng(3)
    file, out = tmp_path / "noise.safetensors", tmp_path / "run"
    save_features(file, replace(data, text_features=random.normal(size=(1500, 20)).astype(np.float32)), dtype="float32")
    line = f"train --features {file} --out {out} --start random --epochs 2 --batch-size 32 --lr 1e-6 --device cpu"
    assert main(line.split()) == 0
    found = diagnose(Settings(run=out), say=quiet)
    assert found.wrong_share is None and found.kinds == {}
    assert "the model hardly tells pairs apart: the mean probability of a pair is 0.03" in found.abstains
    assert "0.0312 by chance" in found.abstains and "features hardly tell pairs" in found.abstains


def test_what_cannot_be_judged_is_said(features_file: Path, tmp_path: Path) -> None:
    data = load_features(features_file)
    constant = tmp_path / "constant.safetensors"
    save_features(constant, replace(data, image_features=np.ones_like(data.image_features)), dtype="float32")
    assert "every image has the same features" in diagnose(Settings(features=constant, out=tmp_path / "c")).abstains
    found = diagnose(Settings(features=features_file, dataset_size=5, out=tmp_path / "few"), say=quiet)
    assert found.abstains == "5 different images are too few to judge pairs by: at least 50 are needed"
    found = diagnose(Settings(features=features_file, out=tmp_path / "out", worst=0), say=quiet)
    assert found.low == 0 and found.high >= 3 / 120, "none wrong among 120 images excludes no 2 %"
    unsure = replace(found, low=0.1, high=0.9)
    assert any("hardly tell" in line for line in unsure.lines()) and not any("hardly" in line for line in found.lines())
