"""A real browser, without a window: opens a page from its file and says what went wrong in it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-default-apps",
    "--autoplay-policy=no-user-gesture-required", "--window-size=1280,1000",
)  # fmt: skip


def find_browser() -> tuple[str, str]:
    """Return Chromium and its driver; the test is skipped, or in CI fails, where there is none."""
    found = shutil.which("chromium"), shutil.which("chromedriver")
    if found[0] is None or found[1] is None:
        line = "no Chromium: apt-get install chromium chromium-driver"
        pytest.fail(line) if os.environ.get("CI") else pytest.skip(line)
    return found[0], found[1]


class Browser:
    """One Chromium for all tests."""

    def __init__(self, folder: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        program, driver = find_browser()
        options = webdriver.ChromeOptions()
        options.binary_location = program
        for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
            options.add_argument(flag)
        options.add_experimental_option("prefs", {"download.default_directory": str(folder / "downloads")})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.downloads = folder / "downloads"
        self.driver = webdriver.Chrome(options=options, service=Service(driver))

    def open(self, path: Path) -> None:
        """Open a page; everything before it is forgotten."""
        for log in ("browser", "performance"):
            self.driver.get_log(log)
        self.driver.get(path.absolute().as_uri())

    def opens_clean(self, path: Path) -> None:
        """Open a page; fail where it writes to its console, asks for anything, or runs a name as a script."""
        self.open(path)
        assert self.errors() == []
        assert self.requests() == [path.absolute().as_uri()]
        assert self.run("return window.hacked") is None

    def is_for_everybody(self, path: Path) -> None:
        """Fail where axe-core finds something in light or dark, or where a phone would scroll sideways."""
        self.open(path)
        for theme in ("light", "dark"):
            self.run("document.documentElement.dataset.theme = arguments[0]", theme)
            assert self.accessibility() == []
        size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wide = self.run("return document.documentElement.scrollWidth")
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        assert wide <= 390

    def requests(self) -> list[str]:
        """Return what the page asked for since it was opened, but for itself and what is inside it."""
        messages = [json.loads(one["message"])["message"] for one in self.driver.get_log("performance")]
        wanted = [
            str(one["params"]["request"]["url"])
            for one in messages
            if one["method"] == "Network.requestWillBeSent"
        ]
        assert wanted, "the log of requests is empty"
        return [url for url in wanted if not url.startswith(("data:", "blob:"))]

    def errors(self) -> list[str]:
        """Return what the page wrote to its console."""
        return [str(one["message"]) for one in self.driver.get_log("browser")]

    def run(self, script: str, *arguments: object) -> Any:
        """Run JavaScript in the page and return what it returns."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str, seconds: float = 10.0) -> Any:
        """Wait until an expression is true."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, seconds).until(lambda _: self.run(f"return {script}"), script)

    def accessibility(self) -> list[str]:
        """Return what axe-core finds wrong with the page."""
        from importlib.resources import files

        source = files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
        self.run(source)
        found = self.driver.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
        return [
            f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:160]} ({len(one['nodes'])} places)"
            for one in found["violations"]
        ]

    def close(self) -> None:
        """End the browser."""
        self.driver.quit()
