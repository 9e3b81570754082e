"""What stands beside figures so that nobody reads them wrong: lost data, outliers, repeats, what is undefined."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fixtures_artefacts import write_crosscoder
from playwright.sync_api import expect

from crosscope_proto import artefacts as layout
from tests.app.stack import OpenPage, Stack, settle

pytestmark = pytest.mark.browser

NUM_LATENTS, NUM_DELTA = 16, 5
NAN = float("nan")
SCORES = ("base_uselessness", "base_uselessness_ls", "base_uselessness_single")
METRICS = {
    "fve_base": 0.9971,
    "fve_base_inliers": 0.512,
    "fve_chat": 0.9963,
    "fve_chat_inliers": 0.498,
    "l0": 12.9,
    "dead_share": 0.1,
    "outlier_share": 0.0213,
    "repeat_share": 0.3125,
    "threshold": 0.639,
    "threshold_running": 0.829,
}
MANIFEST = {
    "metrics": METRICS,
    "skipped": {"chats": {"no chat template": 300}},
    "texts": {"chats": {"read": 400, "cut_tokens": 77}},
    "warnings": ["2.1 % of the tokens were left out: norm above 10 × the median"],
    "notes": ["The rule of activation was taken from <b>k</b>"],
    "unavailable": {"logit_lens_chat": "Gemma has no head in /srv/private/models/gemma"},
}


def publish(home: Path, name: str, changes: dict[str, Any], columns: dict[str, np.ndarray]) -> None:
    """Publishes a crosscoder with another manifest, whose examples stand for two more texts each."""
    written = write_crosscoder(home, name, NUM_LATENTS, columns=columns, created_at=1_400_000_000.0)
    folder = Path(layout.version_folder(home, name, written.version_id))
    manifest = json.loads((folder / layout.MANIFEST).read_text())
    (folder / layout.MANIFEST).write_text(json.dumps(manifest | changes))
    for path in (folder / layout.EXAMPLES).iterdir():
        table = pq.read_table(path)
        at = table.schema.get_field_index("repeats")
        repeats = pa.array([2] * len(table), table.schema.field(at).type)
        pq.write_table(table.set_column(at, table.schema.field(at), repeats), path)


@pytest.fixture(scope="module")
def sinks(stack: Stack) -> str:
    """A crosscoder of two parts, in whose training tokens and texts were lost."""
    parts = np.array(["delta"] * NUM_DELTA + ["rest"] * (NUM_LATENTS - NUM_DELTA))
    lens = np.full((NUM_LATENTS, 0), "")
    publish(stack.home, "sinks", MANIFEST, {"part": parts, "logit_tokens_chat": lens})
    return f"{stack.url}/{{}}?crosscoder=sinks"


@pytest.fixture(scope="module")
def difference(stack: Stack) -> str:
    """A dictionary of the models' difference: what needs two decoder rows is undefined (math §2)."""
    undefined = ("rel_norm", "cosine", "nu_err", "nu_err_se", "nu_rec", "nu_rec_se", *SCORES)
    columns = {name: np.full(NUM_LATENTS, NAN) for name in undefined}
    columns["beta_ratio"] = np.linspace(0.9, 0.1, NUM_LATENTS)
    columns["latent_class"] = np.array(["other"] * (NUM_LATENTS - 3) + ["chat_only"] * 3)
    metrics = {"fve_difference": 0.8, "fve_difference_inliers": 0.71, "l0": 12.0, "dead_share": 0.0}
    publish(stack.home, "difference", {"variant": "diff_sae", "metrics": metrics}, columns)
    return f"{stack.url}/{{}}?crosscoder=difference"


