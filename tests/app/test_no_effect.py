"""The Steer page, where changes move no word of any answer: it says so, and leads to what may."""

import json
import re
from urllib.parse import urlencode

import pytest
from playwright.sync_api import expect

from tests.app.planted_worker import ALIKE, HOSTILE
from tests.app.stack import OpenPage, Stack, settle

pytestmark = pytest.mark.browser


def test_changes_without_a_visible_effect_say_so_and_lead_to_what_carries_the_difference(
    stack: Stack, open_page: OpenPage
) -> None:
    turns = json.dumps([["user", f"{ALIKE} {HOSTILE} bread"]])
    query = urlencode({"crosscoder": "demo", "turns": turns, "steer": "7,9 ablate"})
    page = open_page(f"{stack.url}/steer?{query}")
    said = page.locator('[data-testid="stAlert"]')
    expect(said).to_have_count(0)
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(said).to_contain_text("No visible effect. With the changes, base and chat answer the same, word for word")
    expect(said).to_contain_text("More latents together")
    expect(page.locator(".strip .head").nth(3)).to_contain_text("The same as plain.")
    expect(page.get_by_role("radio", name="steered less plain")).to_be_visible()
    settle(page)
    page.get_by_role("link", name="Which latents carry the difference here?").click()
    expect(page.locator("h1")).to_have_text("Prompt lab")
    expect(page).to_have_url(re.compile(r"why=true"))
    expect(page.get_by_role("table", name="Latents that carry the difference")).to_be_visible()
    assert page.evaluate("window.hacked") is None
