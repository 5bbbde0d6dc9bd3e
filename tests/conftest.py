"""What every test shares: where the real data lie, and which tests need what this machine lacks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import bert_folder, clip_config, clip_folder, nothing_local  # noqa: F401  (fixtures)
from PIL import Image
from varalign.data.features import FeatureSet, save_features

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout (or named by VARALIGN_SHARED); skips where it is absent."""
    named = os.environ.get("VARALIGN_SHARED")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data: no folder {folder.name!r} beside the checkout and VARALIGN_SHARED is not set")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where torch sees no CUDA device."""
    # Not `item.keywords`, which hold the names of the folders too.
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (40, 60, 230),
    "white": (240, 240, 240),
    "black": (10, 10, 10),
}
PLACES = {"left": (0, 1), "right": (2, 1), "top": (1, 0), "bottom": (1, 2)}


@pytest.fixture(scope="session")
def features_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 images (120/20/20) of 12 dimensions, 2 texts each of 10: both are noisy views of 6 common factors."""
    random = np.random.default_rng(5)
    images, texts, factors = 160, 320, 6
    common = random.normal(size=(images, factors))
    owner = np.repeat(np.arange(images), 2)
    to_image, to_text = random.normal(size=(factors, 12)), random.normal(size=(factors, 10))
    features = FeatureSet(
        (common @ to_image + 0.1 * random.normal(size=(images, 12))).astype(np.float32),
        (common[owner] @ to_text + 0.1 * random.normal(size=(texts, 10))).astype(np.float32),
        owner,
        np.repeat([0, 1, 2], [120, 20, 20]).astype(np.int8),
        np.arange(images),
    )
    path = tmp_path_factory.mktemp("features") / "features.safetensors"
    save_features(path, features, dtype="float32")
    return path


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 JPEGs of a square on a ground, each with two captions, and a 60/10/10 split in official lists."""
    folder = tmp_path_factory.mktemp("squares")
    (folder / "Images").mkdir()
    random = np.random.default_rng(3)
    kinds = [
        (ground, square, place) for ground in COLOURS for square in COLOURS for place in PLACES if ground != square
    ]
    lines = ["image,caption"]
    names = []
    for number, kind in enumerate(random.permutation(len(kinds))[:80]):
        ground, square, place = kinds[kind]
        picture = Image.new("RGB", (48, 48), COLOURS[ground])
        x, y = PLACES[place]
        picture.paste(COLOURS[square], (x * 14, y * 14, x * 14 + 18, y * 14 + 18))
        names.append(f"{number:03}.jpg")
        picture.save(folder / "Images" / names[-1], quality=92)
        lines.append(f'{names[-1]},"A {square} square, {place}, on {ground} ."')
        lines.append(f"{names[-1]},on {ground} ground a {square} one at the {place}")
    (folder / "captions.txt").write_text("\n".join(lines) + "\n")
    for split, part in (("train", names[:60]), ("dev", names[60:70]), ("test", names[70:])):
        (folder / f"Flickr_8k.{split}Images.txt").write_text("\n".join(part) + "\n")
    return folder


@pytest.fixture
def browser(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Chromium without a window, as wide in pixels as the test's parameter says; skipped where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
    driver = shutil.which("chromedriver")
    if driver is None:
        pytest.skip("no chromedriver: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    width = request.param
    sizes = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    found.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)
    yield found
    found.quit()
