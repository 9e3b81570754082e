"""Labels in a real browser: written in place, shown wherever latents are, walked as a list, exported and imported."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.app.stack import OpenPage, Stack, settle

pytestmark = pytest.mark.browser


def test_labels_are_written_shown_walked_and_imported(stack: Stack, open_page: OpenPage, tmp_path: Path) -> None:
    demo = stack.client.crosscoder("demo")
    words = demo.annotations
    words.label(9, "second <b>of</b> the list")
    words.create_list("mine", [9, 4])
    scores = {"detection": 0.82, "detection_se": 0.05, "detection_n": 40.0}
    for latent in (4, 9):
        words.label(latent, "endings", by_program="some-model", scores=scores)
    page = open_page(f"{stack.url}/latent?crosscoder=demo&latent=7")
    expect(page.get_by_role("textbox", name="Label")).to_have_attribute(
        "placeholder", demo.latent(7).name.replace("**", "")
    )
    page.get_by_role("textbox", name="Label").fill("refusals")
    page.get_by_role("textbox", name="Label").press("Enter")
    settle(page)
    page.get_by_role("button", name="☆").click()
    expect(page.get_by_role("button", name="★")).to_be_visible()
    settle(page)
    found = words.get(7)
    assert (found.text, found.star is not None) == ("refusals", True)

    # Somebody else changes it while the page is open: nothing is written over, and both texts are shown.
    words.label(7, "of somebody else")
    page.get_by_role("textbox", name="Label").fill("mine")
    page.get_by_role("textbox", name="Label").press("Enter")
    alert = page.locator('[data-testid="stAlert"]')
    for said in ("of somebody else", "mine"):
        expect(alert).to_contain_text(said)
    assert words.get(7).text == "of somebody else"

    page = open_page(f"{stack.url}/atlas?ids=4,9")
    expect(page.locator("tbody tr td:nth-child(4)", has_text="detection 0.82 n 40 ± 0.05")).to_have_count(1)
    page = open_page(f"{stack.url}/labels?crosscoder=demo")
    table = page.get_by_role("table", name="Latents with words")
    expect(table.locator("tbody tr")).to_have_count(3)
    expect(table).to_contain_text("★ of somebody else")
    expect(table).to_contain_text("second <b>of</b> the list")
    fit = table.locator("tbody tr td:nth-child(3)")
    expect(fit.nth(0)).to_contain_text("detection 0.82 n 40 ± 0.05")  # of latent 4, which no person labelled
    expect(fit.nth(2)).to_contain_text("detection (0.82 n 40)")  # of a label that a person's hides
    page.get_by_role("table", name="Lists").get_by_role("link", name="mine").click()
    expect(table.locator("tbody tr")).to_have_count(2)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save these 2 as HTML").click()
    saved = download.value.path().read_text("utf-8")
    assert "<title>demo: mine</title>" in saved
    assert "second &lt;b&gt;of&lt;/b&gt; the list" in saved
    assert saved.count("<section") == 2
    table.locator("tbody tr").first.get_by_role("link").first.click()
    expect(page.locator("h1")).to_have_text("Latent 9")
    expect(page.get_by_text("1 of 2 · in the order of the list")).to_be_visible()
    # What a model wrote says who, and how well it fits; a person's label stays in its place.
    fit = "detection 0.82 ± 0.05 (n 40)"
    expect(page.get_by_role("textbox", name="Label")).to_have_value("second <b>of</b> the list")
    expect(page.get_by_text(f"some-model: endings, {fit}.")).to_be_visible()
    page.locator(".strip .token").first.wait_for()
    settle(page)
    page.get_by_role("button", name="Next").click()
    expect(page.locator("h1")).to_have_text("Latent 4")
    expect(page.get_by_text(f"Written by some-model, {fit}.")).to_be_visible()
    expect(page.get_by_role("textbox", name="Label")).to_have_attribute("placeholder", "endings")
    assert re.search("list=mine", page.url)

    page = open_page(f"{stack.url}/atlas?crosscoder=demo&label=SECOND")
    expect(page.get_by_role("table", name="Latents").locator("tbody tr")).to_have_count(1)
    expect(page.get_by_role("table", name="Latents")).to_contain_text("second <b>of</b> the list")

    page = open_page(f"{stack.url}/labels?crosscoder=demo")
    with page.expect_download() as download:
        page.get_by_role("button", name="JSON", exact=True).click()
    file = tmp_path / "labels.json"
    download.value.save_as(file)
    document = json.loads(file.read_text())
    assert [row.get("latent") for row in document["rows"]] == [None, 4, 7, 9]
    document["rows"][3]["label"]["text"] = "another"
    document["rows"].append({"latent": 11, "label": {"text": "imported"}})
    file.write_text(json.dumps(document))
    page.locator('input[type="file"]').set_input_files(file)
    page.get_by_role("button", name="Count what would change").click()
    expect(page.get_by_text("1 would be added, 0 would be replaced")).to_be_visible()
    expect(page.get_by_text("latent 9: it has another label already")).to_be_visible()
    assert words.get(11).text == ""
    page.get_by_role("button", name="Import", exact=True).click()
    expect(page.get_by_text("1 added, 0 replaced")).to_be_visible()
    assert (words.get(11).text, words.get(9).text) == ("imported", "second <b>of</b> the list")
    for each in words.all():
        words.label(each.latent, None)
        words.label(each.latent, None, by_program="")
        words.star(each.latent, False)
    words.delete_list("mine")
