"""Every page in a real browser, against a real server with planted artefacts."""

import json
import re
from urllib.parse import parse_qs, quote, urlsplit

import numpy as np
import pytest
from playwright.sync_api import expect

from crosscope import _tables
from crosscope.app.columns import ATLAS_COLUMNS, complete
from crosscope.app.selection import Selection
from crosscope_proto.causal_columns import CAUSAL_COLUMNS
from tests.app.stack import NUM_LATENTS, OpenPage, Stack, settle
from tests.fixtures_artefacts import write_crosscoder

pytestmark = pytest.mark.browser

TURNS = [["user", "bake some <img src=x onerror=window.hacked=1> bread"], ["assistant", "first\n\nflour"]]
LAB = f"lab?crosscoder=demo&turns={quote(json.dumps(TURNS))}"
STEER = f"steer?crosscoder=demo&turns={quote(json.dumps(TURNS[:1]))}&steer=7+add+4&steer=3,5+ablate"
CHART = ".points[data-drawn]"


def test_overview_tells_what_the_server_knows_and_a_bar_opens_the_atlas(stack: Stack, open_page: OpenPage) -> None:
    info = stack.client.crosscoder("demo").info
    page = open_page(stack.url)
    expect(page.locator("h1")).to_have_text("demo")
    facts = page.locator(".xs-facts").first
    for shown in ("0.987", "0.981", "11.8", "batch_topk", "documents, chats"):
        expect(facts).to_contain_text(shown)
    expect(page.locator(".xs-bars").first).to_contain_text(str(info.class_counts["chat_only"]))
    expect(page.get_by_text("Planted behaviours")).to_be_visible()
    expect(page).to_have_url(re.compile("crosscoder=demo"))
    expect(page.locator(".js-plotly-plot")).to_have_count(0)  # nothing of the first page needs a plotting library
    bars = page.get_by_role("link", name=re.compile("^relative norm .*, chat-only$"))
    bars.last.hover()
    expect(page.locator(".tip", has_text="relative norm")).to_contain_text("latents, chat-only")
    bars.last.click()
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
    assert lines[0].startswith("id,latent_class,verdict,specific_to,")


def test_a_verdict_stands_beside_the_class_and_filters_by_url_and_by_hand(stack: Stack, open_page: OpenPage) -> None:
    crosscoder = stack.client.crosscoder("demo")
    where = ["latent_class = chat_only", "verdict = contradicted"]
    found = crosscoder.latents(where, order_by="-base_uselessness_single", limit=None)
    assert 0 < len(found) < crosscoder.latents(where[:1]).num_matching
    page = open_page(f"{stack.url}/atlas?classes=chat_only")
    page.get_by_text("Filters and axes").wait_for()
    page.get_by_role("button", name="contradicted", exact=True).click()
    expect(page).to_have_url(re.compile("verdict=contradicted"))
    settle(page)
    expect(page.get_by_text(f"{len(found)} latents", exact=True)).to_be_visible()
    cells = page.locator("tbody tr").first.locator("td")
    expect(cells.nth(2)).to_have_text("chat-only · contradicted")
    page.get_by_role("link", name="class", exact=True).click()
    expect(page).to_have_url(re.compile("order=verdict"))
    settle(page)
    page.locator("tbody tr").first.click()
    expect(page.locator("h1")).to_have_text(f"Latent {found[0].id}")
    expect(page.locator(".xs-verdict")).to_have_text(str(found[0].verdict))
    expect(page.get_by_text(f"1 of {len(found)} · verdict, best first")).to_be_visible()


@pytest.fixture(scope="module")
def judged(stack: Stack) -> str:
    """A crosscoder in which base lacks latents 3 (class other), 5 and 7 (chat-only, 7 with a doubt), and no others.

    In latent 9 each model lacks the other's row.
    """
    ids = np.arange(40)
    lacks_chat, lacks_base = np.isin(ids, [3, 5, 7, 9]), ids == 9
    columns = {name: np.where(lacks_chat, value, 0.9) for name, value in (("nu_err", 0.05), ("nu_rec", 0.1))}
    columns |= {f"mirror_{name}": np.where(lacks_base, 0.05, 0.9) for name in ("nu_err", "nu_rec")}
    columns |= {f"{name}_se": np.full(40, 0.01) for name in tuple(columns)}
    columns |= {column.name: np.full(40, np.nan) for column in CAUSAL_COLUMNS}
    columns["latent_class"] = np.where(np.isin(ids, [5, 7]), "chat_only", np.where(ids == 3, "other", "shared"))
    columns["rel_norm"] = np.where(np.isin(ids, [5, 7]), 0.95, np.where(ids == 3, 0.7, 0.5))
    columns |= {"num_active": np.full(40, 900), "num_texts": np.full(40, 90)}
    columns |= {"beta_act_no_bias_base": np.where(ids == 7, 0.4, 0.1), "beta_act_no_bias_chat": np.ones(40)}
    columns["base_uselessness_single"] = np.select([ids == 3, ids == 5, ids == 7], [2.0, 4.0, 9.0], 0.1)
    write_crosscoder(stack.home, "judged", 40, columns=columns, created_at=1_500_000_000.0)
    return f"{stack.url}/{{}}?crosscoder=judged"


