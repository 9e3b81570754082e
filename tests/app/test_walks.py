"""Walks through every page: at three widths, in both themes, by axe, with a slow worker; and one with the keyboard."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from fixtures_artefacts import write_crosscoder, write_rows
from fixtures_looks import write_look
from playwright.sync_api import Page, expect

from crosscope_proto.artefacts import PairManifest, version_folder
from tests.app.stack import OpenPage, Stack, settle, slow_worker
from tests.app.test_pages import LAB, STEER

pytestmark = pytest.mark.browser

PAGES = {
    "": ("demo", ".bar"),
    "atlas?ids=3,5,7,9": ("Atlas", ".points[data-drawn]"),
    "latent?latent=7&group=top&context=8": ("Latent 7", ".strip .token"),
    "latent?latent=7&beside=9&try=brown+fox": ("Latent 7", ".token.split, .strip .token"),
    f"{LAB}&token=2&why=true&limit=4": ("Prompt lab", ".strip .token"),
    STEER: ("Steer", "textarea"),
    "labels": ("Labels", "[data-testid=stFileUploader]"),
    "versus?crosscoder=twin-a&other=twin-b": ("Compare two crosscoders", "table[aria-label='Matched latents by kind']"),
    "search?text=fox&in=label": ("Search", "table"),
    "look": ("Look", "table"),
    "jobs": ("Jobs", "[data-testid=stMain] p"),
    "jobs?show=New+job": ("Jobs", "textarea"),
}
"""Titles, and what each page draws late, by path."""
ASKING = {
    "lab?text=held+back+here&shade=latents": ("Prompt lab", "textarea", ".strip .token"),
    "latent?latent=7&group=top&try=held+back+there": ("Latent 7", ".strip .token", ".st-key-trial .token"),
}
"""Titles, what each page draws by itself, and what comes of the worker, by path. No other test asks for these texts."""
FITS = """() => [document.documentElement, document.querySelector("[data-testid=stMain]")]
    .every((element) => element.scrollWidth === element.clientWidth)"""
OVERLAPS = """() => [...document.querySelectorAll('[data-testid="stColumn"]')].flatMap((column) => {
    const clips = (node) => node !== column &&
        (getComputedStyle(node).overflowX !== "visible" || clips(node.parentElement));
    return [...column.querySelectorAll("td, p, span, div")]
        .filter((node) => node.getBoundingClientRect().right > column.getBoundingClientRect().right + 2)
        .filter((node) => node.getBoundingClientRect().width && !clips(node.parentElement))
        .map((node) => node.textContent.trim().slice(0, 40)).filter(Boolean);
})"""
"""Texts that reach out of their column, where they lie over the next one."""
HEADS = """() => [...document.querySelectorAll("[data-testid=stMain] :is(h1, h2, h3, h4)")]
    .filter((head) => head.checkVisibility()).map((head) => Number(head.tagName[1]))"""
"""Levels of the heads of the page, from top to bottom."""
GO = """(path) => { history.pushState({}, "", `/${path}`); dispatchEvent(new PopStateEvent("popstate")); }"""
FOCUSED = """() => {
    let node = document.activeElement;
    while (node.shadowRoot?.activeElement) node = node.shadowRoot.activeElement;
    return [node.getAttribute("aria-label") ?? node.innerText ?? "", node.tagName];
}"""
"""The name of what has the focus, and its tag."""


@pytest.fixture(scope="module")
def furnished(stack: Stack) -> Iterator[Stack]:
    """The stack with two crosscoders that match, a look, and a latent with words."""
    rows = np.random.default_rng(3).normal(size=(40, 128)).astype(np.float32)
    for name, own in (("twin-a", rows), ("twin-b", rows[::-1].copy())):
        written = write_crosscoder(stack.home, name, 40, created_at=1_400_000_000.0)
        write_rows(Path(version_folder(stack.home, name, written.version_id)), own)
    write_look(stack.home, "first", PairManifest("demo", "/models/base", "/models/chat", "/models/chat"))
    said = stack.client.crosscoder("demo").annotations
    said.label(11, "about foxes")
    said.create_list("animals", [11])
    yield stack
    said.label(11, None)
    said.delete_list("animals")


def faults(page: Page, rules: list[str] | None = None) -> list[str]:
    """What axe finds that is moderate or worse, all rules unless some are named."""
    options: dict[str, object] = {"resultTypes": ["violations"], **({"runOnly": rules} if rules else {})}
    if page.evaluate("typeof axe === 'undefined'"):
        page.evaluate(Axe().axe_script)
    found = page.evaluate("(options) => axe.run(options)", options)["violations"]
    return [
        f"{each['impact']} {each['id']}: {node['html'][:200]} {node['failureSummary']}"
        for each in found
        if each["impact"] != "minor"
        for node in each["nodes"]
    ]


def step(page: Page, path: str, title: str, late: str) -> None:
    """Goes to another page within the app, until it is drawn."""
    page.evaluate(GO, path)
    page.locator("h1", has_text=re.compile(f"^{title}$")).wait_for()
    page.locator(late).first.wait_for()
    settle(page)


def errors_on(page: Page) -> list[str]:
    """What the page says went wrong. The planted crosscoder's data lies nowhere, and the form of a job says so."""
    found = page.locator('[data-testid="stException"], [data-testid="stAlert"]').all_inner_texts()
    return [each for each in found if "cannot be used as it is" not in each]


