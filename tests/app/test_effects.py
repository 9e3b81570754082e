"""What both models do with a prompt, on the pages: steered answers, differences, the latents behind them."""

import json
import re
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Page, expect

from tests.app.planted_worker import CUT, HOSTILE, LOST, SECRET_FOLDER, SLOW
from tests.app.stack import OpenPage, Stack, settle

pytestmark = pytest.mark.browser

TURNS = [["user", f"bake {HOSTILE} bread"]]


def steer(*changes: str, turns: object = TURNS, **params: str) -> str:
    query = {"crosscoder": "demo", "turns": json.dumps(turns), "steer": changes, **params}
    return f"steer?{urlencode(query, doseq=True)}"


def lab(**params: str) -> str:
    turns = json.dumps([*TURNS, ["assistant", "first flour"]])
    return f"lab?{urlencode({'crosscoder': 'demo', 'turns': turns, **params})}"


def generate(page: Page) -> None:
    page.get_by_role("button", name="Generate", exact=True).click()


def test_steer_page_restores_its_url_and_answers_side_by_side(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/{steer('7 add 4', '3,5 ablate generated', seed='11', samples='1')}")
    expect(page.get_by_role("slider", name="Strength")).to_have_value("4")
    expect(page.get_by_label("Seed")).to_have_value("11")
    expect(page.get_by_label("Latent", exact=True).nth(1)).to_have_value("3, 5")
    expect(page.locator(".xs-evidence")).to_have_count(1)  # of latent 7; several latents stand in a table
    several = page.get_by_role("table", name="Latents of change 2").locator("tbody a")
    expect(several).to_have_text(["3", "5"])
    expect(page.locator(".strip")).to_have_count(0)  # a link alone runs nothing
    generate(page)
    notes = page.locator(".strip .head")
    expect(notes.nth(3)).to_contain_text(
        "4 tokens; the model ended its turn. Changed at 10 tokens of prompt and answer. Left alone at 1 that"
    )
    answers = ["base", "chat", "base add[7] ablate[3, 5]", "chat add[7] ablate[3, 5]"]
    expect(page.locator(".strip .tokens")).to_have_text([f"{said} {HOSTILE}" for said in answers])
    expect(notes.nth(0)).to_contain_text("base, plain")
    expect(notes.nth(0)).not_to_contain_text("Changed")
    assert page.evaluate("window.hacked") is None
    expect(page.locator(".strip img")).to_have_count(0)
    first = page.locator(".strip").nth(3).locator(".token").first
    label = "chat, token 0, assistant, activation 2.00 of latent 7, log-probability −0.25"
    expect(first).to_have_attribute("aria-label", label)
    tokens = page.locator(".strip").nth(3).locator(".token")
    expect(tokens.nth(1)).to_have_class(re.compile("left-out"))
    expect(tokens.nth(1)).to_have_attribute("aria-label", re.compile("left out of training and analysis: .*norm"))
    expect(tokens).to_have_count(4)
    expect(page.locator(".strip").nth(3).locator(".left-out")).to_have_count(1)
    heights = page.locator(".strip").evaluate_all("(all) => all.map((strip) => strip.getBoundingClientRect().y)")
    assert heights[0] == heights[1]
    first.press("Enter")
    expect(page).to_have_url(re.compile(r"token=3\.0"))
    expect(page.get_by_text("Log-probability −0.25, probability 77.9%.")).to_be_visible()
    expect(page.get_by_role("table", name="Latents of the token").get_by_role("link")).to_have_text(["7", "9"])


def test_steered_answers_are_coloured_by_what_the_plain_model_makes_of_them(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/{steer('7 add 4', shade='against_plain')}")
    generate(page)
    expect(page.locator(".scale")).to_contain_text("|log p steered − plain|, nats: 0")
    for strip, said in ((2, "4.36, log-probability −0.25, in the plain model −4.61: +4.36"), (3, "0.44, log-")):
        first = page.locator(".strip").nth(strip).locator(".token").first
        expect(first).to_have_attribute("aria-label", re.compile(re.escape(f"|log p steered − plain|, nats: {said}")))
    plain = page.locator(".strip").first.locator(".token").first
    expect(plain).to_have_attribute("aria-label", re.compile("not measured"))
    expect(page.locator(".strip .head").nth(3)).to_contain_text("Mean log p less plain: ")


def test_changes_are_added_edited_and_removed_in_the_url(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/latent?crosscoder=demo&latent=7")
    page.get_by_role("link", name="Steer with this latent").click()
    expect(page.locator("h1")).to_have_text("Steer")
    expect(page).to_have_url(re.compile(r"steer=7(\+|%20)add(\+|%20)1"))
    settle(page)
    page.get_by_role("slider", name="Strength").press("ArrowRight")
    expect(page).to_have_url(re.compile(r"steer=7(\+|%20)add(\+|%20)1\.05"))
    settle(page)
    page.get_by_role("button", name="Add latent").click()
    expect(page).to_have_url(re.compile(r"steer=0(\+|%20)add(\+|%20)1"))
    settle(page)
    field = page.get_by_label("Latent", exact=True).first
    field.fill("seven")
    field.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("'seven' is no list of latents")
    settle(page)
    field.fill("999")
    field.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Latent 999 does not exist")
    expect(page.get_by_role("button", name="Generate", exact=True)).to_be_disabled()
    settle(page)
    page.get_by_role("button", name="Remove").first.click()
    expect(page).not_to_have_url(re.compile("999"))
    expect(page.get_by_role("alert")).to_have_count(0)


def test_answers_stream_until_they_are_stopped(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/{steer(turns=[['user', SLOW]], max_new_tokens='500')}")
    generate(page)
    tokens = page.locator(".strip").first.locator(".token")
    expect(tokens.nth(2)).to_be_attached()
    expect(page.locator(".strip .head").first).to_contain_text("…")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".strip .head").first).to_contain_text("the caller left")
    assert 2 < tokens.count() < 500
    expect(page.get_by_role("button", name="Stop")).to_have_count(0)


def test_an_answer_that_breaks_off_keeps_what_has_come(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/{steer(turns=[['user', CUT]])}")
    generate(page)
    expect(page.get_by_role("alert")).to_contain_text("the inference worker ended in the middle of the answer")
    expect(page.locator(".strip .token")).to_have_text(["base", "chat"])
    expect(page.get_by_role("button", name="Try again")).to_be_visible()


def test_lab_colours_tokens_by_kl_and_shows_both_models_next_tokens(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/{lab(shade='kl', token='2')}")
    expect(page.locator(".scale")).to_contain_text("KL(chat‖base), nats: 0")
    expect(page.locator(".scale")).to_contain_text("3.50")  # half of seven words; the 100 of BOS sets no scale
    label = re.compile(r"bake, token 2, user, KL\(chat‖base\), nats: 0.50")
    expect(page.locator(".strip .token").nth(2)).to_have_attribute("aria-label", label)
    expect(page.get_by_text("KL(chat‖base) 0.5, KL(base‖chat) 1 nats")).to_be_visible()
    base, chat = (page.get_by_role("table", name=f"Next tokens of {model}") for model in ("base", "chat"))
    for table in (base, chat):
        expect(table.locator("tbody tr").first).to_be_visible()
    expect(base.locator("tbody tr").first.locator("td")).to_have_text(["1", "75.0%", "␣sure"])
    shown = HOSTILE.replace(" ", "␣")
    expect(chat.locator("tbody tr").first.locator("td")).to_have_text(["1", "87.5%", shown])
    expect(page.get_by_text("rank 3 for what came, 1.0%")).to_be_visible()
    expect(page.get_by_text("rank 1 for what came, 50.0%")).to_be_visible()
    assert page.evaluate("window.hacked") is None
    settle(page)
    page.get_by_role("button", name="strongest").click()
    expect(page).to_have_url(re.compile("shade=latents"))
    page = open_page(f"{stack.url}/{lab(shade='difference')}")
    expect(page.locator(".scale")).to_contain_text("21.0")
    page = open_page(f"{stack.url}/lab?crosscoder=demo&shade=kl&text={LOST}")
    expect(page.get_by_role("alert").first).to_contain_text("cannot be read")
    expect(page.get_by_role("alert").first).not_to_contain_text(SECRET_FOLDER)


def test_why_they_differ_lists_latents_by_what_they_do(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/{lab()}")
    page.get_by_role("button", name="Why do they differ here?").click()
    expect(page).to_have_url(re.compile("why=true"))
    expect(page.get_by_text(re.compile("^At token 9, .*flour.*, where they differ most"))).to_be_visible()
    rows = page.get_by_role("table", name="Latents that carry the difference").locator("tbody tr")
    expect(rows).to_have_count(4)
    expect(rows.locator("td:nth-child(1)")).to_have_text(["2", "5", "7", "9"])
    steps = ["ablate at 3", "transplant at 4", "ablate at 4", "transplant at 5"]
    expect(rows.locator("td:nth-child(5)")).to_contain_text(steps)
    shares = [
        "into base 3%, out of chat 75%",
        "into base 50%, out of chat −25%",
        "into base –, out of chat ~3%",
        "into base −25%, out of chat –",
    ]
    for place, share in enumerate(shares):
        expect(rows.nth(place).locator(".words").first).to_have_text(share)
    assert page.locator("table[aria-label='Latents that carry the difference'] thead th").count() <= 6
    page.get_by_text("into base", exact=True).hover()
    expect(page.locator(".tip", has_text="Share of the KL that goes when chat's row")).to_be_visible()
    facts = page.locator(".xs-facts", has_text="whole stream")
    for shown in (
        "4 nats",
        "−10%",
        "against it, by the 9 that fire",
        "80%",
        "of it, by the 9 that fire",
        "95%",
        "90%",
        "this layer's ceiling",
    ):
        expect(facts).to_contain_text(shown)
    said = "4 of 9 latents that fire are listed. 1 of them were estimated only. 2 were measured in one model only"
    expect(page.get_by_text(said)).to_be_visible()
    first = rows.first.get_by_role("link").first
    first.focus()
    page.keyboard.press("ArrowRight")
    expect(rows.first.get_by_role("link", name="ablate")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("Steer")
    expect(page).to_have_url(re.compile(r"steer=2(\+|%20)ablate"))
    expect(page.get_by_label("Turn 1, user")).to_have_value(TURNS[0][1])
    expect(page.get_by_label("Turn 2, assistant")).to_have_count(0)  # so that both models answer again


def test_a_generated_answer_becomes_a_turn_to_look_at(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/lab?crosscoder=demo&turns={json.dumps([['user', 'bake']])}")
    page.get_by_role("button", name="Generate, then look").click()
    expect(page.get_by_label("Turn 2, assistant")).to_have_value(f"chat {HOSTILE}")
    expect(page.get_by_text("The chat model's answer: 2 tokens; the model ended its turn.")).to_be_visible()
    expect(page.locator(".strip .token", has_text="<img")).to_have_count(1)
    assert page.evaluate("window.hacked") is None
    settle(page)
    page.get_by_role("button", name="Generate, then look").click()
    expect(page.get_by_role("alert")).to_contain_text("turn 2")
    expect(page.get_by_role("alert")).to_contain_text("is the assistant's already")