def test_the_most_telling_latents_are_those_that_base_lacks(judged: str, open_page: OpenPage) -> None:
    page = open_page(judged.format(""))
    expect(page.get_by_text("whatever their class: 3, of which 2 have the verdict “supported”")).to_be_visible()
    expect(page.locator(".xs-bars").first).to_contain_text("2, 1 supported")
    table = page.locator('table[aria-label="Most telling latents"] tbody')
    expect(table.locator("td:nth-child(1)")).to_have_text(["5", "3", "7"])
    expect(page.get_by_role("link", name="1 with a row of its own in each model")).to_be_visible()
    kinds = ["chat-only · supported", "other · specific to chat", "chat-only · weak"]
    expect(table.locator("td:nth-child(3)")).to_have_text(kinds)
    table.locator("tr").nth(1).click()
    expect(page.locator("h1")).to_have_text("Latent 3")
    expect(page.get_by_text("2 of 3 · verdict, best first")).to_be_visible()
    reasons = "supported: ν err 0.05 ± 0.01 < 0.2, ν rec 0.1 ± 0.01 < 0.5; specific to chat"
    expect(page.locator(".xs-verdict")).to_have_text(reasons)
    settle(page)
    page.get_by_role("button", name="Next").click()
    expect(page.locator(".xs-verdict")).to_have_text("weak: activation ratio 0.4 > 0.15; specific to chat")


PLACES = "(points) => points.places()"
"""Latents of the scatter plot and where they lie on the screen."""


