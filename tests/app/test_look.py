"""The page of looks: which layer, which tokens, what both models say."""

import re

import pytest
from fixtures_looks import write_look
from playwright.sync_api import expect

from crosscope_proto.artefacts import PairManifest
from tests.app.stack import OpenPage, Stack, settle
from tests.app.test_walks import FITS, OVERLAPS, errors_on

pytestmark = pytest.mark.browser


def test_a_look_says_which_layer_and_shows_what_differs(stack: Stack, open_page: OpenPage) -> None:
    write_look(stack.home, "first", PairManifest("demo", "/models/base", "/models/chat", "/models/chat"))
    page = open_page(f"{stack.url}/look?crosscoder=demo&finding=0", width=390, dark=True)
    expect(page.get_by_text("Layer 2 of 4 is the lowest swept layer that carries enough.")).to_be_visible()
    expect(page.locator("code", has_text="layer: 2")).to_be_visible()
    facts = page.locator(".xs-facts").first
    for shown in ("2 ± 0.5", "66%", "of 3 texts: chat"):
        expect(facts).to_contain_text(shown)
    expect(page.get_by_text("not measured, logit_lens_base: it has none")).to_be_visible()
    expect(page.locator(".js-plotly-plot .scatter")).to_have_count(2)  # both directions
    rows = page.get_by_role("table", name="Tokens that differ most").locator("tbody tr")
    for place, cell in enumerate(("8", "e", "␣the 61%", "Sorry 90%")):
        expect(rows.first.locator("td").nth(place)).to_have_text(cell)
    for model, first in (("base", ["1", "60.7%", "␣the"]), ("chat", ["1", "90.5%", "Sorry"])):
        table = page.get_by_role("table", name=f"Next tokens of {model}")
        expect(table.locator("tbody tr").first.locator("td")).to_have_text(first)
    expect(page.locator(".token.locked")).to_have_text("e")
    label = re.compile(r"^e, token 1, user, KL\(chat‖base\), nats: 8\.00$")
    expect(page.locator(".token.locked")).to_have_attribute("aria-label", label)
    expect(page.get_by_text("the fox …")).to_be_visible()  # base did not end by itself
    expect(page.get_by_text("Sorry, I can't.")).to_be_visible()
    expect(page.get_by_role("table", name="First positions")).to_contain_text("␣sorry")
    for width in (390, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        settle(page)
        page.wait_for_function(FITS)
        assert page.evaluate(OVERLAPS) == [], width
    assert errors_on(page) == []
    rows.nth(1).click()
    expect(page).to_have_url(re.compile("finding=1"))
    expect(page.locator(".token.locked")).to_have_text("b")
    page.get_by_role("button", name="Prompt lab").first.click()
    expect(page.locator("h1")).to_have_text("Prompt lab")
    expect(page).to_have_url(re.compile("shade=kl"))
