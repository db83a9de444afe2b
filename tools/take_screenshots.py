"""Pictures of the leaderboard page for the README: on a wide screen, on a phone, in the dark.

    python -m tools.take_screenshots results/leaderboard.html docs/images

Needs Chromium, its driver and selenium (Debian: chromium, chromium-driver; the extra `dev`).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tools import browser

# By name: where the picture starts (a selector; "" is the top), its width and height in CSS pixels, scale, dark or not.
SHOTS: dict[str, tuple[str, int, int, float, bool]] = {
    "leaderboard": ("", 1280, 900, 1.25, False),
    "leaderboard-dark": ("#compare", 1280, 620, 1.25, True),
    "leaderboard-phone": ("", 390, 844, 2.0, False),
    "leaderboard-phone-dark": ("#gallery figure:has(.path)", 390, 844, 2.0, True),
}


def main(page: Path, out: Path) -> None:
    driver = browser.start("--hide-scrollbars")
    try:
        for name, (start, width, height, scale, dark) in SHOTS.items():
            browser.show(driver, page, width, height, scale=scale, dark=dark)
            if start:
                driver.execute_script("document.querySelector(arguments[0]).scrollIntoView()", start)
                time.sleep(1)  # pictures below the fold are decoded when they come into view
            (out / f"{name}.png").write_bytes(driver.get_screenshot_as_png())
    finally:
        driver.quit()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
