"""A headless Chromium for tests, driven over pipes by the DevTools protocol: it needs no package and no network."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
"""Path of the browser; None if it is not installed."""
FLAGS = (
    *("--headless=new", "--no-sandbox", "--no-first-run", "--disable-extensions", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars", "--mute-audio", "--disable-dev-shm-usage"),
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--remote-debugging-pipe"),
)
TIMEOUT_S = 120.0


class Browser:
    """One page of a headless Chromium: a context manager. `problems` collects errors of its console and requests to a network."""

    def __init__(self, profile: Path, width: int = 1280, height: int = 900, *, dark: bool = False) -> None:
        assert CHROMIUM is not None
        self._profile, self._size, self._dark = profile, (width, height), dark
        self._number = 0
        self._session = ""
        self._buffer = b""
        self.problems: list[str] = []

    def __enter__(self) -> Browser:
        (read_of_browser, self._write), (self._read, write_of_browser) = os.pipe(), os.pipe()
        flags = [*FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        # The browser reads from file descriptor 3 and writes to 4.
        script = f'exec "$0" "$@" 3<&{read_of_browser} 4>&{write_of_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, str(CHROMIUM), *flags],
            pass_fds=(read_of_browser, write_of_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_of_browser)
        os.close(write_of_browser)
        pages = [target for target in self.call("Target.getTargets")["targetInfos"] if target["type"] == "page"]
        self._session = self.call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(*self._size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if self._dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def resize(self, width: int, height: int) -> None:
        """Sets the size of the window in px; below 600 px it counts as a phone with a touch screen."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)

    def open(self, page: Path, ready: str = "globalThis.report !== undefined") -> None:
        """Opens a file and waits until the expression `ready` is true."""
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.wait_for(ready)

    def wait_for(self, expression: str) -> None:
        """Waits until the JavaScript expression is true. Raises: TimeoutError with the problems of the page."""
        end = time.monotonic() + TIMEOUT_S
        while not self.evaluate(f"Boolean({expression})"):
            if self.problems or time.monotonic() > end:
                raise TimeoutError(f"{expression} does not become true; problems: {self.problems}")
            time.sleep(0.05)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited. Raises: RuntimeError if it throws."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(json.dumps(result["exceptionDetails"])[:2000])
        return result["result"].get("value")

    def click(self, x: float, y: float) -> None:
        """A click with the left button at (x, y) px of the window."""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """A key, by its name in JavaScript."""
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def screenshot(self, path: Path | None = None, *, full: bool = False) -> bytes:
        """PNG of the window, or of the whole page; also written to `path`."""
        clip = {}
        if full:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"clip": {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 15_000), "scale": 1}}
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full, **clip)["data"])
        if path is not None:
            path.write_bytes(data)
        return data

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the DevTools protocol. Raises: RuntimeError if the browser refuses it."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next_message()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            self._note(answer)

    def _next_message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], TIMEOUT_S)[0]:
                raise TimeoutError("Chromium does not answer")
            data = os.read(self._read, 1 << 20)
            if not data:
                raise RuntimeError("Chromium has ended")
            self._buffer += data
        message, self._buffer = self._buffer.split(b"\0", 1)
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        """Keeps errors, warnings and requests to a network."""
        content = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(content["exceptionDetails"])[:1000])
        elif event.get("method") == "Runtime.consoleAPICalled" and content["type"] in ("error", "warning", "assert"):
            self.problems.append(json.dumps(content["args"])[:1000])
        elif event.get("method") == "Log.entryAdded" and content["entry"]["level"] in ("error", "warning"):
            self.problems.append(content["entry"]["text"] + " " + content["entry"].get("url", ""))
        elif event.get("method") == "Network.requestWillBeSent":
            url = content["request"]["url"]
            if not url.startswith(("file:", "data:", "about:", "chrome:")):
                self.problems.append(f"request to {url[:200]}")
