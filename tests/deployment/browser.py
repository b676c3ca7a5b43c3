"""A headless Chromium, driven through chromedriver's own protocol (W3C WebDriver), which is JSON over HTTP."""

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_QUIET = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--disable-default-apps", "--metrics-recording-only", "--no-proxy-server", "--hide-scrollbars"),
)


def installed():
    """The programs, or None where they are not there."""
    driver = shutil.which("chromedriver")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return (driver, chromium) if driver and chromium else None


class Browser:
    """One window. Use it as a context; `logs` and `requests` say what happened since they were asked last."""

    def __init__(self, folder: Path, *, width=1100, height=1400, dark=False):
        self.driver, chromium = installed()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        arguments = [*_QUIET, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}"]
        options = {
            "binary": chromium,
            "args": [*arguments, *(["--force-dark-mode"] if dark else [])],
            "prefs": {"download.default_directory": str(folder)},
        }
        self.wanted = {
            "alwaysMatch": {
                "browserName": "chrome",
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
                "unhandledPromptBehavior": "ignore",
            }
        }

    def __enter__(self):
        self.process = subprocess.Popen(
            [self.driver, f"--port={self.port}", "--log-level=SEVERE"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.session = ""
        for _ in range(100):
            with contextlib.suppress(OSError):
                self.session = f"/session/{self._send('POST', '/session', capabilities=self.wanted)['sessionId']}"
                break
            time.sleep(0.1)
        assert self.session, "chromedriver did not start"
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self._send("DELETE", self.session)
        self.process.terminate()
        self.process.wait(timeout=20)

    def open(self, address):
        self._send("POST", f"{self.session}/url", url=address)

    def run(self, script, *arguments):
        """What a script returns; it runs beside the page's own, past its content security policy."""
        return self._send("POST", f"{self.session}/execute/sync", script=script, args=list(arguments))

    def wait(self, condition, *, seconds=30):
        """What a JavaScript expression comes to, once that is something."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self.run(f"return {condition}"):
                return found
            time.sleep(0.1)
        raise AssertionError(f"did not come true: {condition}; the page says: {self.text('body')[:2000]}")

    def wait_for(self, file, *, seconds=20):
        """Wait for a download."""
        end = time.monotonic() + seconds
        while not file.is_file():
            assert time.monotonic() < end, f"no {file.name} among {[path.name for path in self.folder.iterdir()]}"
            time.sleep(0.1)

    def text(self, selector):
        """The visible text of an element."""
        return self._send("GET", f"{self.session}/element/{self._find(selector)}/text")

    def click(self, selector):
        self._send("POST", f"{self.session}/element/{self._find(selector)}/click")

    def write(self, selector, text):
        """Type into a field, or name the file of a file field."""
        self._send("POST", f"{self.session}/element/{self._find(selector)}/value", text=text)

    def press(self, *keys):
        """Press keys at once, wherever the focus is."""
        pressed = [
            {"type": kind, "value": key} for kind, order in (("keyDown", keys), ("keyUp", keys[::-1])) for key in order
        ]
        self._send("POST", f"{self.session}/actions", actions=[{"type": "key", "id": "keys", "actions": pressed}])

    def media(self, **features):
        """Pretend that the user prefers something: prefers_color_scheme="dark"."""
        told = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self._cdp("Emulation.setEmulatedMedia", features=told)

    def width(self, width, height=1400):
        self._cdp(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )

    def picture(self, path: Path):
        """The whole page as a PNG."""
        size = self._cdp("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        data = self._cdp("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        path.write_bytes(base64.b64decode(data))

    def accessible(self):
        """The page as a screen reader has it: role and name of each part that has both."""
        nodes = self._cdp("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node.get("ignored") and "role" in node
        ]

    def logs(self):
        """Lines of the console."""
        return [line["message"] for line in self._send("POST", f"{self.session}/se/log", type="browser")]

    def requests(self):
        """The address of everything that was asked for."""
        lines = self._send("POST", f"{self.session}/se/log", type="performance")
        events = [json.loads(line["message"])["message"] for line in lines]
        return [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]

    def alert(self):
        """The text of a dialogue that stands open, None where none does."""
        try:
            return self._send("GET", f"{self.session}/alert/text")
        except AssertionError:
            return None

    def _find(self, selector):
        return self._send("POST", f"{self.session}/element", using="css selector", value=selector)[_ELEMENT]

    def _cdp(self, command, **params):
        return self._send("POST", f"{self.session}/goog/cdp/execute", cmd=command, params=params)

    def _send(self, method, path, **body):
        data = None if method == "GET" or method == "DELETE" else json.dumps(body).encode()
        address = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(
            address, data=data, method=method, headers={"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            told = json.load(error)["value"]
            raise AssertionError(f"{told['error']}: {told['message'][:500]}") from None