def test_overview_says_what_was_lost_and_names_its_headline(sinks: str, open_page: OpenPage) -> None:
    page = open_page(sinks.format(""))
    facts = page.locator(".xs-facts").first
    for shown in (
        re.compile(r"FVE base, inliers\s*0\.512\s*0\.997 of all tokens"),
        re.compile(r"FVE chat, inliers\s*0\.498\s*0\.996 of all tokens"),
        re.compile(r"threshold\s*0\.639\s*0\.829 in training"),
        re.compile(r"outliers\s*2\.1%"),
        re.compile(r"repeats\s*31\.2%\s*of tokens repeat an earlier text"),
    ):
        expect(facts).to_contain_text(shown)
    for sentence in (
        "300 of 400 texts of chats were left out: 300 × no chat template.",
        "77 tokens of chats lie beyond max_length and were cut off.",
        "2.1 % of the tokens were left out: norm above 10 × the median.",
        "The rule of activation was taken from <b>k</b>.",
        "No logit lens chat: Gemma has no head in …/gemma.",
    ):
        expect(page.get_by_role("listitem").filter(has_text=sentence)).to_have_count(1)


def test_latent_says_its_part_and_for_how_many_texts_an_example_stands(sinks: str, open_page: OpenPage) -> None:
    page = open_page(sinks.format("latent") + "&latent=0")
    facts = page.locator(".xs-facts").first
    repeats = re.compile(r"repeats\s*\d+%\s*of active tokens")
    for shown in (re.compile(r"part\s*delta"), repeats, "β ratio", re.compile(r"texts\s*1")):
        expect(facts).to_contain_text(shown)
    expect(page.get_by_text("Not measured: Gemma has no head in …/gemma.")).to_be_visible()
    expect(page.locator(".strip .head").first).to_contain_text("like it")


def test_atlas_filters_by_part_and_by_token(stack: Stack, sinks: str, open_page: OpenPage) -> None:
    crosscoder = stack.client.crosscoder("sinks")
    token = crosscoder.latent(0).top_tokens[0]
    both = crosscoder.latents([("part", "=", "delta"), ("top_tokens", "=", token)]).num_matching
    assert 0 < both < NUM_DELTA
    page = open_page(sinks.format("atlas") + "&part=delta")
    expect(page.get_by_text(f"{NUM_DELTA} latents", exact=True)).to_be_visible()
    page.get_by_role("textbox", name="Peaks on the token").fill(token)
    page.keyboard.press("Enter")
    expect(page.get_by_text(f"{both} latents", exact=True)).to_be_visible()
    settle(page)
    expect(page.locator("tbody tr")).to_have_count(both)
    page.locator("tbody tr").first.click()
    expect(page.get_by_text(f"1 of {both} ·")).to_be_visible()


def test_difference_dictionary_is_read_by_its_ratio(difference: str, open_page: OpenPage) -> None:
    last = str(NUM_LATENTS - 1)
    page = open_page(difference.format(""))
    expect(page.locator(".xs-facts").first).to_contain_text(re.compile(r"FVE difference, inliers\s*0\.71"))
    expect(page.get_by_text("then by β ratio nearest to 0")).to_be_visible()
    expect(page.get_by_role("link", name=last, exact=True)).to_be_visible()
    page.locator('[data-testid="stSidebar"]').get_by_role("link", name="Atlas").click()
    expect(page.get_by_text("β ratio, lowest first")).to_be_visible()
    expect(page.get_by_role("columnheader", name="β ratio ↑")).to_be_visible()
    for place, head in enumerate(("latent", "name", "class", "β ratio ↑")):
        expect(page.locator("thead th").nth(place)).to_have_text(head)
    page.get_by_role("link", name=last, exact=True).click()
    expect(page.locator(".xs-evidence")).to_contain_text("β ratio 0.1 ± 0.02")
    expect(page.locator(".xs-evidence")).not_to_contain_text("relative norm")
    page = open_page(difference.format("atlas") + "&order=-rel_norm")
    expect(page.get_by_text("None of these latents has a relative norm")).to_contain_text("They have")
    page.get_by_role("slider", name="ν error").last.press("ArrowLeft")
    expect(page.get_by_text("No latent of difference has a ν error, so none meets these conditions")).to_be_visible()
