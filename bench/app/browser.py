"""A headless Chromium that counts what it transfers. Of the app it knows how Streamlit says that it is idle."""

import os
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from bench.rows import ROOT

WIDTH, HEIGHT = 1440, 900
TIMEOUT_MS = 90_000
IDLE = '[data-testid="stApp"][data-test-script-state="notRunning"]'
FLAGS = ("--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync")


@dataclass
class Traffic:
    """What a page has transferred since it was opened."""

    by_url: dict[str, int] = field(default_factory=dict)
    """Bytes on the wire of each answer, headers included."""
    frames_in: int = 0
    """Bytes of the socket's messages to the page."""
    sent: int = 0
    """Messages of the page on its socket."""
    requests: int = 0
    hosts: set[str] = field(default_factory=set)
    """Hosts that were asked."""

    @property
    def size_bytes(self) -> int:
        """Everything that came."""
        return sum(self.by_url.values()) + self.frames_in

    def largest(self, count: int) -> list[tuple[str, int]]:
        """The answers of most bytes: last part of the address, bytes."""
        ordered = sorted(self.by_url.items(), key=lambda item: -item[1])[:count]
        return [(urlsplit(url).path.rpartition("/")[2] or "/", size) for url, size in ordered]


@contextmanager
def chromium() -> Generator[Browser]:
    """A headless Chromium. Raises RuntimeError if there is none."""
    found = subprocess.run([ROOT / "scripts" / "find-chromium"], stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode:
        raise RuntimeError("there is no Chromium; install one, or set CHROMIUM to its path")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found.stdout.strip(), args=FLAGS, env=dict(os.environ))
        yield browser
        browser.close()


def fresh(browser: Browser) -> BrowserContext:
    """A context with nothing in its cache."""
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
    context.set_default_timeout(TIMEOUT_MS)
    return context


def watched(context: BrowserContext) -> tuple[Page, Traffic]:
    """A new page and what it transfers."""
    page, traffic = context.new_page(), Traffic()
    session = context.new_cdp_session(page)
    urls: dict[str, str] = {}

    def asked(event: dict) -> None:
        urls[event["requestId"]] = url = event["request"]["url"]
        if urlsplit(url).scheme in ("http", "https"):
            traffic.requests += 1
            traffic.hosts.add(urlsplit(url).hostname or "")

    def came(event: dict) -> None:
        url = urls.get(event["requestId"], "")
        traffic.by_url[url] = traffic.by_url.get(url, 0) + int(event["encodedDataLength"])

    def said(_: dict) -> None:
        traffic.sent += 1

    def heard(event: dict) -> None:
        payload, binary = event["response"]["payloadData"], event["response"]["opcode"] == 2
        traffic.frames_in += len(payload) * 3 // 4 if binary else len(payload.encode())

    session.on("Network.requestWillBeSent", asked)
    session.on("Network.loadingFinished", came)
    session.on("Network.webSocketFrameSent", said)
    session.on("Network.webSocketFrameReceived", heard)
    session.send("Network.enable")
    return page, traffic


def seconds(work: Callable[[], object]) -> float:
    """How long the work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def idle(page: Page) -> None:
    """Waits until the script has ended and the page is drawn."""
    page.locator(IDLE).wait_for()
