"""The report page in a real browser: nothing out of view, no error, nothing loaded, hostile text stays text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import varalign
from varalign import TrainConfig
from varalign.data.sample import write_sample

pytestmark = pytest.mark.long

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"> & <b>bold</b>"
_WIDE = """return [...document.querySelectorAll("body *")].filter(part => {
  const box = part.getBoundingClientRect();
  return box.width > 0 && box.right > innerWidth + 1 && !part.closest("pre");
}).map(part => part.outerHTML.slice(0, 80))"""

# Six pairs are far apart: the pointer moves over the whole map until one of them is met.
_HOVER = """const canvas = document.querySelector("canvas"), tip = document.querySelector(".tip");
const box = canvas.getBoundingClientRect();
for (let y = 5; y < box.height; y += 15) {
  for (let x = 5; x < box.width; x += 15) {
    canvas.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + x, clientY: box.top + y }));
    if (tip.textContent.includes("finds its image at place")) return tip.querySelector("img") !== null;
  }
}
return false;"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    write_sample(folder / "data", images=60, size=32)
    file = next((folder / "data").glob("captions*"))
    text = file.read_text()
    caption = text.splitlines()[1].partition(",")[2]
    file.write_text(text.replace(caption, '"' + HOSTILE.replace('"', '""') + '"'))
    options = {"epochs": 1, "batch_size": 16, "image_size": 32, "device": "cpu", "out": str(folder / "run")}
    varalign.train(TrainConfig(data=str(folder / "data"), **options), say=lambda _: None)  # type: ignore[arg-type]
    varalign.load(folder / "run", device="cpu").visualize([3])
    return folder / "run" / "report.html"


@pytest.mark.parametrize("browser", [390, 1280], indirect=True)
def test_the_page_in_a_browser(browser: Any, page: Path) -> None:
    browser.get(page.as_uri())
    assert browser.execute_script(_WIDE) == []
    assert browser.execute_script(_HOVER), "a pair is shown below the map"
    for label in browser.find_elements("css selector", ".tabs > label"):
        label.click()
        assert browser.execute_script(_WIDE) == []
    search = browser.find_element("css selector", "input[name=search]")
    search.send_keys("onerror")
    assert browser.title != "owned" and not browser.find_elements("css selector", "body b")
    assert [line["message"] for line in browser.get_log("browser")] == []
    sent = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    asked = [line["params"]["request"]["url"] for line in sent if line["method"] == "Network.requestWillBeSent"]
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}
