"""Drives Chromium as a person would, through chromedriver. Source: https://www.w3.org/TR/webdriver2/."""

import base64
import http.client
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.stores import die_with_parent, free_ports, wait_until

LIMIT_S = 30  # for what a page is expected to come to
ANSWER_S = 120  # for what it is asked to do
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
CTRL, ENTER, ESCAPE, TAB, DOWN, RIGHT, LEFT = "\ue009", "\ue007", "\ue00c", "\ue004", "\ue015", "\ue014", "\ue012"

# Each change is noted with what it has brought: of two that come at once the first one is no longer in the page.
HEAR = """
const [css] = arguments
window.heard = []
const elements = node => (node.querySelectorAll ? [node, ...node.querySelectorAll("*")].filter(each => each.matches(css)) : [])
new MutationObserver(changes => {
  for (const {target, addedNodes} of changes) for (const node of addedNodes) {
    if (target.closest(css)) heard.push(node.textContent)
    else heard.push(...elements(node).map(each => each.innerText))
  }
}).observe(document.body, {subtree: true, childList: true})
"""


class Driver:
    """A chromedriver; it starts browsers. Skips the test where it is not installed."""

    def __init__(self, directory: Path) -> None:
        if not shutil.which("chromedriver") or not shutil.which("chromium"):
            pytest.skip("no chromium or no chromedriver on the PATH")
        self.directory = directory
        [self._port] = free_ports(1)
        self._process = subprocess.Popen(
            ["chromedriver", f"--port={self._port}", "--log-level=OFF"],
            env=os.environ | {"HOME": str(directory)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509  # one system call, no lock
        )
        wait_until(self._is_ready, LIMIT_S)

    def _is_ready(self) -> bool:
        try:
            return bool(self.ask("GET", "/status")["ready"])
        except OSError:
            return False

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The value that the driver answers with; an error of WebDriver is an AssertionError."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWER_S)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            value = json.loads(answer.read())["value"]
        finally:
            connection.close()
        assert answer.status == 200, f"{value['error']}: {value['message']}"
        return value

    def open(self, width: int = 1280, height: int = 800, *, is_dark: bool = False) -> "Browser":
        """A new browser without a window, with a profile of its own."""
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        if is_dark:
            options.append("--force-dark-mode")
        chrome = {"binary": shutil.which("chromium"), "args": options}
        limits = {"script": 1000 * ANSWER_S}
        wanted = {
            "browserName": "chrome",
            "timeouts": limits,
            "goog:chromeOptions": chrome,
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        session = self.ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        browser = Browser(self, f"/session/{session}")
        browser.resize(width, height)
        browser.developer("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.directory))
        return browser

    def close(self) -> None:
        """End it, and its browsers with it."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Browser:
    """One browser with one page."""

    def __init__(self, driver: Driver, at: str) -> None:
        self._driver = driver
        self._at = at

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """A command of WebDriver, below the session."""
        return self._driver.ask(method, self._at + path, body)

    def go(self, url: str) -> None:
        """Open a page and wait until it is loaded."""
        self.ask("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function body returns in the page, promises awaited."""
        return self.ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def resize(self, width: int, height: int) -> None:
        """Set the size of what the page sees, whatever the window around it."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.developer("Emulation.setDeviceMetricsOverride", **metrics)

    def developer(self, command: str, **params: Any) -> Any:
        """A command of Chromium's developer tools."""
        return self.ask("POST", "/goog/cdp/execute", {"cmd": command, "params": params})

    def text(self, css: str = "body") -> str:
        """The text that is seen of an element, "" if there is none."""
        found: str = self.run("return document.querySelector(arguments[0])?.innerText ?? ''", css)
        return found

    def wait(self, script: str, *arguments: Any) -> Any:
        """What an expression comes to, once that is true.

        An error is not: of an element that is not there yet, or of a look at a page that is just left for another one.
        """
        found: list[Any] = []

        def look() -> bool:
            try:
                found[:] = [self.run(f"try {{ return {script} }} catch (error) {{ return null }}", *arguments)]
            except AssertionError as error:
                found[:] = [None, error]
            return bool(found[0])

        try:
            wait_until(look, LIMIT_S)
        except AssertionError:
            raise AssertionError(f"{script} {arguments}\n{found}\n{self.text()[:2000]}\n{self.logged()}") from None
        return found[0]

    def wait_for(self, text: str, css: str = "body") -> None:
        """Wait until an element shows a text."""
        self.wait("document.querySelector(arguments[1])?.innerText.includes(arguments[0])", text, css)

    def hear(self, css: str) -> None:
        """Keep the texts that this element, or elements like it, show from now on, however soon they are gone."""
        self.run(HEAR, css)

    def wait_for_heard(self, text: str) -> None:
        """Wait until a text that includes this one has been shown since hear()."""
        self.wait("heard.some(each => each.includes(arguments[0]))", text)

    def find(self, css: str, text: str = "") -> dict[str, str]:
        """The first element that is seen, by a selector and a part of its text, its label or its title; waits for it."""
        script = """[...document.querySelectorAll(arguments[0])].find(each => each.checkVisibility() && [each.innerText,
            each.getAttribute('aria-label'), each.title].some(said => (said ?? '').includes(arguments[1])))"""
        found: dict[str, str] = self.wait(script, css, text)
        return found

    def click(self, css: str, text: str = "") -> None:
        """Click what find() finds, also where the page has just drawn it anew."""
        for is_last in (False, False, True):
            try:
                self.ask("POST", f"/element/{self.find(css, text)[ELEMENT]}/click", {})
                return
            except AssertionError as error:
                if is_last or "stale" not in str(error):
                    raise

    def type(self, css: str, text: str, label: str = "") -> None:
        """Replace what is in a field."""
        at = f"/element/{self.find(css, label)[ELEMENT]}"
        self.ask("POST", f"{at}/clear", {})
        self.ask("POST", f"{at}/value", {"text": text})

    def attach(self, css: str, path: Path) -> None:
        """Choose a file in a field for files, which may be hidden."""
        [found] = self.ask("POST", "/elements", {"using": "css selector", "value": css})
        self.ask("POST", f"/element/{found[ELEMENT]}/value", {"text": str(path)})

    def press(self, *keys: str) -> None:
        """Press keys where the focus is; CTRL holds for the key after it."""
        actions: list[dict[str, str]] = []
        held: list[str] = []
        for key in keys:
            actions.append({"type": "keyDown", "value": key})
            if key == CTRL:
                held.append(key)
                continue
            actions.append({"type": "keyUp", "value": key})
            actions += [{"type": "keyUp", "value": each} for each in held]
            held.clear()
        self.ask("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def windows(self) -> list[str]:
        """The windows of this browser."""
        found: list[str] = self.ask("GET", "/window/handles")
        return found

    def open_window(self) -> str:
        """Open one more, and return it; what follows still goes to the one before."""
        handle: str = self.ask("POST", "/window/new", {"type": "window"})["handle"]
        return handle

    def switch_to(self, window: str) -> None:
        """Turn to one of the windows."""
        self.ask("POST", "/window", {"handle": window})

    def screenshot(self, path: Path) -> None:
        """Write what is seen to a file, as PNG."""
        path.write_bytes(base64.b64decode(self.ask("GET", "/screenshot")))

    def logged(self) -> list[str]:
        """What the page has written to the console since this was last asked: errors and violations of its policy."""
        return [f"{each['level']}: {each['message']}" for each in self.ask("POST", "/se/log", {"type": "browser"})]

    def close(self) -> None:
        """Close the browser."""
        self.ask("DELETE", "")
