"""Every page by axe in both themes, and a walk through the app with the keyboard alone."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from fixtures_artefacts import write_crosscoder, write_rows
from fixtures_looks import write_look
from playwright.sync_api import Page, expect

from crosscope_proto.artefacts import PairManifest, version_folder
from tests.app.stack import OpenPage, Stack, settle
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
GO = """(path) => { history.pushState({}, "", `/${path}`); dispatchEvent(new PopStateEvent("popstate")); }"""
IS_DARK = "parseInt(getComputedStyle(document.querySelector('.stApp')).backgroundColor.slice(4)) < 128"
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


def turn(page: Page, theme: Literal["light", "dark"]) -> None:
    """Turns the viewer's system light or dark, and waits until the page has followed."""
    page.emulate_media(color_scheme=theme)
    page.wait_for_function(IS_DARK + (" === true" if theme == "dark" else " === false"))


def test_axe_finds_nothing_moderate_on_any_page_in_both_themes(furnished: Stack, open_page: OpenPage) -> None:
    page = open_page(furnished.url)
    page.add_style_tag(content="* { transition: none !important; }")  # else a colour is measured while it changes
    found = {}
    for path, (title, late) in PAGES.items():
        page.evaluate(GO, path)
        page.locator("h1", has_text=re.compile(f"^{title}$")).wait_for()
        page.locator(late).first.wait_for()
        settle(page)
        found[path] = faults(page)
        turn(page, "dark")
        found[f"{path}, dark"] = faults(page, ["color-contrast"])
        turn(page, "light")
    assert {path: each for path, each in found.items() if each} == {}


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
