"""Chromium without a window, driven through chromedriver by the WebDriver protocol."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from urllib.error import HTTPError

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
_START_S = 30.0


class Browser:
    """A browser with one page.

    Args:
        width: Width of the page in pixels.
        height: Height of the page in pixels.
        scheme: ``light`` or ``dark``.
    """

    def __init__(self, width=1280, height=900, scheme="light"):
        self._driver = subprocess.Popen(
            [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            self._url = f"http://127.0.0.1:{self._port()}"
            options = {
                "binary": BROWSER,
                "args": [
                    "--headless=new",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--disable-dev-shm-usage",
                ],
                "mobileEmulation": {
                    "deviceMetrics": {"width": width, "height": height, "pixelRatio": 1}
                },
            }
            wanted = {
                "alwaysMatch": {
                    "goog:chromeOptions": options,
                    "goog:loggingPrefs": {"browser": "ALL"},
                }
            }
            made = self._ask("POST", "/session", {"capabilities": wanted})
            self._url += f"/session/{made['sessionId']}"
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            self.devtools("Emulation.setEmulatedMedia", {"features": features})
        except BaseException:
            self._end()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self._ask("DELETE", "", None)
        finally:
            self._end()

    def open(self, url):
        self._ask("POST", "/url", {"url": url})

    def run(self, script):
        """Run a function body in the page and return its result."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": []})

    def wait_for(self, condition, timeout_s=20.0):
        """Wait until an expression in the page is true; return its value."""
        deadline = time.monotonic() + timeout_s
        while not (found := self.run(f"return {condition}")):
            assert time.monotonic() < deadline, f"not so: {condition}"
            time.sleep(0.05)
        return found

    def click(self, selector):
        found = self._ask("POST", "/element", {"using": "css selector", "value": selector})
        self._ask("POST", f"/element/{next(iter(found.values()))}/click", {})

    def errors(self):
        """Return the page's console errors since the last call."""
        found = self._ask("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in found if entry["level"] == "SEVERE"]

    def screenshot(self, path, *, whole=False):
        found = self.devtools(
            "Page.captureScreenshot",
            {"captureBeyondViewport": whole, **(self._clip() if whole else {})},
        )
        path.write_bytes(base64.b64decode(found["data"]))

    def devtools(self, command, parameters):
        return self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _clip(self):
        size = self.devtools("Page.getLayoutMetrics", {})["cssContentSize"]
        return {
            "clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        }

    def _port(self):
        for line in self._driver.stdout:
            if "successfully on port " in line:
                return int(line.rpartition("on port ")[2].strip().rstrip("."))
        raise AssertionError("chromedriver did not start")

    def _ask(self, method, path, body):
        request = urllib.request.Request(
            self._url + path,
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=_START_S) as answer:
                return json.load(answer)["value"]
        except HTTPError as error:
            raise AssertionError(error.read().decode()[:2000]) from None

    def _end(self):
        self._driver.terminate()
        self._driver.wait(10)
        self._driver.stdout.close()
