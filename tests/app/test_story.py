"""What the overview says that tuning added, and the page that compares two crosscoders: in a real browser."""

import re
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect

from crosscope import Tokens
from crosscope._examples import Example
from crosscope.app import story
from crosscope_proto import artefacts as layout
from crosscope_proto.artefacts import ExampleGroup
from crosscope_proto.causal_columns import CAUSAL_COLUMNS
from crosscope_proto.roles import TokenRole
from tests.app.stack import OpenPage, Stack
from tests.app.test_walks import FITS, errors_on
from tests.fixtures_artefacts import write_crosscoder, write_rows

HEADER, USER, ASSISTANT, END = TokenRole.HEADER, TokenRole.USER, TokenRole.ASSISTANT, TokenRole.TURN_END
TALK = [
    *[("<s>", HEADER), ("Who", USER), (" <b>?", USER), ("</s>", END), ("\n", END)],
    *[("<a>", HEADER), ("I am", ASSISTANT), (" Gem", ASSISTANT), ("</s>", END)],
    *[("<s>", HEADER), ("Bye", USER), ("</s>", END)],
]

pytestmark = pytest.mark.browser


def example(pieces: list[tuple[str, TokenRole]], peak: int) -> Example:
    texts, roles = zip(*pieces, strict=True)
    tokens = Tokens(tuple(range(len(pieces))), texts, roles)
    return Example(0, "chat", ExampleGroup.TOP, 0, 0, tokens, 0, len(pieces), (peak,), (2.0,), 2.0, peak)


@pytest.mark.parametrize(
    ("peak", "turns"),
    [
        (7, ["Who <b>?"]),  # in an answer: the request before it
        (5, ["Who <b>?"]),  # at the header that decides the answer
        (2, ["Who <b>?"]),  # in a request: that request, whole
        (10, ["Who <b>?", "I am Gem", "Bye"]),
    ],
)
def test_an_example_asks_what_its_answer_answers(peak: int, turns: list[str]) -> None:
    asked = story.request(example(TALK, peak))
    assert [turn.content for turn in asked.turns] == turns
    assert asked.add_generation_prompt


def test_a_document_asks_with_its_text_up_to_the_peak() -> None:
    document = [("<bos>", TokenRole.BOS), (" once", TokenRole.TEXT), (" upon", TokenRole.TEXT), (" a", TokenRole.TEXT)]
    assert story.request(example(document, 3)).text == "once upon"
    assert story.request(example(document, 1)).text == "once upon a"  # nothing stands before it


def test_a_quote_is_text_and_marks_what_fires() -> None:
    quoted = story.quote(example(TALK, 7))
    assert "Who &lt;b&gt;?" in quoted
    assert re.findall(r"<b style=[^>]*title=\"activation 2\">(.*?)</b>", quoted) == [" Gem"]
    assert quoted.count('class="turn"') == 2  # ends of turns, one sign each; headers are left out


IDS = np.arange(60)


@pytest.fixture(scope="module")
def told(stack: Stack) -> str:
    """Crosscoders in which base lacks 3, 20 and 21, and 20 fires with 21 most; told-l1 also calls 5 and 6 chat-only."""
    lacks = np.isin(IDS, [3, 20, 21])
    columns = {name: np.where(lacks, 0.05, 0.9) for name in ("nu_err", "nu_rec")}
    columns |= {f"mirror_{name}": np.full(60, 0.9) for name in ("nu_err", "nu_rec")}
    columns |= {f"{name}_se": np.full(60, 0.01) for name in tuple(columns)}
    columns |= {column.name: np.full(60, np.nan) for column in CAUSAL_COLUMNS}
    columns["latent_class"], columns["rel_norm"] = np.full(60, "other"), np.full(60, 0.7)
    columns |= {"num_active": np.full(60, 900), "num_texts": np.full(60, 90)}
    columns |= {"beta_act_no_bias_base": np.full(60, 0.1), "beta_act_no_bias_chat": np.ones(60)}
    columns["ablation_gap_all"] = np.where(IDS == 21, 0.25, np.nan)
    columns["ablation_gap_all_se"] = np.where(IDS == 21, 0.01, np.nan)
    columns["coactive"] = np.where(IDS == 20, 21, (IDS + 1) % 60)[:, None]
    columns["coactive_indices"] = np.where(IDS == 20, 0.5, 0.01)[:, None]
    rows = np.random.default_rng(0).normal(size=(60, 128)).astype(np.float32)
    for name, own in (("told", rows), ("told-l1", rows[::-1].copy())):
        if name == "told-l1":
            columns["latent_class"] = np.where(np.isin(IDS, [5, 6]), "chat_only", "other")
        written = write_crosscoder(
            stack.home, name, 60, columns=columns, created_at=1_400_000_000.0, with_behaviours=False
        )
        folder = Path(layout.version_folder(stack.home, name, written.version_id))
        write_rows(folder, own)
        manifest = (folder / layout.MANIFEST).read_text()
        if name == "told-l1":
            (folder / layout.MANIFEST).write_text(
                manifest.replace('"variant": "batch_topk",\n "code', '"variant": "l1",\n "code')
            )
    return stack.url


def test_the_overview_tells_what_tuning_added_and_takes_it_away(told: str, stack: Stack, open_page: OpenPage) -> None:
    groups = stack.client.crosscoder("told").groups()
    page = open_page(f"{told}/?crosscoder=told")
    expect(page.get_by_text("Of 60 latents, 3 are specific to chat by the measurements")).to_be_visible()
    cards = page.locator(".xs-card")
    expect(cards).to_have_count(2)
    first = cards.first
    expect(first.locator("h3")).to_have_text(groups[0].name)
    expect(first).to_contain_text("2 latents, 2 supported · in at least 90 texts")
    expect(first).to_contain_text("Without latent 21, chat comes 0.250 ± 0.010 nats nearer to base")
    expect(first.locator("blockquote b").first).to_be_visible()
    expect(cards.nth(1)).to_contain_text("was not measured")
    page.get_by_role("button", name="Take them away and ask again").first.click()
    answers = page.locator(".xs-answers")
    expect(answers).to_contain_text("chat without them")
    expect(page.get_by_text("Without them, chat answers")).to_be_visible()
    expect(page.get_by_role("button", name="Ask with another example")).to_be_visible()
    first.get_by_role("link", name="steer without them").click()
    expect(page.locator("h1")).to_have_text("Steer")
    assert "steer=21%2C20+ablate" in page.url
    page.go_back()
    expect(page.locator("h1")).to_have_text("told")
    assert errors_on(page) == []


def test_two_crosscoders_on_one_page(told: str, open_page: OpenPage) -> None:
    page = open_page(f"{told}/versus?crosscoder=told&other=told-l1", width=390, dark=True)
    expect(page.get_by_text("told-l1 (l1) calls 2 latents chat-only by norm: 2 contradicted")).to_be_visible()
    expect(page.get_by_text("told (batch_topk) calls no latent chat-only by norm")).to_be_visible()
    expect(page.get_by_text("An L1 penalty charges a latent")).to_be_visible()
    counts = page.locator('table[aria-label="Matched latents by kind"] tbody tr')
    expect(counts.first).to_contain_text("60 (100%)")
    listed = page.locator('table[aria-label="Latents of told and the nearest ones"] tbody tr')
    expect(listed).to_have_count(3)
    for nearest in ("38", "39", "56"):  # 59 less its id
        expect(listed.locator("td:nth-child(3)").get_by_text(nearest, exact=True)).to_have_count(1)
    page.wait_for_function(FITS)
    assert errors_on(page) == []
