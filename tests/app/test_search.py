"""The search page in a real browser: what the SDK finds, hostile text, a wrong expression, the latent of a row."""

import pytest
from playwright.sync_api import expect

from crosscope import _tables
from tests.app.stack import OpenPage, Stack, settle

pytestmark = pytest.mark.browser


def test_a_search_shows_what_the_sdk_finds_and_opens_its_latent(stack: Stack, open_page: OpenPage) -> None:
    found = stack.client.crosscoder("demo").search(" help", ["example"])
    page = open_page(f"{stack.url}/search?crosscoder=demo&text=+help&in=example")
    table = page.get_by_role("table", name="Latents found")
    expect(table.locator("tbody tr")).to_have_count(20)
    expect(table).to_contain_text("⟦ help⟧")
    num = _tables.count(found.num_matching)
    expect(page.get_by_text(f"{num} latents: examples {num}.")).to_be_visible()
    table.locator("tbody tr").first.get_by_role("link").first.click()
    expect(page.locator("h1")).to_have_text(f"Latent {found[0].latent.id}")
    page.go_back()
    expect(page.locator("h1")).to_have_text("Search")
    settle(page)
    page.get_by_role("textbox", name="Text").fill("<b>**x</b>")
    page.get_by_role("textbox", name="Text").press("Enter")
    expect(page.get_by_text("No latent was found.")).to_be_visible()
    page = open_page(f"{stack.url}/search?crosscoder=demo&text=a**&regex=true")
    expect(page.locator('[data-testid="stAlert"]')).to_contain_text("bad repetition operator at character 1")
