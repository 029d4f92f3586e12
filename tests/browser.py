"""Debian's Chromium, without a window, for the tests of pages."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webelement import WebElement

FLAGS = (
    "headless=new",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
)
SCRIPTS_OFF = {"profile.managed_default_content_settings.javascript": 2}


class Browser:
    """One window. Pages are opened from the disk; everything that the console says is kept."""

    def __init__(self, profile: Path, *, scripts: bool = True) -> None:
        programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
        if None in programs:
            say = pytest.fail if os.environ.get("CI") else pytest.skip
            say("needs Debian's chromium and chromium-driver; `make browser` installs them")
        options = Options()
        options.binary_location = str(programs[0])
        for flag in (*FLAGS, f"user-data-dir={profile}"):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        if not scripts:
            options.add_experimental_option("prefs", SCRIPTS_OFF)
        self.driver = webdriver.Chrome(options=options, service=Service(str(programs[1])))

    def open(self, page: Path, width: int = 1400, height: int = 1000, *, dark: bool = False) -> None:
        """Loads a page in a window of this size, with the system's preference for dark or light."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get(page.as_uri())

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements("css selector", css)

    def one(self, css: str) -> WebElement:
        return self.driver.find_element("css selector", css)

    def run(self, script: str, *arguments: object) -> object:
        return self.driver.execute_script(script, *arguments)

    def until(self, condition: Callable[[], object]) -> None:
        """Waits for what comes in its own time, a minute at most."""
        for _ in range(600):
            if condition():
                return
            time.sleep(0.1)
        pytest.fail("the page never came to it")

    def console(self) -> list[str]:
        """What the console has said since it was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def close(self) -> None:
        self.driver.quit()
