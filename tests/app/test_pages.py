"""Every page in a real browser, against a real server with planted artefacts."""

import contextlib
import json
import re
from urllib.parse import quote

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.app.stack import NUM_LATENTS, OpenPage, Stack, settle

pytestmark = pytest.mark.browser

TURNS = [["user", "bake some <img src=x onerror=window.hacked=1> bread"], ["assistant", "first\n\nflour"]]
LAB = f"lab?crosscoder=demo&turns={quote(json.dumps(TURNS))}"
STEER = f"steer?crosscoder=demo&turns={quote(json.dumps(TURNS[:1]))}&steer=7+add+4&steer=3,5+ablate"
CHART, TOKEN = ".js-plotly-plot .main-svg", ".strip .token"
PAGES = {
    "": CHART,
    "atlas": CHART,
    "latent?latent=7": TOKEN,
    LAB: TOKEN,
    "jobs": "textarea",
    STEER: "textarea",
    "labels": "input[type=file]",
}
"""Paths, and what each page draws late."""
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


def errors_on(page: Page) -> list[str]:
    return page.locator('[data-testid="stException"], [data-testid="stAlert"]').all_inner_texts()


@pytest.mark.parametrize("path", PAGES, ids=("overview", "atlas", "latent", "lab", "jobs", "steer", "labels"))
def test_page_draws_without_errors_overlaps_or_sideways_scrolling(stack: Stack, open_page: OpenPage, path: str) -> None:
    page = open_page(f"{stack.url}/{path}", width=390, dark=True)
    page.locator(PAGES[path]).first.wait_for()
    for width in (390, 900, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        settle(page)
        page.wait_for_function(FITS)
        assert page.evaluate(OVERLAPS) == [], width
        assert errors_on(page) == []


def test_overview_tells_what_the_server_knows_and_a_bar_opens_the_atlas(stack: Stack, open_page: OpenPage) -> None:
    info = stack.client.crosscoder("demo").info
    page = open_page(stack.url)
    expect(page.locator("h1")).to_have_text("demo")
    facts = page.locator(".xs-facts").first
    for shown in ("0.987", "0.981", "11.8", "batch_topk", "documents, chats"):
        expect(facts).to_contain_text(shown)
    expect(page.locator(".xs-bars").first).to_contain_text(str(info.class_counts["chat_only"]))
    expect(page.locator(".js-plotly-plot")).to_have_count(1)
    expect(page.get_by_text("Planted behaviours")).to_be_visible()
    expect(page).to_have_url(re.compile("crosscoder=demo"))
    chart = page.locator(".js-plotly-plot")
    expect(chart.locator(".bars")).not_to_have_count(0)
    x, y = chart.evaluate(
        """(chart) => {
            const layout = chart._fullLayout, box = chart.getBoundingClientRect();
            const bars = chart._fullData.find((bars) => bars.name === "chat-only");
            const tallest = bars.y.indexOf(Math.max(...bars.y));
            const x = layout.xaxis.l2p(bars.x[tallest]), y = layout.yaxis.l2p(Math.log10(bars.y[tallest]));
            return [box.left + layout.xaxis._offset + x, box.top + layout.yaxis._offset + y + 5];
        }"""
    )
    page.mouse.move(x, y)
    expect(chart.locator(".hovertext").first).to_contain_text("relative norm")
    page.mouse.click(x, y)
    expect(page.locator("h1")).to_have_text("Atlas")
    low, high = (float(value) for value in re.findall(r"[\d.]+", re.findall(r"rel=([^&]+)", page.url)[0]))
    assert high - low == pytest.approx(0.02)
    assert 0.8 < low < 1


def test_atlas_filters_from_its_url_and_counts(stack: Stack, open_page: OpenPage) -> None:
    crosscoder = stack.client.crosscoder("demo")
    page = open_page(f"{stack.url}/atlas?classes=chat_only&nu_err=0.5")
    matching = crosscoder.latents(["latent_class = chat_only", "nu_err <= 0.5"]).num_matching
    assert 0 < matching < NUM_LATENTS
    expect(page.get_by_text(f"{matching} latents", exact=True)).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV", exact=True).click()
    lines = download.value.path().read_text().splitlines()
    assert len(lines) == matching + 1
    assert lines[0].startswith("id,latent_class,")


PLACES = """(chart) => {
    const layout = chart._fullLayout, box = chart.getBoundingClientRect(), points = chart._fullData[0];
    const x = (value) => box.left + layout.xaxis._offset + layout.xaxis.l2p(value);
    const y = (value) => box.top + layout.yaxis._offset + layout.yaxis.l2p(value);
    return Array.from(points.customdata).map((id, i) => [id, x(points.x[i]), y(points.y[i])]);
}"""
"""Latents of a scatter plot and where they lie on the screen."""


def test_drag_in_the_atlas_chooses_and_a_click_opens_a_latent_of_the_set(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/atlas?classes=base_only")
    chart = page.locator(".js-plotly-plot")
    expect(chart.locator(".point").first).to_be_visible()
    places = chart.evaluate(PLACES)
    _, x, y = places[0]
    inside = [other for other, px, py in places if abs(px - x) < 60 and abs(py - y) < 60]
    page.mouse.move(x - 60, y - 60)
    page.mouse.down()
    page.mouse.move(x + 60, y + 60, steps=5)
    page.mouse.up()
    expect(page).to_have_url(re.compile("area="))
    expect(page.get_by_text(re.compile(f"^{len(inside)} latents$"))).to_be_visible()
    page.get_by_role("button", name="Clear the area").click()
    expect(page).not_to_have_url(re.compile("area="))
    settle(page)
    latent, x, y = _hover(page, chart)
    page.mouse.click(x, y)
    expect(page.locator("h1")).to_have_text(f"Latent {latent}")
    expect(page).to_have_url(re.compile("classes=base_only"))
    settle(page)
    page.get_by_role("button", name="Next").click()
    expect(page.locator("h1")).not_to_have_text(f"Latent {latent}")


def _hover(page: Page, chart: Locator) -> tuple[int, float, float]:
    """Moves the mouse to the first point until the chart names its latent; returns the latent and the place.

    A chart that is drawn again drops its label, and says nothing to a mouse that stands still.
    """
    for _ in range(30):
        latent, x, y = chart.evaluate(PLACES)[0]
        page.mouse.move(x + 40, y + 40)
        page.mouse.move(x, y, steps=2)
        with contextlib.suppress(AssertionError):
            expect(chart.locator(".hovertext")).to_contain_text(f"latent {latent}", timeout=1000)
            return latent, x, y
    raise AssertionError(f"the chart names no latent at {x}, {y}")


def test_latent_shows_class_evidence_and_examples_of_the_server(stack: Stack, open_page: OpenPage) -> None:
    latent = stack.client.crosscoder("demo").latent(7)
    page = open_page(f"{stack.url}/latent?latent=7")
    expect(page.locator("h1")).to_have_text("Latent 7")
    evidence = page.locator(".xs-evidence")
    for shown in (
        latent.latent_class.replace("_", "-"),
        f"relative norm {latent.rel_norm:.3g}",
        f"ν error {latent.nu_err:.3g} ± {latent.chat_direction.nu_err.se:.2g}",
        f"ν reconstruction {latent.nu_rec:.3g} ± {latent.chat_direction.nu_rec.se:.2g}",
        "base uselessness",
        "active tokens",
    ):
        expect(evidence).to_contain_text(shown)
    example = latent.examples(limit=1, context=32)[0]
    strip = page.locator(".strip").first
    expect(strip.locator(".token")).to_have_count(len(example.tokens))
    assert strip.locator(".token").all_text_contents() == list(example.tokens.pieces)
    active = strip.locator(".token.on")
    expect(active).to_have_count(len(example.positions))
    peak = strip.locator(".token").nth(example.peak)
    label = peak.get_attribute("aria-label") or ""
    shown = re.search(r"activation ([\d.]+) of latent 7", label)
    assert shown is not None
    assert float(shown[1]) == pytest.approx(example.max, abs=0.06)
    page.get_by_role("button", name="More examples").click()
    expect(page.locator(".strip")).to_have_count(20)


def test_token_view_works_by_keyboard_and_keeps_the_lock_in_the_url(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/{LAB}")
    tokens = page.locator(".strip .token")
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(2)).to_be_focused()
    expect(tokens.nth(2)).to_have_attribute("aria-label", "bake, token 2, user, activation 1.50 of latent 1")
    expect(page.locator(".tip", has_text="latent 1")).to_be_visible()
    outline = tokens.nth(2).evaluate("(node) => getComputedStyle(node).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("token=2"))
    expect(page.get_by_role("heading", name="Token 2: bake")).to_be_visible()
    page.reload()
    expect(page.locator(".token.locked")).to_have_text("bake")
    page.locator(".token.locked").focus()
    page.keyboard.press("Escape")
    expect(page).not_to_have_url(re.compile("token="))


def test_lab_shows_text_as_text_and_leaves_tokens_out_unless_asked(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/{LAB}")
    expect(page.get_by_text("7 of 7 latents that fire")).to_be_visible()
    expect(page.locator(".strip .token", has_text="<img")).to_have_count(1)
    assert page.evaluate("window.hacked") is None
    assert page.locator(".strip img").count() == 0
    assert "first\n\nflour" in "".join(page.locator(".strip .token").all_text_contents())
    bos = page.locator(".strip .token").first
    expect(bos).to_have_class(re.compile("left-out"))
    expect(bos).to_have_attribute("aria-label", re.compile("left out of training and analysis: it is BOS"))
    expect(page.locator(".scale")).to_contain_text("10.5")  # the seventh word's, not the 500 of BOS
    expect(page.get_by_text("does not print all of the reasoning of turn 2")).to_be_visible()
    settle(page)
    page.get_by_text("Template tokens").click()
    expect(page).to_have_url(re.compile("with_template=true"))
    settle(page)
    expect(page.get_by_text("1 token is not ranked")).to_be_visible()
    expect(page.get_by_text("7 of 7 latents that fire")).to_be_visible()
    page.get_by_text("Left-out tokens").click()
    expect(page.get_by_text("8 of 8 latents that fire")).to_be_visible()
    expect(page).to_have_url(re.compile("with_left_out=true"))
    settle(page)
    page.get_by_role("button", name="3", exact=True).click()
    expect(page.get_by_role("heading", name="Latent 3")).to_be_visible()
    settle(page)
    expect(page).to_have_url(re.compile("by=3"))
    expect(page.locator(".strip .token.on")).to_have_count(1)
    page.get_by_text("Copy as Python").click()
    expect(page.locator("code", has_text="crosscoder.top_latents(")).to_contain_text("'role': 'user'")


def test_typed_prompt_runs_and_stands_in_the_url(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/lab")
    page.get_by_placeholder("What the user says").fill("hello there")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".strip .token")).to_have_text(["<bos>", "<start_of_turn>", "hello", " there"])
    expect(page).to_have_url(re.compile("hello"))


def test_jobs_are_checked_submitted_and_cancelled(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/jobs")
    recipe = page.get_by_label("Recipe, YAML")
    expect(recipe).to_have_value(re.compile("layer: 2"))
    good = recipe.input_value()
    recipe.fill(good.replace("layer: 2", "layer: 2\nlayr: 3"))
    page.get_by_role("button", name="Check").click()
    expect(page.get_by_role("alert")).to_contain_text("layr")
    recipe.fill(good)
    page.get_by_role("button", name="Submit", exact=True).click()
    expect(page.get_by_text("Queued as")).to_be_visible()
    expect(page.get_by_text("my-crosscoder · crosscoder · queued")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("my-crosscoder · crosscoder · cancelled")).to_be_visible()
    settle(page)
    page.get_by_role("button", name="Retry from its checkpoints").click()
    expect(page.get_by_text("my-crosscoder · crosscoder · queued")).to_be_visible()
    settle(page)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("my-crosscoder · crosscoder · cancelled")).to_be_visible()
