"""Draw README's picture of a report: its verdict, first examples and map, as a browser shows them.

    varalign train --dataset-size 1000 --image-size 48 --epochs 4 --batch-size 64 --out drawn
    varalign visualize drawn --perplexities 30
    python bench/report_picture.py drawn docs/report.png

It needs selenium, chromium and chromium-driver.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT, COLOURS, EXAMPLES = 1000, 480, 64, 2
SHOW = """
const layout = document.querySelector('#map select');
layout.selectedIndex = layout.options.length - 1;
layout.dispatchEvent(new Event('change'));
const tabs = [...document.querySelectorAll('.tabs')][1];
const shown = [document.querySelector('.verdict'), tabs.previousElementSibling,
               ...[...tabs.querySelectorAll('section')][0].children].slice(0, 2 + arguments[0]);
shown.push(document.getElementById('map').previousElementSibling, document.querySelector('canvas'));
document.body.replaceChildren(...shown);
window.dispatchEvent(new Event('resize'));
return Math.ceil(document.documentElement.scrollHeight);
"""


def main() -> None:
    """Take the picture and write it in few colours."""
    from selenium import webdriver

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    options = webdriver.ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--disable-gpu"):
        options.add_argument(word)
    browser = webdriver.Chrome(options=options)
    try:
        screen = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        browser.get((arguments.run / "report.html").resolve().as_uri())
        screen["height"] = browser.execute_script(SHOW, EXAMPLES)
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        taken = browser.get_screenshot_as_png()
    finally:
        browser.quit()
    Image.open(io.BytesIO(taken)).convert("RGB").quantize(COLOURS).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
