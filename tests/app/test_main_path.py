"""The way through the app as people walk it: filters by hand and by URL, rows by keyboard, back and forward, drafts."""

import json
import re
import shutil
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from fixtures_artefacts import write_crosscoder
from fixtures_looks import write_look
from fixtures_waiting import until
from playwright.sync_api import Page, expect

from crosscope.app.frame import TITLES
from crosscope_proto.artefacts import PairManifest, version_folder
from crosscope_proto.recipe import parse_recipe
from tests.app.planted_worker import LOST, REFUSED, REST, SECRET_FOLDER
from tests.app.stack import OpenPage, Stack, settle
from tests.app.test_pages import LAB

pytestmark = pytest.mark.browser

WIDE, FLOOR = 600, -np.log(1e-5)


@pytest.fixture(scope="module")
def wide(stack: Stack) -> dict[str, np.ndarray]:
    """Columns of a crosscoder with more latents than a table shows; latent 599 has the largest cosine."""
    alone = np.linspace(0, 8, WIDE)
    alone[5] = FLOOR
    columns = {
        "base_uselessness_single": alone,
        "cosine": np.linspace(0, 0.999, WIDE),
        "nu_err": np.where(np.arange(WIDE) == 5, np.nan, 0.1),
    }
    write_crosscoder(stack.home, "wide", WIDE, columns=columns, created_at=1_600_000_000.0)
    return columns


def expect_first(page: Page, latent: int) -> None:
    expect(page.locator("tbody tr").first.locator("td").first).to_have_text(str(latent))


def test_every_filter_works_by_url_then_a_row_opens(stack: Stack, open_page: OpenPage) -> None:
    query = (
        "classes=shared&freq=-5&freq=-1&nu_err=1.5&nu_rec=1.5&template=0.9&x=max&y=cosine&colour=nu_err&order=cosine"
    )
    page = open_page(f"{stack.url}/atlas?{query}")
    for slider, value in (("ν error", "1.5"), ("template share", "0.9")):
        expect(page.get_by_role("slider", name=slider).last).to_have_value(value)
    page.locator("tbody tr").first.click()
    expect(page.locator("h1")).to_have_text(re.compile(r"Latent \d+"))
    for part in query.split("&"):
        expect(page).to_have_url(re.compile(re.escape(part)))