def test_drag_in_the_atlas_chooses_and_a_click_opens_a_latent_of_the_set(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/atlas?classes=base_only")
    chart = page.locator(CHART)
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
    latent, x, y = chart.evaluate(PLACES)[0]
    page.mouse.move(x, y)
    tip = page.locator(".points .tip")
    expect(tip).to_contain_text("base uselessness")
    latent = re.findall(r"latent (\d+)", tip.inner_text())[0]
    page.mouse.click(x, y)
    expect(page.locator("h1")).to_have_text(f"Latent {latent}")
    expect(page).to_have_url(re.compile("classes=base_only"))
    settle(page)
    page.get_by_role("button", name="Next").click()
    expect(page.locator("h1")).not_to_have_text(f"Latent {latent}")


def test_points_are_reached_by_arrow_keys(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/atlas")
    chart = page.locator(CHART)
    places = {latent: (x, y) for latent, x, y in chart.evaluate(PLACES)}
    assert len(places) > NUM_LATENTS / 2
    chart.focus()
    said = page.locator(".said")
    seen = []
    for key in ("ArrowRight", "ArrowRight", "ArrowUp"):
        page.keyboard.press(key)
        expect(said).to_contain_text("latent")
        seen.append(int(re.findall(r"latent (\d+)", said.inner_text())[0]))
    assert places[seen[0]][0] < places[seen[1]][0]
    assert places[seen[2]][1] < places[seen[1]][1]
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text(f"Latent {seen[2]}")


def test_a_lasso_chooses_what_lies_in_it_and_pales_the_rest(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/atlas")
    chart = page.locator(CHART)
    page.get_by_role("button", name="lasso").click()
    box = chart.bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    corners = [(x, y - 150), (x + 150, y + 100), (x - 150, y + 100)]
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in (*corners[1:], corners[0]):
        page.mouse.move(*corner, steps=8)
    page.mouse.up()
    expect(page).to_have_url(re.compile("area="))
    params = parse_qs(urlsplit(page.url).query)
    columns = stack.client.crosscoder("demo").columns(*ATLAS_COLUMNS, only_known=True).read()
    chosen = Selection.from_params(params).ids(complete(columns))
    assert 0 < len(chosen) < NUM_LATENTS
    expect(page.get_by_text(f"{len(chosen)} latents", exact=True)).to_be_visible()


def test_latent_shows_class_evidence_and_examples_of_the_server(stack: Stack, open_page: OpenPage) -> None:
    latent = stack.client.crosscoder("demo").latent(7)
    page = open_page(f"{stack.url}/latent?latent=7")
    expect(page.locator("h1")).to_have_text("Latent 7")
    evidence = page.locator(".xs-evidence")
    for shown in (
        latent.latent_class.replace("_", "-"),
        f"relative norm {_tables.number(latent.rel_norm)}",
        f"ν error {latent.nu_err:.3g} ± {latent.chat_direction.nu_err.se:.2g}",
        f"ν reconstruction {latent.nu_rec:.3g} ± {latent.chat_direction.nu_rec.se:.2g}",
        "base uselessness",
        "active tokens",
    ):
        expect(evidence).to_contain_text(shown)
    example = latent.examples(limit=1, context=32)[0]
    strip = page.locator(".strip").first
    expect(strip.locator(".token")).to_have_count(len(example.tokens))
    expect(strip.locator(".tokens")).to_contain_text("".join(example.tokens.pieces).strip())
    active = strip.locator(".token.on")
    expect(active).to_have_count(len(example.positions))
    peak = strip.locator(".token").nth(example.peak)
    expect(peak).to_have_attribute("aria-label", re.compile("activation .* of latent 7"))
    label = peak.get_attribute("aria-label") or ""
    shown = re.search(r"activation ([\d.]+) of latent 7", label)
    assert shown is not None
    assert float(shown[1]) == pytest.approx(example.max, abs=0.06)
    expect(page.get_by_text("Silent on the same token")).to_be_visible()
    expect(page.locator(".strip .head", has_text="silent on")).to_have_count(4)
    expect(page.get_by_text(re.compile("silent texts were found"))).to_be_visible()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save as HTML").click()
    assert f"<h2>Latent {latent.id}</h2>" in saved.value.path().read_text("utf-8")
    page.get_by_text("top", exact=True).click()
    page.get_by_role("button", name="More examples").click()
    expect(page.get_by_role("button", name="More examples")).to_have_count(0)


def test_token_view_works_by_keyboard_and_keeps_the_lock_in_the_url(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/{LAB}&shade=latents")
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
    page = open_page(f"{stack.url}/{LAB}&shade=latents")
    expect(page.get_by_text("7 of 7 latents that fire")).to_be_visible()
    expect(page.locator(".strip .token", has_text="<img")).to_have_count(1)
    assert page.evaluate("window.hacked") is None
    expect(page.locator(".strip img")).to_have_count(0)
    expect(page.locator(".strip .token", has_text="flour")).to_have_count(1)
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
    page = open_page(f"{stack.url}/jobs?show=New+job")
    recipe = page.get_by_label("Recipe, YAML")
    expect(recipe).to_have_value(re.compile("layer: 2"))
    good = recipe.input_value()
    recipe.fill(good.replace("layer: 2", "layer: 2\nlayr: 3"))
    page.get_by_role("button", name="Check").click()
    expect(page.get_by_role("alert")).to_contain_text("layr")
    settle(page)
    recipe.fill(good)
    page.get_by_role("button", name="Submit", exact=True).click()
    expect(page.get_by_text("Queued as")).to_be_visible()
    settle(page)
    expect(page.get_by_text("my-crosscoder · crosscoder · queued")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("my-crosscoder · crosscoder · cancelled")).to_be_visible()
    settle(page)
    page.get_by_role("button", name="Retry from its checkpoints").click()
    expect(page.get_by_text("my-crosscoder · crosscoder · queued")).to_be_visible()
    settle(page)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("my-crosscoder · crosscoder · cancelled")).to_be_visible()


def test_a_chosen_theme_holds_on_every_page(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(stack.url)
    app = "document.querySelector('.stApp')"
    shows = f"(colour) => {app} && getComputedStyle({app}).backgroundColor === colour"
    for name, colour in (("dark", "rgb(20, 23, 27)"), ("as the system", "rgb(253, 253, 252)")):
        page.get_by_label("Theme").select_option(label=name)
        page.wait_for_function(shows, arg=colour)
        page.goto(f"{stack.url}/jobs")
        page.get_by_label("Theme").wait_for()
        settle(page)
        assert page.evaluate(shows, colour)
