import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A real headless browser, for what only a browser can tell of a page."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs chromium and chromedriver")
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


class Browser:
    """Headless Chromium over its own WebDriver protocol; `with` closes it."""

    def __init__(self, profile):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = ["chromedriver", f"--port={self.port}"]
        self.driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.profile = profile

    def __enter__(self):
        wanted = {
            "browserName": "chrome",
            "unhandledPromptBehavior": "ignore",
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            "goog:chromeOptions": {
                "binary": shutil.which("chromium"),
                "args": [*FLAGS, f"--user-data-dir={self.profile}"],
            },
        }
        for _ in range(100):
            try:
                self.session = ""
                found = self.ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
                self.session = f"/session/{found['sessionId']}"
                self.ask("POST", "/url", {"url": "about:blank"})  # its own first page asks for things
                return self
            except (ConnectionError, urllib.error.URLError):
                time.sleep(0.1)
        self.driver.kill()
        raise TimeoutError("the browser's driver does not answer")

    def __exit__(self, *_):
        try:
            self.ask("DELETE", "")
        finally:
            self.driver.terminate()
            self.driver.wait(10)

    def ask(self, method, path, body=None):
        """The `value` of an answer of the driver."""
        address = f"http://127.0.0.1:{self.port}{self.session}{path}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["value"]

    def open(self, path):
        """Load a file."""
        self.ask("POST", "/url", {"url": path.as_uri()})

    def run(self, script, *arguments):
        """What a function body returns in the page."""
        return self.ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def console(self):
        """All that was written to the console since the last call."""
        return [entry["message"] for entry in self.ask("POST", "/se/log", {"type": "browser"})]

    def requests(self):
        """The addresses that were asked for since the last call."""
        entries = [
            json.loads(each["message"])["message"] for each in self.ask("POST", "/se/log", {"type": "performance"})
        ]
        asked = [each["params"]["request"]["url"] for each in entries if each["method"] == "Network.requestWillBeSent"]
        return [each for each in asked if not each.startswith("chrome:")]  # its own first page

    def dialog(self):
        """The text of an open dialog; None where there is none."""
        try:
            return self.ask("GET", "/alert/text")
        except urllib.error.HTTPError:
            return None
