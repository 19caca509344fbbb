#!/usr/bin/env python3
"""Loads a report in Chromium as people do, and looks for what they would stumble over.

    tests/browser.py PROGRAM [FOLDER]

PROGRAM is the built `vlmerge`; screenshots go to FOLDER if it is given. At the widths of a desk and
of a phone, light and dark: no message on the console, no request but for the page itself, nothing
wider than the window outside the boxes that scroll, and every number of the JSON on the page.
Needs Chromium and its driver; says SKIPPED where there are none and none can be installed.
"""

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

REPORTS = Path(__file__).resolve().parent.parent / "fixtures" / "reports"
CHECKPOINTS = REPORTS.parent / "ckpt"
SIZES = [(1280, 900), (390, 844)]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--disable-dev-shm-usage", "--hide-scrollbars"]
OVERFLOW = """
const width = document.documentElement.clientWidth;
const isInBox = e => e.parentElement?.closest('.scroll');
return [document.documentElement.scrollWidth - width,
  [...document.querySelectorAll('body *')]
    .filter(e => !isInBox(e) && e.getBoundingClientRect().right > width + 1 && !e.closest('svg'))
    .slice(0, 5).map(e => e.tagName + ' ' + e.className + ' ' + e.textContent.slice(0, 40))];
"""
CLIPPED = """
return [...document.querySelectorAll('svg.curve, svg.heat')].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(text => {
    const box = text.getBoundingClientRect();
    return box.width > 0 && (box.left < frame.left - 1 || box.right > frame.right + 1);
  }).map(text => text.textContent);
});
"""


def tools():
    """Paths of the browser and its driver, installed if that is possible."""
    def found():
        browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        return browser, shutil.which("chromedriver")

    if not all(found()) and shutil.which("apt-get") and os.geteuid() == 0:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(["apt-get", "update", "-qq"], **quiet)
        subprocess.run(["apt-get", "install", "-y", "-qq", "chromium", "chromium-driver"], **quiet)
    return found()


class Browser:
    """A session of WebDriver."""

    def __init__(self, browser, driver, profile):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self.driver = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)
        self.session = ""
        try:
            self.wait()
            options = {"binary": browser, "args": [*FLAGS, f"--user-data-dir={profile}"]}
            logs = {"browser": "ALL", "performance": "ALL"}
            wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": logs}
            created = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self.session = f"/session/{created['sessionId']}"
        except BaseException:
            self.driver.kill()
            raise

    def wait(self):
        for _ in range(100):
            try:
                if self.call("GET", "/status")["ready"]:
                    return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        raise SystemExit("chromedriver does not answer")

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"},
                                         method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise SystemExit(f"chromedriver: {error.read().decode(errors='replace')[:500]}") from error

    def post(self, path, body):
        return self.call("POST", self.session + path, body)

    def command(self, name, **parameters):
        return self.post("/goog/cdp/execute", {"cmd": name, "params": parameters})

    def run(self, script):
        return self.post("/execute/sync", {"script": script, "args": []})

    def log(self, kind):
        return self.post("/se/log", {"type": kind})

    def screenshot(self, path):
        width, height = self.run("const page = document.documentElement;"
                                 "return [page.clientWidth, page.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        taken = self.command("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(taken["data"]))

    def close(self):
        try:
            if self.session:
                self.call("DELETE", self.session)
        finally:
            self.driver.terminate()
            self.driver.wait()


def texts(report):
    """How the numbers of a report stand on its page."""
    for result in report["results"]:
        for number in result["measurements"]:
            factor = 100 if number["unit"] == "fraction" else 1
            if number["value"] is not None:
                yield result["name"], number["name"], f"{factor * number['value']:.2f}"
            if number["interval"]:
                low, high = (factor * number["interval"][end] for end in ("low", "high"))
                yield result["name"], number["name"], f"{low:.2f}–{high:.2f}"


def requests(log):
    """Addresses that the page asked for."""
    for entry in log:
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            yield message["params"]["request"]["url"]


def look(browser, page, reports, size, scheme, folder):
    """Faults of a page at one size in one color scheme."""
    width, height = size
    browser.command("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                    mobile=width < 600)
    browser.command("Emulation.setEmulatedMedia",
                    features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.log("performance")
    browser.post("/url", {"url": page.as_uri()})
    name = f"{page.stem}-{width}-{scheme}"
    faults = []
    if folder:
        browser.screenshot(folder / f"{name}.png")
    # What is folded away must fit as well.
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    if folder:
        browser.screenshot(folder / f"{name}-open.png")
    faults += [f"console: {entry['message']}" for entry in browser.log("browser")]
    # The browser opens pages of its own before ours.
    own = ("data:", "chrome:", "chrome-untrusted:")
    asked = [url for url in requests(browser.log("performance")) if not url.startswith(own)]
    faults += [f"request: {url}" for url in asked if url != page.as_uri()]
    if page.as_uri() not in asked:
        faults.append("the log of requests does not hold the page itself")
    overflow, culprits = browser.run(OVERFLOW)
    if overflow > 0 or culprits:
        faults.append(f"wider than the window by {overflow}: {culprits}")
    faults += [f"text outside its picture: {text}" for text in browser.run(CLIPPED)]
    broken = browser.run("return [...document.images].filter(i => !i.naturalWidth).length")
    if broken:
        faults.append(f"{broken} pictures cannot be shown")
    background = browser.run("return getComputedStyle(document.body).backgroundColor")
    is_dark = sum(int(part) for part in background[4:-1].split(",")) < 384
    if is_dark != (scheme == "dark"):
        faults.append(f"background {background} in {scheme} scheme")
    if browser.run("return document.querySelectorAll('script').length"):
        faults.append("a script")
    shown = browser.run("return document.body.innerText")
    for report in reports:
        for result, number, text in texts(report):
            if text not in shown:
                faults.append(f"{result}, {number}: {text} is not on the page")
    return [f"{name}: {fault}" for fault in faults]


def main(program, folder=None):
    browser_path, driver = tools()
    if not browser_path or not driver:
        print("SKIPPED: no Chromium on this machine and no way to install it")
        return
    if folder:
        folder = Path(folder).resolve()
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        distances = place / "distances.json"
        with distances.open("wb") as file:
            subprocess.run([program, "distance", CHECKPOINTS / "all_moe.safetensors", "--seed-checkpoint",
                            CHECKPOINTS / "ufo.safetensors", "--json"], stdout=file, check=True)
        pages = {"rich": [REPORTS / "coco.json", REPORTS / "tasks.json", REPORTS / "sweep.json", distances],
                 "single": [REPORTS / "sweep.json"], "hostile": [REPORTS / "hostile.json"]}
        browser = Browser(browser_path, driver, place / "profile")
        faults, n_looks = [], 0
        try:
            for name, files in pages.items():
                page = place / f"{name}.html"
                subprocess.run([program, "--quiet", "report", *files, "--title", "Merging a COCO model",
                                "--out", page], check=True)
                reports = [json.loads(file.read_text()) for file in files if file != distances]
                for size in SIZES:
                    for scheme in ("light", "dark"):
                        faults += look(browser, page, reports, size, scheme, folder)
                        n_looks += 1
        finally:
            browser.close()
    if faults:
        sys.exit("\n".join(faults))
    print(f"{n_looks} looks at {len(pages)} pages: in order")


if __name__ == "__main__":
    main(*sys.argv[1:])
