"""Does the demo page do what it should in a real browser, and does nothing leave this machine?

    python tools/demo_check.py CHECKPOINT PICTURE --out shots       # needs playwright, a Chromium
    python tools/demo_check.py runs/first val/1.jpg --examples val --browser /usr/bin/chromium

Starts `detr-kit demo` in a process of its own and drives its page without a screen: a picture goes
in, boxes come out, the threshold, the classes and the merging are moved, bad files are refused,
all in light, in dark and on a small screen. Every host that the page or the server turns to is
written down; it must be this machine. Prints what was seen and exits with status 1 where that is
not as it should be. Screenshots go to --out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image

try:
    from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright
except ImportError:
    sync_playwright = None

LOOPBACK = {"127.0.0.1", "localhost", "::1", ""}
PATIENCE_MS = 60_000
# Runs the command line; every address that Python looks up or connects to is appended to a file.
CHILD = """
import sys
hosts = open(sys.argv.pop(1), "a", buffering=1)
def watch(event, values):
    if event == "socket.getaddrinfo":
        print(values[0], file=hosts)
    elif event == "socket.connect":
        print(values[1][0] if isinstance(values[1], tuple) else "", file=hosts)
sys.addaudithook(watch)
from detr_kit.cli import main
main()
"""


class Findings:
    """What was seen, and what of it is wrong."""

    def __init__(self) -> None:
        self.wrong = 0
        self.hosts: dict[str, int] = {}
        self.console: list[str] = []

    def check(self, holds: bool, what: str) -> None:
        self.wrong += not holds
        print(f"{'ok   ' if holds else 'WRONG'} {what}", flush=True)

    def follow(self, page: Page) -> None:
        """Write down every request of a page, those that fail too, and what it complains about."""
        page.on("request", lambda request: self.count(request.url))
        page.on("websocket", lambda socket: self.count(socket.url))
        page.on("pageerror", lambda error: self.console.append(str(error)))
        page.on("console", self.hear)

    def hear(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.console.append(f"{message.text} {message.location.get('url', '')}")

    def count(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob"):
            host = parts.hostname or ""
            self.hosts[host] = self.hosts.get(host, 0) + 1


class Demo:
    """The demo page in a browser."""

    def __init__(self, page: Page, shots: Path, prefix: str) -> None:
        self.page, self.shots, self.prefix = page, shots, prefix

    def shoot(self, name: str) -> None:
        self.page.wait_for_timeout(400)  # transitions
        self.page.screenshot(path=self.shots / f"{self.prefix}_{name}.png", full_page=True)

    def give(self, file: Path) -> None:
        self.page.set_input_files("#dk-upload input[type=file]", file)

    def boxes(self) -> int:
        return self.page.locator(".dk-box").count()

    @contextmanager
    def redrawn(self) -> Iterator[None]:
        """Wait for the answer to what is done in the block, and until it can be seen."""
        with self.page.expect_response("**/gradio_api/run/predict*", timeout=PATIENCE_MS):
            yield
        self.page.wait_for_timeout(200)

    def set_threshold(self, score: float) -> int:
        """Return the number of boxes then."""
        with self.redrawn():
            self.page.locator("#dk-threshold input[type=range]").fill(str(score))
        return self.boxes()

    def tick(self, selector: str, on: bool) -> int:
        with self.redrawn():
            self.page.locator(selector).first.set_checked(on)
        return self.boxes()

    def problem_with(self, file: Path) -> str:
        self.give(file)
        problem = self.page.locator(".dk-problem")
        expect(problem).to_contain_text(file.name, timeout=PATIENCE_MS)
        return problem.inner_text()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--examples", type=Path, help="folder of pictures for the page")
    parser.add_argument("--browser", default=shutil.which("chromium") or shutil.which("chrome"))
    parser.add_argument("--out", type=Path, default=Path("demo_check"), help="for screenshots")
    options = parser.parse_args()
    if sync_playwright is None:
        raise SystemExit("demo_check drives a browser by playwright: pip install playwright")
    options.out.mkdir(parents=True, exist_ok=True)
    findings = Findings()
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        arguments = ["--examples", str(options.examples)] if options.examples else []
        host_list = Path(scratch) / "hosts"
        with demo_running([options.checkpoint, *arguments], host_list, findings) as url:
            browser = playwright.chromium.launch(executable_path=options.browser)
            check_page(browser, url, options, findings, Path(scratch))
            check_looks(browser, url, options, findings)
            browser.close()
        check_hosts(findings, host_list)
    print(f"{findings.wrong} wrong" if findings.wrong else "all as it should be")
    return 1 if findings.wrong else 0


@contextmanager
def demo_running(arguments: list[str], host_list: Path, findings: Findings) -> Iterator[str]:
    """Start the demo, give its address, stop it as Ctrl-C does."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(host_list), "demo", *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = next((line for line in process.stdout if "http://" in line), "")
        if not line:
            raise SystemExit("the demo did not start")
        print(f"      {line.strip()}, after {time.perf_counter() - start:.1f} s")
        yield next(word for word in line.split() if word.startswith("http://"))
        stop = time.perf_counter()
        process.send_signal(signal.SIGINT)
        said = process.stdout.read()
        status = process.wait(timeout=30)
        findings.check(
            "stopped" in said and status == 0,
            f"Ctrl-C: said {said.strip()!r}, exit status {status}, "
            f"{time.perf_counter() - stop:.1f} s",
        )
    finally:
        process.kill()