def test_every_filter_works_by_hand_then_a_row_opens(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/atlas")
    page.get_by_text("Filters and axes").click()
    shared = page.get_by_role("button", name="shared", exact=True)
    for count in (re.compile(r"^\d\d+ of 256 latents"), re.compile("^256 of 256 latents")):
        shared.click()
        expect(page.get_by_text(count)).to_be_visible()
        settle(page)
    page.wait_for_timeout(600)  # what would close the panel with its last filter takes half a second
    expect(shared).to_be_visible()
    expect(page.locator("details").first).to_have_attribute("open", "")
    shared.click()
    expect(page).to_have_url(re.compile("classes=shared"))
    for slider, param in (
        ("log₁₀ firing frequency", "freq="),
        ("relative norm", "rel="),
        ("ν error", "nu_err="),
        ("ν reconstruction", "nu_rec="),
        ("base uselessness, alone", "useless="),
        ("template share", "template="),
    ):
        settle(page)
        page.get_by_role("slider", name=slider).last.press("ArrowLeft")
        expect(page).to_have_url(re.compile(param))
    settle(page)
    page.get_by_role("slider", name="ν error").first.press("ArrowRight")
    expect(page).to_have_url(re.compile("nu_err=0.05&nu_err=1.95"))
    settle(page)
    page.locator("tbody tr td").nth(1).click()
    expect(page.locator("h1")).to_have_text(re.compile(r"Latent \d+"))
    expect(page).to_have_url(re.compile("nu_err=0.05&nu_err=1.95"))


def test_tab_opens_nothing_and_enter_does(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/atlas?crosscoder=demo")
    before = page.url
    rows = page.locator("tbody a")

    def reaches_the_first_row() -> bool:
        page.get_by_role("button", name="CSV").focus()
        for _ in range(20):
            page.keyboard.press("Tab")
            if rows.first.evaluate("(row) => row === row.getRootNode().activeElement"):
                return True
        return False

    until(reaches_the_first_row)  # What is drawn once more, as the chart is, takes the focus from its controls.
    expect(rows.first).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(rows.nth(1)).to_be_focused()
    page.keyboard.press("Tab")
    settle(page)
    assert page.url == before
    page.keyboard.press("Shift+Tab")
    expect(rows.nth(1)).to_be_focused()
    latent = rows.nth(1).inner_text()
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text(f"Latent {latent}")


def test_a_head_orders_all_latents_and_stays_in_focus(
    stack: Stack, open_page: OpenPage, wide: dict[str, np.ndarray]
) -> None:
    page = open_page(f"{stack.url}/atlas?crosscoder=wide")
    expect(page.get_by_text("1 to 50 of 600")).to_be_visible()
    page.get_by_role("button", name="Last").click()
    expect(page.get_by_text("551 to 600 of 600")).to_be_visible()
    expect(page).to_have_url(re.compile("page=12"))
    settle(page)
    head = page.get_by_role("link", name="rel. norm")
    head.press("Enter")
    expect(page).to_have_url(re.compile("order=-rel_norm"))
    expect(page.get_by_text("1 to 50 of 600")).to_be_visible()
    head = page.get_by_role("columnheader", name="rel. norm ↓")
    expect(head).to_have_attribute("aria-sort", "descending")
    link = head.get_by_role("link", name="rel. norm")
    expect(link).to_be_focused()
    latents = stack.client.crosscoder("wide").latents(order_by="-rel_norm", limit=1)
    expect_first(page, latents[0].id)
    link.click()
    expect(page).to_have_url(re.compile("order=rel_norm"))


def test_tables_say_what_columns_and_missing_or_largest_values_mean(
    stack: Stack, open_page: OpenPage, wide: dict[str, np.ndarray]
) -> None:
    page = open_page(f"{stack.url}/atlas?crosscoder=wide")
    expect_first(page, 5)
    evidence = page.locator("tbody tr").first.locator(".words")
    expect(evidence).to_have_text(re.compile("ν err –, ν rec .*, useless alone ≥ 11.5$"))
    assert page.locator("thead th").count() <= 6
    expect(page.locator("tbody td b").first).to_be_visible()  # a name's peak
    settle(page)
    expect(page.locator("tbody")).not_to_contain_text("**")
    expect(page.locator("td").get_by_text(re.compile("^(None|nan)$"))).to_have_count(0)
    page.get_by_role("link", name="useless alone").hover()
    tip = page.locator(".tip", has_text="≥ 11.5 is the largest value that the analysis can give")
    expect(tip).to_be_visible()
    expect(page.get_by_text(re.compile("1 lie at 11.5 in base uselessness, alone"))).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV", exact=True).click()
    names = download.value.path().read_text().splitlines()[0].split(",")
    assert {"nu_err", "nu_err_se", "nu_rec_se", "frequency_se", "mean_se", "base_uselessness_single"} <= set(names)
    page = open_page(f"{stack.url}/latent?crosscoder=wide&latent=5")
    expect(page.locator(".xs-facts", has_text="alone")).to_contain_text("≥ 11.5")
    expect(page.locator(".xs-bars", has_text="BOS")).to_contain_text("left out by the token policy")


def test_back_and_forward_walk_every_pair_of_pages(stack: Stack, open_page: OpenPage) -> None:
    write_look(stack.home, "first", PairManifest("demo", "/models/base", "/models/chat", "/models/chat"))
    page = open_page(stack.url)
    expect(page).to_have_url(re.compile("crosscoder=demo"))
    assert page.evaluate("history.length") == 2  # the empty page and this one
    sidebar = page.locator('[data-testid="stSidebar"]')
    titles = list(TITLES.values())
    expect(sidebar.get_by_role("link")).to_have_text(titles)
    main = [titles.index(each) for each in ("Overview", "Atlas", "Latent", "Prompt lab", "Jobs")]
    others = [place for place in range(len(titles)) if place not in main]
    walk = [main[place] for place in pairs(len(main))] + [place for other in others for place in (other, 0)]
    seen = [(page.locator("h1").inner_text(), page.url)]
    for place in walk[1:]:
        before = page.evaluate("history.length")
        sidebar.get_by_role("link", name=titles[place], exact=True).click()
        title = titles[place] if place else "demo"
        expect(page.locator("h1")).to_have_text(re.compile(title))
        settle(page)
        assert page.evaluate("history.length") == before + 1, f"to {title}"
        seen.append((page.locator("h1").inner_text(), page.url))
    for step, places in ((-1, seen[-2::-1]), (1, seen[1:4])):  # back over all, and forward again
        for title, url in places:
            page.evaluate(f"history.go({step})")
            expect(page.locator("h1")).to_have_text(title)
            expect(page).to_have_url(url)


def pairs(count: int) -> list[int]:
    """A walk over an odd `count` of places in which every two follow each other once (an Eulerian circuit).

    Walked back as well, every ordered pair is a step.
    """
    assert count % 2, "of an even number, name a page twice"
    left = {place: [other for other in range(count) if other != place] for place in range(count)}
    path, walk = [0], []
    while path:
        if left[path[-1]]:
            path.append(left[path[-1]].pop())
            left[path[-1]].remove(path[-2])
        else:
            walk.append(path.pop())
    return walk[::-1]


def test_back_from_the_lab_shows_the_latent_that_was_left(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/latent?latent=9&order=-max")
    page.locator(".strip").first.get_by_role("button", name="Prompt lab").click()
    expect(page.locator("h1")).to_have_text("Prompt lab")
    expect(page.locator(".strip .token").first).to_be_visible()
    page.go_back()
    expect(page.locator("h1")).to_have_text("Latent 9")
    settle(page)
    page.get_by_role("button", name="Next").click()
    expect(page.locator("h1")).not_to_have_text("Latent 9")
    page.go_back()
    expect(page.locator("h1")).to_have_text("Latent 9")
    page.go_forward()
    expect(page.locator("h1")).not_to_have_text("Latent 9")


def test_an_added_turn_is_a_draft_until_it_says_something(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/{LAB}")
    tokens = page.locator(".strip .token")
    expect(tokens).to_have_count(10)
    settle(page)
    before = tokens.all_text_contents()
    page.get_by_role("button", name="Add turn").click()
    expect(page.get_by_text("Still empty and not run: turn 3.")).to_be_visible()
    settle(page)
    expect(tokens).to_have_text(before)
    expect(page.get_by_role("alert")).to_have_count(0)
    page.get_by_label("Turn 3, user").fill(REFUSED)
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert")).to_contain_text("turn 3: the chat template refuses it")
    settle(page)  # a script that still runs draws the fields again
    page.get_by_label("Turn 1, user").fill("")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("Still empty and not run: turn 1.")).to_be_visible()
    expect(page.get_by_role("alert")).to_contain_text("turn 3: the chat template refuses it")


def test_errors_name_no_folder_of_the_server(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/lab?text={LOST}")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("…/crosscoders/demo/CURRENT cannot be read")
    expect(alert).not_to_contain_text(SECRET_FOLDER)


def test_a_character_of_two_tokens_stands_on_the_first(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/lab?text={quote('a red ' + REST)}")
    tokens = page.locator(".strip .token")
    expect(tokens).to_have_count(5)
    expect(page.locator(".strip .tokens")).to_have_text(f"<bos>a red {REST}")
    expect(tokens.nth(4)).to_have_attribute("aria-label", re.compile(r"rest of the character before\), token 4"))
    assert "⋯" in tokens.nth(4).evaluate('(token) => getComputedStyle(token, "::before").content')


def test_a_recipe_that_has_run_is_the_start_and_is_kept(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/jobs?crosscoder=demo&show=New+job")
    field = page.get_by_label("Recipe, YAML")
    recipe = json.loads(stack.client.crosscoder("demo").info.manifest_json)["recipe"]
    expect(field).to_have_value(re.compile("name: my-crosscoder"))
    start = parse_recipe(field.input_value())
    assert start.name == "my-crosscoder"
    assert start == parse_recipe(json.dumps({**recipe, "name": "my-crosscoder"}))
    page.get_by_role("button", name="Check", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("no file matches documents.jsonl")
    settle(page)
    field.fill(field.input_value().replace("documents.jsonl", "a.jsonl").replace("chats.jsonl", "a.jsonl"))
    (stack.home / "a.jsonl").write_text(
        '{"text": "a red boat", "turns": [{"role": "user", "content": "hello"}]}\n' * 40
    )
    for model in ("base", "chat"):
        save_folder(stack.home / "pairs" / "demo" / model)
    page.get_by_role("button", name="Check", exact=True).click()
    expect(page.get_by_text("The recipe is sound")).to_be_visible()
    expect(page.get_by_role("table", name="What the job would take")).to_contain_text("checkpoint")
    expect(page.get_by_text("no job worker listens now: whether it fits is unknown")).to_be_visible()
    expect(page.get_by_role("table", name="no job worker listens now: times and memory")).to_contain_text("unknown")
    expect(page.get_by_role("alert").filter(has_text="steps")).not_to_have_count(0)
    settle(page)
    page.get_by_role("radio", name="crosscoder").click()
    settle(page)
    page.get_by_role("combobox", name=re.compile("^.*variant")).click()
    page.get_by_role("option", name="l1", exact=True).click()
    expect(field).to_have_value(re.compile("variant: l1"))
    expect(field).not_to_have_value(re.compile(" k:"))  # the other variant's field went with it
    expect(page.locator(".xs-wrong")).to_contain_text("mu")
    settle(page)
    field.fill("kind: mine")
    field.blur()
    settle(page)
    page.locator('[data-testid="stSidebar"]').get_by_role("link", name="Atlas").click()
    expect(page.locator("h1")).to_have_text("Atlas")
    page.locator('[data-testid="stSidebar"]').get_by_role("link", name="Jobs").click()
    page.get_by_role("radio", name="New job").click()
    expect(field).to_have_value("kind: mine")


def save_folder(folder: Path) -> None:
    """What the server looks for in the folder of a saved model before a job runs."""
    folder.mkdir()
    (folder / "config.json").write_text('{"num_hidden_layers": 4, "hidden_size": 64}')
    (folder / "model.safetensors").write_bytes(bytes(8))


def test_a_session_keeps_its_version_until_asked(stack: Stack, open_page: OpenPage) -> None:
    first = write_crosscoder(stack.home, "moving", 16, created_at=1_500_000_000.0)
    page = open_page(f"{stack.url}/?crosscoder=moving")
    second = write_crosscoder(stack.home, "moving", 32, seed=1, created_at=1_500_000_001.0)
    link = page.locator('[data-testid="stSidebar"]').get_by_role("link", name="Overview")
    shown = page.locator(".xs-facts").first
    expect(shown).to_contain_text("16")
    for _ in range(20):  # the list of crosscoders is asked for again after two seconds
        link.click()
        settle(page)
        if page.get_by_text("A newer version was published").count():
            break
        page.wait_for_timeout(250)
    expect(shown).to_contain_text("16")
    page.get_by_role("button", name="Reload").click()
    expect(shown).to_contain_text("32")
    expect(page.get_by_text("A newer version was published")).to_have_count(0)
    assert first.version_id != second.version_id


def test_a_version_that_is_gone_is_said_and_the_newest_offered(stack: Stack, open_page: OpenPage) -> None:
    first = write_crosscoder(stack.home, "going", 16, created_at=1_500_000_000.0)
    page = open_page(f"{stack.url}/jobs?crosscoder=going")
    expect(page.locator("h1")).to_have_text("Jobs")  # drawn behind the choice of the version
    settle(page)
    second = write_crosscoder(stack.home, "going", 32, seed=1, created_at=1_500_000_001.0)
    shutil.rmtree(version_folder(stack.home, "going", first.version_id))
    page.locator('[data-testid="stSidebar"]').get_by_role("link", name="Latent", exact=True).click()
    alert = page.get_by_role("alert").filter(has_text="The version that this page shows is gone")
    expect(alert).to_contain_text(second.version_id)
    page.locator('[data-testid="stMain"]').get_by_role("button", name="Reload").click()
    expect(page.locator("h1")).to_have_text(re.compile(r"Latent \d+"))
    expect(page.get_by_text("is gone")).to_have_count(0)
