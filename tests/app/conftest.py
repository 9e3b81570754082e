"""A stack of processes with the app in front, and a headless Chromium."""

import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from urllib.parse import urlsplit

import pytest
from fixtures_waiting import PATIENCE_S
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.app.stack import SETTLED, OpenPage, Stack, settle

TIMEOUT_MS = 1000 * PATIENCE_S
CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Everything there: a crosscoder, a worker, a queue."""
    stack = Stack()
    try:
        stack.plant()
        stack.start_queue()
        stack.start_worker()
        stack.start_server()
        stack.start_app()
        yield stack
    finally:
        stack.close()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium: install one, or name its binary in the environment variable CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def contexts(chromium: Browser) -> Iterator[Callable[[int, bool], BrowserContext]]:
    """Browser contexts by width and darkness; shared, so that the app's scripts are loaded once."""
    expect.set_options(timeout=TIMEOUT_MS)

    @cache
    def context(width: int, dark: bool) -> BrowserContext:
        scheme = "dark" if dark else "light"
        made = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        made.set_default_timeout(TIMEOUT_MS)
        made.add_init_script(SETTLED)
        return made

    yield context
    for made in chromium.contexts:
        made.close()


@pytest.fixture
def open_page(contexts: Callable[[int, bool], BrowserContext]) -> Iterator[OpenPage]:
    """Opens a URL of the app; a script error on the page fails the test, and so does a request to another host."""
    pages: list[Page] = []
    errors: list[str] = []
    elsewhere: set[str] = set()

    def open_page(url: str, *, width: int = 1440, dark: bool = False) -> Page:
        page = contexts(width, dark).new_page()
        pages.append(page)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: elsewhere.add(request.url) if is_elsewhere(request.url) else None)
        page.goto(url)
        page.locator("h1").first.wait_for()
        settle(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert errors == []
    assert elsewhere == set()


def is_elsewhere(url: str) -> bool:
    address = urlsplit(url)
    return address.scheme not in ("data", "blob") and address.hostname != "127.0.0.1"


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page of a browser that knows nothing."""
    context = chromium.new_context()
    context.set_default_timeout(TIMEOUT_MS)
    context.add_init_script(SETTLED)
    expect.set_options(timeout=TIMEOUT_MS)
    yield context.new_page()
    context.close()
