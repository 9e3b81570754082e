"""How well automatic labels fit, as an order: the same in every table, for J and K, in the SDK and on the server."""

import re
from collections.abc import Iterator, Sequence

import pytest
from playwright.sync_api import Page, expect

from crosscope import Crosscoder
from tests.app.stack import OpenPage, Stack, settle

pytestmark = pytest.mark.browser

SCORES = {4: 0.5, 9: 0.75, 11: 0.75, 20: 1.0}
"""By latent. A person's label stands in the place of that of latent 9; latent 30 has a label without a score."""


@pytest.fixture
def scored(stack: Stack) -> Iterator[Crosscoder]:
    demo = stack.client.crosscoder("demo")
    for latent, score in SCORES.items():
        scores = {"detection": score, "detection_se": 0.05, "detection_n": 40.0}
        demo.annotations.label(latent, "endings", by_program="some-model", scores=scores)
    demo.annotations.label(30, "endings", by_program="some-model")
    demo.annotations.label(9, "a person's endings")
    yield demo
    for latent in (*SCORES, 30):
        demo.annotations.label(latent, None)
        demo.annotations.label(latent, None, by_program="")


def expect_rows(page: Page, table: str, ids: Sequence[int]) -> None:
    """Waits until the first rows of a table are of these latents."""
    rows = page.get_by_role("table", name=table).locator("tbody td:first-child")
    for row, latent in enumerate(ids):
        expect(rows.nth(row)).to_have_text(str(latent))


def test_a_head_orders_labels_the_atlas_and_search_as_the_sdk_does(
    stack: Stack, open_page: OpenPage, scored: Crosscoder
) -> None:
    best = [latent.id for latent in scored.latents(order_by="-detection", limit=6)]
    assert best[:4] == [20, 9, 11, 4]  # equal ones by id, those without a score last
    page = open_page(f"{stack.url}/labels?crosscoder=demo")
    expect_rows(page, "Latents with words", [4, 9, 11, 20, 30])
    head = page.get_by_role("table", name="Latents with words").get_by_role("link", name="detection")
    head.click()
    expect(head).to_have_text("detection ↓")
    settle(page)
    expect_rows(page, "Latents with words", [20, 9, 11, 4, 30])
    fit = page.get_by_role("table", name="Latents with words").locator("tbody tr td:nth-child(3)")
    expect(fit.nth(1)).to_contain_text("detection (0.75 n 40) ± 0.05")  # not of the label that is shown
    expect(fit.nth(4)).to_contain_text("detection –")
    head.click()
    expect(head).to_have_text("detection ↑")
    settle(page)
    expect_rows(page, "Latents with words", [4, 9, 11, 20, 30])

    page = open_page(f"{stack.url}/atlas?crosscoder=demo&order=-detection")
    expect(page.get_by_text("fit of the label (detection), highest first").first).to_be_visible()
    expect(page.get_by_text(re.compile("252 of 256 have no fit of the label"))).to_be_visible()
    expect_rows(page, "Latents", best)
    page.get_by_role("table", name="Latents").get_by_role("link", name="9", exact=True).click()
    expect(page.get_by_text("2 of 256 · fit of the label (detection), highest first")).to_be_visible()
    page.locator(".strip .token").first.wait_for()
    settle(page)
    page.keyboard.press("j")
    expect(page.locator("h1")).to_have_text("Latent 11")

    page = open_page(f"{stack.url}/search?crosscoder=demo&text=endings&in=label&order=-detection")
    found = [each.latent.id for each in scored.search("endings", ["label"], order_by="-detection")]
    assert found == [20, 9, 11, 4, 30]
    expect_rows(page, "Latents found", found)
    page.get_by_role("button", name="Best matches first").click()
    expect(page).not_to_have_url(re.compile("order="))