def in_order(heads: Sequence[int]) -> bool:
    """Whether the first head is the title, and none lies more than a level below the one before it."""
    return heads[:1] == [1] and all(low - high <= 1 for high, low in pairwise(heads))


@pytest.mark.parametrize(
    ("theme", "widths", "rules"),
    [("light", (1440, 768, 390), {1440: None, 390: None}), ("dark", (390, 768, 1440), {768: ["color-contrast"]})],
    ids=("light", "dark"),
)
def test_every_page_fits_in_order_without_errors_or_faults_at_three_widths(
    furnished: Stack, open_page: OpenPage, theme: str, widths: Sequence[int], rules: Mapping[int, list[str] | None]
) -> None:
    """Axe looks once at each page at each width, with the rules for it; None: all."""
    page = open_page(furnished.url, width=widths[0], dark=theme == "dark")
    page.add_style_tag(content="* { transition: none !important; }")  # else a colour is measured while it changes
    found: dict[str, object] = {}
    for path, (title, late) in PAGES.items():
        step(page, path, title, late)
        for width in widths:
            page.set_viewport_size({"width": width, "height": 900})
            settle(page)
            page.wait_for_function(FITS)
            expect(page.locator(late).locator("visible=true").first).to_be_visible()
            found[f"{path} at {width}: overlaps"] = page.evaluate(OVERLAPS)
            if width in rules:
                found[f"{path} at {width}: axe"] = faults(page, rules[width])
        heads = page.evaluate(HEADS)
        found[f"{path}: heads"] = [] if in_order(heads) else heads
        found[f"{path}: errors"] = errors_on(page)
    assert {what: each for what, each in found.items() if each} == {}


def test_with_a_slow_worker_each_page_shows_its_own_part_at_once(furnished: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{furnished.url}/labels")
    for path, (title, own, late) in ASKING.items():
        with slow_worker(furnished):
            page.evaluate(GO, path)
            expect(page.locator("h1")).to_have_text(title)
            expect(page.locator(own).first).to_be_visible()
            expect(page.locator(late)).to_have_count(0)
            assert errors_on(page) == []
        expect(page.locator(late).first).to_be_visible()
        settle(page)
    with slow_worker(furnished):
        step(page, "steer?crosscoder=demo&text=held+back+now&steer=7+add+4", "Steer", "textarea")
        page.get_by_role("button", name="Generate", exact=True).click()
        expect(page.get_by_role("button", name="Stop")).to_be_visible()
        assert errors_on(page) == []
    expect(page.locator(".strip .token", has_text="chat").first).to_be_visible()
    assert errors_on(page) == []


def test_with_a_slow_worker_other_pages_do_not_wait(furnished: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{furnished.url}/labels")
    with slow_worker(furnished):
        for path, (title, late) in PAGES.items():
            if "=" not in path:
                step(page, path, title, late)
                assert errors_on(page) == [], path


def test_the_keyboard_alone_goes_from_a_search_to_a_latent_and_on(furnished: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{furnished.url}/?crosscoder=demo")
    page.wait_for_function("window.crosscopeListens")
    page.get_by_label("Search latents").wait_for()
    settle(page)
    page.keyboard.press("/")
    assert page.evaluate(FOCUSED) == ["Search latents", "INPUT"]
    page.keyboard.type("about foxes")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("Search")
    expect(page).to_have_url(re.compile("text=about"))
    rows = page.get_by_role("table", name="Latents found").locator("tbody a")
    expect(rows).to_have_text(["11"])
    settle(page)
    tab_to(page, "11", "A")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("Latent 11")
    page.locator(".strip .token").first.wait_for()
    settle(page)
    page.keyboard.press("j")
    expect(page.locator("h1")).not_to_have_text("Latent 11")
    settle(page)
    tab_to(page, "Try a text", "INPUT")
    page.keyboard.type("one / two")
    page.keyboard.press("Enter")
    expect(page.locator(".st-key-trial .token").first).to_be_visible()
    settle(page)
    tab_to(page, "Copy", "BUTTON")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate(FOCUSED) == ["Copy as text", "BUTTON"]


def tab_to(page: Page, name: str, tag: str, most: int = 60) -> None:
    """Presses Tab until what is called `name` has the focus."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate(FOCUSED) == [name, tag]:
            return
    raise AssertionError(f"{name} is not reached by {most} steps of Tab")