def check_page(
    browser: Browser, url: str, options: argparse.Namespace, findings: Findings, scratch: Path
) -> None:
    page = browser.new_page(viewport={"width": 1360, "height": 900}, color_scheme="light")
    findings.follow(page)
    page.goto(url)
    demo = Demo(page, options.out, "light")
    page.wait_for_selector("#dk-upload input[type=file]", state="attached", timeout=PATIENCE_MS)
    demo.shoot("0_start")

    demo.give(options.picture)
    page.wait_for_selector("#dk-count", timeout=PATIENCE_MS)
    first = demo.boxes()
    demo.shoot("1_found")
    findings.check(first > 0, f"{options.picture.name}: {first} boxes at the first threshold")
    findings.check(
        page.locator(".dk-table tbody tr").count() == first, "the table has a row for each box"
    )
    check_choices(demo, findings, first)
    check_refusals(demo, findings, scratch)
    demo.give(options.picture)
    page.wait_for_selector("#dk-count", timeout=PATIENCE_MS)
    findings.check(demo.boxes() > 0, "a good picture after bad ones is shown")
    if options.examples:
        page.locator("#dk-examples button img").nth(1).click()
        page.wait_for_timeout(3000)
        demo.shoot("6_example")
    page.close()


def check_choices(demo: Demo, findings: Findings, first: int) -> None:
    start = time.perf_counter()
    more = demo.set_threshold(0.0)
    took = 1000 * (time.perf_counter() - start) - 200
    demo.shoot("2_threshold_0")
    findings.check(more > first, f"threshold 0: {more} boxes, {took:.0f} ms later")
    merged = demo.tick("#dk-merge input", True)
    demo.shoot("3_merged")
    findings.check(0 < merged < more, f"overlapping boxes merged: {merged}")
    demo.tick("#dk-merge input", False)
    again = demo.set_threshold(0.5)
    findings.check(again == first, f"threshold 0.5: {again} boxes")
    left = demo.tick("#dk-filter input[type=checkbox]", False)
    demo.shoot("4_class_hidden")
    findings.check(left < first, f"a class hidden: {left} boxes")
    again = demo.tick("#dk-filter input[type=checkbox]", True)
    findings.check(again == first, f"and shown again: {again} boxes")
    none = demo.set_threshold(1.0)
    findings.check(none == 0, f"threshold 1: {none} boxes")
    demo.set_threshold(0.5)


def check_refusals(demo: Demo, findings: Findings, scratch: Path) -> None:
    text = scratch / "not_a_picture.jpg"
    text.write_text("Dear model, what do you see?", encoding="utf-8")
    bomb = scratch / "huge.png"
    Image.new("1", (9_000, 7_000)).save(bomb)
    for file in (text, bomb):
        message = demo.problem_with(file)
        findings.check("/" not in message and "\n" not in message, f"refused: {message!r}")
        demo.shoot(f"5_{file.stem}")
    plain = scratch / "notes.txt"
    plain.write_text("not a picture", encoding="utf-8")
    big = scratch / "big.jpg"
    big.write_bytes(bytes(25 * 2**20))
    for file in (plain, big):
        demo.give(file)
        toast = demo.page.locator(".toast-body").last
        expect(toast).to_be_visible(timeout=PATIENCE_MS)
        findings.check(True, f"{file.name} refused by the page: {toast.inner_text()!r}")
        demo.shoot(f"5_{file.stem}")
        demo.page.locator(".toast-close").last.click()


def check_looks(
    browser: Browser, url: str, options: argparse.Namespace, findings: Findings
) -> None:
    """Look at the page in the dark and on a telephone."""
    for prefix, scheme, width, height in (
        ("dark", "dark", 1360, 900),
        ("phone", "light", 390, 844),
    ):
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        findings.follow(page)
        page.goto(url)
        demo = Demo(page, options.out, prefix)
        page.wait_for_selector("#dk-upload input[type=file]", state="attached")
        demo.give(options.picture)
        page.wait_for_selector("#dk-count", timeout=PATIENCE_MS)
        demo.shoot("1_found")
        wide = page.evaluate("document.documentElement.scrollWidth")
        findings.check(wide <= width, f"{prefix}: {wide} of {width} pixels wide")
        page.close()


def check_hosts(findings: Findings, host_list: Path) -> None:
    server = sorted(set(host_list.read_text(encoding="utf-8").split()))
    findings.check(
        set(findings.hosts) <= LOOPBACK, f"requests of the page: {json.dumps(findings.hosts)}"
    )
    findings.check(set(server) <= LOOPBACK, f"addresses the server turned to: {server or 'none'}")
    outside = [text for text in findings.console if "Content Security Policy" in text]
    findings.check(not outside, f"the browser held back: {outside or 'nothing'}")
    # gradio asks how an upload goes on that has ended already, and complains about the answer.
    print(f"      other errors in the browser: {findings.console or 'none'}")


if __name__ == "__main__":
    sys.exit(main())
