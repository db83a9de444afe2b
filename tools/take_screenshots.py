"""Pictures of the leaderboard page for the README: on a wide screen, on a phone, in the dark.

    python tools/take_screenshots.py results/leaderboard.html docs/images

Needs Chromium, its driver and selenium (Debian: chromium, chromium-driver; the extra `dev`).
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

# By name: where the picture starts (a selector; "" is the top), its width and height in CSS pixels, scale, dark or not.
SHOTS: dict[str, tuple[str, int, int, float, bool]] = {
    "leaderboard": ("", 1280, 900, 1.25, False),
    "leaderboard-dark": ("#compare", 1280, 620, 1.25, True),
    "leaderboard-phone": ("", 390, 844, 2.0, False),
    "leaderboard-phone-dark": ("#gallery figure:has(.path)", 390, 844, 2.0, True),
}


def main(page: Path, out: Path) -> None:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars"):
        options.add_argument(argument)
    browser: Any = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        for name, (start, width, height, scale, dark) in SHOTS.items():
            features = [
                {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
                {"name": "prefers-reduced-motion", "value": "reduce"},  # or it would still be scrolling
            ]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            browser.get(page.resolve().as_uri())
            if start:
                browser.execute_script("document.querySelector(arguments[0]).scrollIntoView()", start)
                time.sleep(1)  # pictures below the fold are decoded when they come into view
            (out / f"{name}.png").write_bytes(browser.get_screenshot_as_png())
    finally:
        browser.quit()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
