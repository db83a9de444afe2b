"""Chromium without a window, for pictures of a page and for its tests. Needs Chromium, its driver and selenium."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

PHONE = 500  # CSS pixels: what is narrower is emulated as a phone


def start(*arguments: str, capabilities: dict[str, Any] | None = None) -> Any:
    """A browser; arguments are Chromium's, such as "--hide-scrollbars"."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", *arguments):
        options.add_argument(argument)
    for name, value in (capabilities or {}).items():
        options.set_capability(name, value)
    return webdriver.Chrome(options, Service(shutil.which("chromedriver")))


def show(browser: Any, page: Path, width: int, height: int, *, scale: float = 1, dark: bool = False) -> None:
    """Open a page on a screen of so many CSS pixels, by day or in the dark, without animations."""
    screen = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < PHONE}
    features = [
        {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
        {"name": "prefers-reduced-motion", "value": "reduce"},  # or it would still be scrolling
    ]
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.resolve().as_uri())
