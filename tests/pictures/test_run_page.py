"""The report page: self-contained, escaped, and written from whatever a run folder holds."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image
from varalign.pictures.run_page import Example, Found, write_report
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
    examples = [
        Example("<i>two dogs</i>", [Found(photo, 0.71, True), Found(tmp_path / "broken.jpg", 0.5, False)], rank=1),
        Example(photo, [Found('a "cat" <img src=x onerror=alert(2)>', 0.4, False)], rank=1234),
    ]
    file = write_report(RunFolder(run), rows, examples=examples)
    assert file == run / "report.html"
    page = read(file)
    assert "script" not in page.tags and not {"i", "b"} & set(page.tags) and page.tags.count("img") == 4
    assert all(source.startswith("data:image/") for source in page.sources) and "http" not in file.read_text()
    for text in (
        "<i>two dogs</i>",
        "a<b>&c",
        "alert(1)",
        "broken.jpg (cannot be read)",
        "place 1,234",
        "<b>ours</b>",
        "47.0–53.0",
    ):
        assert text in page.text
    assert "50.0" in page.text and "25.0" in page.text and "5,000" in page.text and "nan" not in page.text
    assert "among 1,000 images, 5,000 texts. Ties count against the model." in page.text
    first = re.search(r'alt="training"', file.read_text())
    assert first is not None and (run / "pictures" / "training.png").is_file()
    jpeg = next(source for source in page.sources if "jpeg" in source).partition(",")[2]
    assert base64.b64decode(jpeg).startswith(b"\xff\xd8")


def test_a_damaged_run_folder_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"config.json: cannot be read as JSON"):
        write_report(RunFolder(tmp_path), [{"model": "chance", "i2t_recall@1": 0.001}])
