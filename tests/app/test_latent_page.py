"""A latent's page beyond its figures: a text of one's own, a second latent beside it, copies, provenance."""

import json
import re

import pytest
from playwright.sync_api import expect

from crosscope import ExampleGroup
from tests.app.stack import OpenPage, Stack, settle

pytestmark = pytest.mark.browser


def test_a_text_of_ones_own_shows_where_one_latent_fires_and_two(stack: Stack, open_page: OpenPage) -> None:
    """The planted worker fires latent n on word n, 1.5 n strong: 3 on the third of five words, 4 on the fourth."""
    most = stack.client.crosscoder("demo").latent(3).max
    page = open_page(f"{stack.url}/latent?latent=3")
    page.get_by_role("textbox", name="Try a text").fill("one two three four five")
    page.keyboard.press("Enter")
    said = f"Latent 3 fires on 1 of 6 tokens, most on “␣three”: 4.5, {4.5 / most:.0%} of its largest."
    expect(page.get_by_text(said)).to_be_visible()
    expect(page).to_have_url(re.compile("try=one"))
    trial = page.locator(".st-key-trial")
    expect(trial.locator(".token.on")).to_have_text([" three"])
    settle(page)
    page.get_by_role("spinbutton", name="Compare with latent").fill("4")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("beside=4"))
    expect(page.get_by_text("Latent 4 fires on 1 of 6 tokens, most on “␣four”: 6")).to_be_visible()
    expect(trial.locator(".token.split")).to_have_text([" three", " four"])
    name = "␣four, token 4, text, silence of latent 3, activation 6.00 of latent 4"
    expect(trial.get_by_role("button", name=name)).to_be_visible()
    expect(page.get_by_role("heading", name="Latents 3 and 4")).to_be_visible()
    rows = page.locator("table[aria-label='Figures of both latents'] tbody tr")
    expect(rows.filter(has_text="max activation")).to_contain_text(f"{most:.3g}")
    page.get_by_role("button", name="Next").click()
    expect(page.locator("h1")).not_to_have_text("Latent 3")
    assert "beside=4" in page.url
    page.get_by_role("button", name="Close the comparison").click()
    expect(page.get_by_role("heading", name="Where it comes from")).to_be_visible()


def test_an_example_is_copied_shown_whole_and_marked_in_the_histogram(stack: Stack, open_page: OpenPage) -> None:
    crosscoder = stack.client.crosscoder("demo")
    latent = crosscoder.latent(7)
    found = crosscoder.examples(7, limit=40, group=ExampleGroup.TOP, context=8)
    example = found[0]
    page = open_page(f"{stack.url}/latent?latent=7&context=8&group=top")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=stack.url)
    strip = page.locator(".strip").first
    strip.get_by_role("button", name="Copy", exact=True).click()
    copied = {}
    for shape in ("text", "tokens", "JSON"):
        strip.get_by_role("button", name=f"Copy as {shape}").click()
        expect(strip.get_by_role("button", name=f"Copy as {shape}")).to_have_text(f"{shape} ✓")
        copied[shape] = page.evaluate("navigator.clipboard.readText()")
    assert copied["text"] == "".join(example.tokens.pieces)
    assert json.loads(copied["tokens"]) == list(example.tokens.pieces)
    written = json.loads(copied["JSON"])
    fired = [(each["token"], each["latent"]) for each in written["activations"]]
    assert fired == [(position, 7) for position in example.positions]
    assert written["first_token"] == example.token_start
    strip.locator(".token.on").first.hover()
    expect(page.locator(".marker text")).to_have_text(re.compile(r"^[\d.]+$"))
    page.locator("h1").hover()
    expect(page.locator(".marker")).to_have_count(0)
    cut = next(i for i, each in enumerate(found) if len(each.tokens) < each.num_tokens)
    whole = crosscoder.examples(7, limit=40, group=ExampleGroup.TOP)[cut]
    page.locator(".strip").nth(cut).get_by_role("button", name="Whole text").click()
    expect(page.locator(".strip").nth(cut).locator(".token")).to_have_count(whole.num_tokens)
    expect(page).to_have_url(re.compile("whole=top"))
    page.get_by_role("button", name="Less text").click()
    expect(page.locator(".strip").nth(cut).locator(".token")).to_have_count(len(found[cut].tokens))
    facts = page.locator("table[aria-label='Where it comes from']")
    expect(facts).to_contain_text(latent.version_id)
    expect(facts).to_contain_text(json.loads(crosscoder.info.manifest_json)["hashes"]["crosscoder.safetensors"])
