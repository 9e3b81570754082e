"""The prompt lab in a browser: typing, pasting, ranges, the heat map, two prompts, what is copied."""

import json
import re
import subprocess
import sys
from urllib.parse import urlencode

import pytest
from playwright.sync_api import expect

from tests.app.planted_worker import REST
from tests.app.stack import OpenPage, Stack, settle

pytestmark = pytest.mark.browser


def lab(**params: str) -> str:
    return f"lab?{urlencode({'crosscoder': 'demo', **params})}"


def test_tokens_are_counted_while_typing_and_nothing_runs(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/{lab(turns=json.dumps([['user', 'one two']]))}")
    count = page.locator(".count")
    expect(count).to_have_text("4 of 4\u202f096 tokens, 2 of the template")
    page.get_by_label("Turn 1, user").press_sequentially(" three four")
    expect(count).to_have_text("6 of 4\u202f096 tokens, 2 of the template")
    expect(page.get_by_label("Turn 1, user")).to_be_focused()
    assert "three" not in page.url
    expect(page.locator(".strip").first.locator(".token")).to_have_count(4)


def test_a_pasted_conversation_becomes_turns_of_which_the_last_is_begun(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/{lab()}")
    page.get_by_text("Paste a conversation").click()
    said = "x<|im_start|>user\nhi there<|im_end|>\n<|im_start|>assistant\nI am"
    page.get_by_role("textbox", name="A conversation as text").fill(said)
    page.get_by_role("button", name="Make turns of it").click()
    expect(page.get_by_label("Turn 2, assistant")).to_have_value("I am")
    expect(page).to_have_url(re.compile("answer=begun"))
    expect(page.get_by_text("2 turns, written as ChatML. Left out before the first turn: “x”.")).to_be_visible()
    expect(page.get_by_role("switch", name="The last turn is only begun")).to_be_checked()


def test_ranges_heat_map_and_filters(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/{lab(text=f'one two{REST} three', shade='latents')}")
    tokens = page.locator(".strip").first.locator(".token")
    expect(page.locator(".character .token")).to_have_text([f" two{REST}", ""])
    tokens.nth(1).focus()
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    expect(page).to_have_url(re.compile("range=1-3"))
    expect(page.get_by_text("tokens 1 to 3 chosen; Escape releases them")).to_be_attached()
    expect(page.get_by_role("heading", name="Latents of tokens 1 to 3")).to_be_visible()
    rows = page.get_by_role("table", name="Latents of the prompt").locator("tbody tr")
    expect(rows).to_have_count(2)
    settle(page)
    one, three = tokens.nth(1).bounding_box(), tokens.nth(2).bounding_box()
    assert one is not None
    assert three is not None
    page.mouse.move(one["x"] + 3, one["y"] + 3)
    page.mouse.down()
    page.mouse.move(three["x"] + 12, three["y"] + 5, steps=4)
    page.mouse.up()
    expect(page).to_have_url(re.compile("range=1-2"))
    expect(page).not_to_have_url(re.compile("token="))
    settle(page)
    tokens.nth(1).focus()
    page.keyboard.press("Escape")
    expect(page).not_to_have_url(re.compile("range="))
    expect(rows).to_have_count(3)
    settle(page)
    canvas = page.locator(".heat canvas")
    canvas.focus()
    page.keyboard.press("ArrowRight")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(page.locator(".heat .said")).to_have_text("latent 3, token 4 ␣three: 4.50")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("by=3"))


def test_two_prompts_and_the_copied_script(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/{lab(text='one two', b='one two three', limit='7')}")
    rows = page.get_by_role("table", name="Latents that tell the prompts apart").locator("tbody tr")
    expect(rows).to_have_count(3)
    cells = rows.first.locator("td")
    expect(cells.nth(3).locator(".words")).to_have_text("first 0, second 4.5")
    expect(cells.nth(4)).to_have_text("−4.5")
    for place, heads in enumerate((5, 6)):
        expect(page.get_by_role("table").nth(place).locator("thead th")).to_have_count(heads)
    expect(page.locator(".scale").first).to_contain_text("activation of latents specific to chat: 0")  # the default
    page.get_by_text("Copy as Python, grpcurl or JSON").click()
    script = page.locator("code.language-python").inner_text()
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed == f"{stack.client.crosscoder('demo').top_latents('one two', limit=7, skip_template_tokens=True)}\n"
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as HTML").click()
    assert "latent 2: 3" in download.value.path().read_text("utf-8")
