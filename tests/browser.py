"""A headless Chromium, driven over its DevTools protocol: what a page logs, requests and draws."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import websocket


def found() -> str:
    "The browser's program: $CHROMIUM, or what is on the path; empty where there is none."
    names = (
        os.environ.get("CHROMIUM", ""),
        "chromium",
        "chromium-browser",
        "google-chrome",
        "chrome",
    )
    return next((path for name in names if name and (path := shutil.which(name))), "")


class Browser:
    "`with Browser() as b: b.open(url)`; no request can leave the machine; tries are noted."

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        options = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage"
        options += " --hide-scrollbars --no-first-run --disable-background-networking"
        options += " --disable-component-update --remote-debugging-port=0"
        own = ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={self.folder.name}"]
        options = [*options.split(), *own]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([found(), *options, "about:blank"], **quiet)
        self.socket = websocket.create_connection(self._address(), timeout=60, suppress_origin=True)
        self.count, self.session, self.events = 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)
        return self

    def __exit__(self, *_):
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)
        self.folder.cleanup()

    def _address(self) -> str:
        "Where the browser listens."
        file = Path(self.folder.name) / "DevToolsActivePort"
        for _ in range(600):
            if file.is_file() and len(lines := file.read_text().split()) == 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
            if self.process.poll() is not None:
                raise RuntimeError(f"{found()} ended with code {self.process.returncode}")
            time.sleep(0.1)
        raise RuntimeError(f"{found()} does not answer")

    def call(self, method: str, **parameters) -> dict:
        "The answer to a command; events that come before it are kept."
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        self.socket.send(
            json.dumps(message | ({"sessionId": self.session} if self.session else {}))
        )
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == self.count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def open(self, url: str, width: int = 1280, height: int = 900) -> None:
        "Go to a page and wait until everything on it is loaded, also what is far below."
        self.events.clear()
        self.size(width, height)
        self._loaded(self.call("Page.navigate", url=url)["loaderId"])
        self.run("document.querySelectorAll('img').forEach(i => { i.loading = 'eager'; })")
        self.until("[...document.images].every(i => i.complete)")

    def _loaded(self, loader: str) -> None:
        "Wait until the new document is there: the old one may still answer, and be complete too."
        while not any(
            e.get("method") == "Page.lifecycleEvent"
            and (e["params"]["loaderId"], e["params"]["name"]) == (loader, "load")
            for e in self.events
        ):
            self.events.append(json.loads(self.socket.recv()))

    def size(self, width: int, height: int) -> None:
        "Make the window as large, that of a phone where it is narrow."
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def run(self, script: str):
        "The value of a script in the page."
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(
                answer["exceptionDetails"]
                .get("exception", {})
                .get("description", "the script failed")
            )
        return answer["result"].get("value")

    def until(self, condition: str, seconds: float = 60) -> None:
        "Wait for a condition in the page."
        end = time.monotonic() + seconds
        while not self.run(condition):
            if time.monotonic() > end:
                raise RuntimeError(f"never became true: {condition}")
            time.sleep(0.05)

    def complaints(self) -> list[str]:
        "What the console said since the page was opened, and what failed to load."
        said = []
        for e in self.events:
            method, p = e.get("method"), e.get("params", {})
            if method == "Runtime.consoleAPICalled" and p["type"] in ("error", "warning", "assert"):
                said.append(f"console: {[a.get('value', a.get('description')) for a in p['args']]}")
            elif method == "Runtime.exceptionThrown":
                said.append(
                    f"exception: {p['exceptionDetails'].get('exception', {}).get('description')}"
                )
            elif method == "Log.entryAdded" and p["entry"]["level"] in ("error", "warning"):
                said.append(f"log: {p['entry']['text']} {p['entry'].get('url', '')}")
            elif method == "Network.loadingFailed" and not p.get("canceled"):
                said.append(f"failed: {p['errorText']}")
        return said

    def requests(self) -> list[str]:
        "Every address that was asked for since the page was opened."
        return [
            e["params"]["request"]["url"]
            for e in self.events
            if e.get("method") == "Network.requestWillBeSent"
        ]

    def picture(self, file: Path, top: int = 0, height: int = 0) -> Path:
        "Draw the page, or `height` pixels of it from `top`, to a PNG file."
        shown = self.run(
            "[document.documentElement.clientWidth, document.documentElement.scrollHeight]"
        )
        clip = {
            "x": 0,
            "y": top,
            "width": shown[0],
            "height": height or min(shown[1] - top, 12000),
            "scale": 1,
        }
        data = self.call(
            "Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip
        )["data"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(data))
        return file
