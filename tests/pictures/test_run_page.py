"""The report page: self-contained, escaped, and written from whatever a run folder holds."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image
from varalign.pictures.run_page import write_report
from varalign.runs.folder import RunFolder
from varalign.runs.run_errors import RunError


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def read(file) -> Page:
    page = Page()
    page.feed(file.read_text(encoding="utf-8"))
    return page


def test_a_whole_run_is_one_page(tmp_path):
    run = tmp_path / "a<b>&c"
    (run / "pictures").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(run / "pictures" / "tsne.png")
    Image.new("RGB", (8, 8), "blue").save(run / "pictures" / "tsne_perplexity_5.png")
    model = {"embedding_dim": 4, "head": "linear", "frozen": {}, "image_feature_dim": 3, "text_feature_dim": 2}
    model |= {"image_encoder": None, "text_encoder": None}
    config = {"options": {}, "model": model, "data": {"fingerprint": "0"}, "note": "</pre><script>alert(1)</script>"}
    RunFolder(run).write_config(config)
    line = {
        "kind": "step",
        "step": 0,
        "epoch": 1,
        "loss_i2t": 1.0,
        "loss_t2i": 1.0,
        "w_i2t": 0.5,
        "w_t2i": 0.5,
        "logit_scale": 14.3,
    }
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    rows = [
        {"model": "<b>ours</b>", "epochs": 2, "loss": 0.5, "i2t_recall@1": 0.5, "t2i_recall@1": 0.25}
        | {"images": 1000, "texts": 5000, "intervals": {"i2t_recall@1": [0.47, 0.53], "t2i_recall@1": [0.2, 0.3]}},
        {"model": "chance", "i2t_recall@1": 0.001, "t2i_recall@1": float("nan")},
    ]
    photo = tmp_path / "dog & cat.jpg"
    Image.new("RGB", (640, 480), "green").save(photo)
    (tmp_path / "broken.jpg").write_text("text")
    hostile = 'a "cat" </script><img src=x onerror=alert(2)>'
    item = {"kind": "best", "query": 0, "rank": 1234, "found": [[0, 0.71, True], [1, 0.5, False]]}
    shown = {
        "split": "test",
        "examples": {"i2t": [item], "t2i": [{**item, "kind": "worst", "rank": 1}]},
        "hubs": {"i2t": [[0, 17]], "t2i": []},
        "queries": {"i2t": 1000, "t2i": 5000},
        "rank_bounds": [1, 5],
        "ranks": {"i2t": [0.5, 0.25, 0.25], "t2i": [0.25, 0.25, 0.5]},
        "similarities": {"edges": [0.0, 0.5, 1.0], "pairs": [0.0, 1.0], "non_pairs": [1.0, 0.0]},
        "collapsed": [],
        "images": [["photo", str(photo)], ["broken.jpg", str(tmp_path / "broken.jpg")], ["gone.jpg", "gone.jpg"]],
        "texts": ["<i>two dogs</i>", hostile, "رجل"],
        "map": {
            "images": [0, 2],
            "texts": [1, 2],
            "rank": {"i2t": [1, 2], "t2i": [3, 4]},
            "layouts": {"PCA": [[0.0, 0.0], [1.0, 0.5], [0.0, 1.0], [-1.0, 0.0]]},
        },
    }
    report = {"rows": rows, "showcase": shown, "notes": ["1,000 <pairs>"]}
    report |= {"diagnosis": {"lines": ["4 % wrong"], "page": "diagnosis/dia gnosis.html"}}
    file = write_report(RunFolder(run), report)
    assert file == run / "report.html"
    page = read(file)
    assert page.tags.count("script") == 2 and not {"i", "b"} & set(page.tags)
    assert all(source.startswith("data:image/") or source == "diagnosis/dia%20gnosis.html" for source in page.sources)
    assert "http" not in file.read_text()
    for text in (
        "<i>two dogs</i>",
        hostile,
        "a<b>&c",
        "alert(1)",
        "broken.jpg (cannot be read)",
        "place 1,234",
        "first for 17 of 1,000 queries",
        "<b>ours</b>",
        "47.0–53.0",
        "1,000 <pairs>",
        "4 % wrong",
        "2–5",
        "above 5",
        "finds the right caption first for 50 of 100 images (95 %: 47 to 53; chance 0.1) among 5,000 texts",
    ):
        assert text in page.text, text
    assert "50.0" in page.text and "25.0" in page.text and not re.search(r"\bnan\b", page.text)
    assert "among 1,000 images, 5,000 texts. Ties count against the model." in page.text
    first = re.search(r'alt="training"', file.read_text())
    assert first is not None and (run / "pictures" / "training.png").is_file()
    jpeg = next(source for source in page.sources if "jpeg" in source).partition(",")[2]
    assert base64.b64decode(jpeg).startswith(b"\xff\xd8")
    data = json.loads(re.search(r'id="map-data">(.*?)</script>', file.read_text(), re.DOTALL)[1])
    assert data["texts"] == [hostile, "رجل"] and data["names"] == ["photo", "gone.jpg"]
    assert data["thumbnails"][0].startswith("data:image/jpeg;base64,") and data["thumbnails"][1] is None

    (run / "metrics.jsonl").write_text(json.dumps({"kind": "eval", "step": 0, "epoch": 0, "split": "dev"}) + "\n")
    (run / "pictures" / "training.png").unlink()
    without_steps = read(write_report(RunFolder(run), report))
    assert "Curves" in page.text and "Curves" not in without_steps.text and not (run / "pictures/training.png").exists()


def test_a_damaged_run_folder_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"config.json: cannot be read as JSON"):
        write_report(RunFolder(tmp_path), {"rows": [{"model": "chance", "i2t_recall@1": 0.001}]})
