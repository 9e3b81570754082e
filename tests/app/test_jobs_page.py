"""The way of a new job: form, plan, submission, curves, log, clone; in a real browser with a real job worker."""

import re

import pytest
import yaml
from playwright.sync_api import Page, expect

from tests.app.stack import OpenPage, Stack, settle

pytestmark = pytest.mark.browser


def choose(page: Page, label: str, option: str) -> None:
    settle(page)
    page.get_by_role("combobox", name=re.compile(label)).click()
    page.get_by_role("option", name=option, exact=True).click()


def type_into(page: Page, label: str, value: str) -> None:
    settle(page)
    field = page.get_by_role("textbox", name=re.compile(f"^{label}"))
    field.fill(value)
    field.press("Enter")


def test_from_the_form_to_the_curves_of_the_job(stack: Stack, open_page: OpenPage) -> None:
    with stack.job_worker():
        page = open_page(f"{stack.url}/jobs?show=New+job")
        choose(page, "Kind", "demo-pair")
        recipe = page.get_by_label("Recipe, YAML")
        expect(recipe).to_have_value(re.compile("kind: demo-pair"))
        type_into(page, "name", "plain-form")
        expect(recipe).to_have_value(re.compile("name: plain-form"))
        # A wrong value is said beside its field, and counted at its part, before anything is submitted.
        type_into(page, "num_layers", "1")
        expect(page.locator(".xs-wrong")).to_contain_text("num_layers: Input should be greater than or equal to 2")
        expect(page.get_by_role("radio", name=re.compile(r"recipe \(1 wrong\)"))).to_be_visible()
        expect(page.get_by_role("alert")).to_contain_text("num_layers")
        type_into(page, "num_layers", "3")
        expect(page.get_by_text("The recipe is sound")).to_be_visible()
        expect(page.locator(".xs-wrong")).to_have_count(0)
        # The text edits the form too, and keeps its comments when the form edits it.
        settle(page)
        recipe.fill(f"# mine\n{recipe.input_value()}seed: 7\n")
        recipe.press("Control+Enter")
        expect(page.get_by_role("textbox", name=re.compile("^seed"))).to_have_value("7")
        type_into(page, "seed", "8")
        expect(recipe).to_have_value(re.compile("^# mine\n(?s:.*)seed: 8"))
        said = yaml.safe_load(recipe.input_value())
        assert said == {"kind": "demo-pair", "name": "plain-form", "num_layers": 3, "seed": 8}
        settle(page)
        page.get_by_role("button", name="Submit", exact=True).click()
        expect(page.get_by_text("Queued as")).to_be_visible()
        # While the page draws anew, the old text may stand beside the new one for a moment.
        expect(page.get_by_text("plain-form · demo-pair · done")).to_have_count(1)
    for title in ("Loss", "Relative norm at step 2", "Relative norm as it forms"):
        expect(page.locator(".js-plotly-plot", has_text=title)).to_be_visible()
    settle(page)
    page.get_by_text("Log", exact=True).click()
    expect(page.locator("code", has_text="end: succeeded: Done.")).to_be_visible()
    expect(page).to_have_url(re.compile("log=true"))
    settle(page)
    page.get_by_role("button", name="Clone").click()
    expect(page.get_by_label("Recipe, YAML")).to_have_value(re.compile("seed: 8"))
    expect(page.get_by_text(re.compile("stages of the newest one that succeeded"))).to_be_visible()
