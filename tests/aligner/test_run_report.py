"""The report page of a run: what it shows after each command, from the run's own data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import varalign
from varalign import TrainConfig
from varalign.aligner.showcase import principal, showcase
from varalign.cli.program import main


@pytest.fixture(scope="module")
def trained(features_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "run"
    varalign.train(
        TrainConfig(features=str(features_file), out=str(out), epochs=1, batch_size=16, device="cpu"),
        say=lambda _: None,
    )
    return out


def test_what_is_shown_of_a_split(trained: Path) -> None:
    model = varalign.load(trained, device="cpu")
    shown = showcase(model.parts, "test", model.embedded("test"), None)
    assert json.loads(json.dumps(shown)) == shown
    result = model.evaluate("test", hub_correction="off")
    for direction in ("i2t", "t2i"):
        assert sum(shown["ranks"][direction]) == pytest.approx(1.0, abs=1e-5)
        assert shown["ranks"][direction][0] == pytest.approx(result[f"{direction}_recall@1"], abs=1e-5)
        for entry in shown["examples"][direction]:
            assert len(entry["found"]) == 5
            scores = [score for _, score, _ in entry["found"]]
            assert scores == sorted(scores, reverse=True)
            places = [place for place, (_, _, right) in enumerate(entry["found"], 1) if right]
            assert entry["rank"] > 5 if not places else entry["rank"] >= places[0]
        ranks = {
            kind: [e["rank"] for e in shown["examples"][direction] if e["kind"] == kind] for kind in ("best", "worst")
        }
        assert max(ranks["best"]) <= min(ranks["worst"])
    similar = shown["similarities"]
    middle = (np.array(similar["edges"][1:]) + np.array(similar["edges"][:-1])) / 2
    assert float(middle @ similar["pairs"]) == pytest.approx(result["cosine_similarity"], abs=0.03)
    assert float(middle @ similar["non_pairs"]) == pytest.approx(result["cosine_similarity_non_pairs"], abs=0.03)
    points = shown["map"]
    assert len(points["layouts"]["PCA"]) == 2 * len(points["texts"]) == 2 * result["images"]
    assert shown["collapsed"] == []


def test_every_command_writes_the_page_again(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, kept = trained / "report.html", trained / "report.json"
    assert "Map of the shared space" in page.read_text() and "finds the right caption first" in page.read_text()
    assert main(["visualize", str(trained), "--device", "cpu", "--perplexities", "3", "500"]) == 0
    assert "perplexity 500: left out" in capsys.readouterr().err
    layouts = json.loads(kept.read_text())["showcase"]["map"]["layouts"]
    assert list(layouts) == ["PCA", "t-SNE, perplexity 3"] and len(layouts["PCA"]) == len(
        layouts["t-SNE, perplexity 3"]
    )
    assert main(["diagnose", str(trained), "--device", "cpu", "--split", "all"]) == 0
    found = json.loads(kept.read_text())
    assert "Wrong pairs" in page.read_text() and found["diagnosis"]["page"] == "diagnosis/diagnosis.html"
    assert len(found["showcase"]["map"]["wrong"]) == len(found["showcase"]["map"]["texts"])
    assert main(["eval", str(trained), "--device", "cpu"]) == 0
    after = json.loads(kept.read_text())
    assert after["showcase"]["map"]["layouts"] == layouts and after["diagnosis"] == found["diagnosis"]
    before = page.read_bytes()
    assert main(["eval", str(trained), "--split", "dev"]) == 0
    assert page.read_bytes() == before


def test_principal_axes() -> None:
    points = torch.tensor([[3.0, 0.0, 0.0], [-3.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, -1.0, 0.0]])
    assert np.abs(principal(points)).tolist() == [[1.0, 0.0], [1.0, 0.0], [0.0, 0.3333], [0.0, 0.3333]]
    assert principal(torch.ones(2, 1)) == [[0.0, 0.0], [0.0, 0.0]]
