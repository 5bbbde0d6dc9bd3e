"""The search page in a real browser: by words and by an image, hostile text stays text, nothing from elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import varalign
from varalign.aligner.folder_search import open_search
from varalign.data.readers.reading import Reading

pytestmark = pytest.mark.long

HOSTILE = "<img src=x onerror=\"document.title='owned'\"> <b>bold</b> " + "unbreakable" * 20
_WIDE = """return [...document.querySelectorAll("body *")].filter(part => {
  const box = part.getBoundingClientRect();
  return box.width > 0 && box.right > innerWidth + 1;
}).map(part => part.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def address(searched_run: Path, image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    from varalign.aligner.serve.app import build_app
    from varalign.aligner.serve.server import listen, server_of

    place = tmp_path_factory.mktemp("page") / "pictures"
    shutil.copytree(image_folder / "Images", place)
    shutil.copy(image_folder / "Images" / "001.jpg", place / "<b>name<img src=x onerror=alert(1)>.jpg")
    shutil.copy(image_folder / "Images" / "002.jpg", os.path.join(os.fsencode(place), b"\xff.jpg"))
    lines = (image_folder / "captions.txt").read_text().splitlines()
    lines[1] = '000.jpg,"' + HOSTILE.replace('"', '""') + '"'
    lines[3] = "001.jpg,قطة حمراء على الأريكة"
    (place.parent / "captions.csv").write_text("\n".join(lines) + "\n")
    reading = Reading(captions=str(place.parent / "captions.csv"))
    search = open_search(varalign.load(searched_run, device="cpu"), place, reading, lambda line: None, own=True)
    listening, server = listen("127.0.0.1", 0), server_of(build_app(search, frozenset({"127.0.0.1"})))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join()


def results(browser: Any, told: str) -> list[Any]:
    """The cards, once the page says that this was searched for and every picture in view is loaded."""
    ready = """const pictures = [...document.querySelectorAll("#results img")];
    return document.getElementById("asked").textContent.startsWith(arguments[0]) && pictures.length > 0
      && pictures.every(one => one.naturalWidth > 0 || one.getBoundingClientRect().top > innerHeight)"""
    end = time.monotonic() + 60
    while not browser.execute_script(ready, told + ": "):
        assert time.monotonic() < end, browser.find_element("id", "asked").text
    assert browser.execute_script(_WIDE) == []
    return list(browser.find_elements("css selector", "#results li"))


@pytest.mark.parametrize("browser", [390, 1280], indirect=True)
def test_the_page_in_a_browser(browser: Any, address: str, image_folder: Path, tmp_path: Path) -> None:
    def shot(name: str) -> None:
        """For eyes: kept where VARALIGN_SHOTS names a folder."""
        if "VARALIGN_SHOTS" in os.environ:
            wide = browser.execute_script("return innerWidth")
            browser.save_screenshot(f"{os.environ['VARALIGN_SHOTS']}/{name}-{wide}.png")

    def press(card: Any, text: str) -> None:
        next(button for button in card.find_elements("css selector", "button") if button.text == text).click()

    browser.get(address)
    assert browser.execute_script(_WIDE) == []
    shot("start")
    browser.find_element("id", "text").send_keys("a red square\n")
    cards = results(browser, "a red square")
    shot("text")
    assert len(cards) == 48 and "82 images" in browser.title + browser.find_element("id", "title").text

    browser.find_element("id", "file").send_keys(str(image_folder / "Images" / "000.jpg"))
    cards = results(browser, "images like 000.jpg")
    shot("image")
    assert HOSTILE[:40] in cards[0].text and "1.000" in cards[0].text
    press(cards[0], "captions like this")
    cards = results(browser, "captions like 000.jpg")
    shot("captions")
    press(cards[0], "images for this")
    assert browser.find_element("id", "text").get_attribute("value")
    results(browser, browser.find_element("id", "text").get_attribute("value"))

    (tmp_path / "bad.png").write_bytes(b"no picture")
    browser.find_element("id", "file").send_keys(str(tmp_path / "bad.png"))
    end = time.monotonic() + 30
    while browser.find_element("id", "asked").get_attribute("class") != "wrong":
        assert time.monotonic() < end
    shot("error")
    assert "image: " in browser.find_element("id", "asked").text

    assert "owned" not in browser.title and not browser.find_elements("css selector", "body b")
    said = [line["message"] for line in browser.get_log("browser") if "422" not in line["message"]]
    assert said == []
    sent = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    asked = [line["params"]["request"]["url"] for line in sent if line["method"] == "Network.requestWillBeSent"]
    assert all(url.startswith((address, f"blob:{address}", "data:")) for url in asked), asked
