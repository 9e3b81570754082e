"""What people see while something is missing: the server, a crosscoder, a worker, the queue."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures_artefacts import write_crosscoder
from playwright.sync_api import expect

from crosscope_proto.artefacts import MANIFEST, version_folder
from tests.app.stack import OpenPage, Stack

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def bare() -> Iterator[Stack]:
    stack = Stack()
    try:
        stack.start_app()
        yield stack
    finally:
        stack.close()


def test_missing_parts_are_said_one_after_the_other(bare: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{bare.url}/latent?latent=3")
    expect(page.locator("h1")).to_have_text("No server answers")
    expect(page.get_by_text("no server answers at")).to_be_visible()
    bare.start_server()
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("h1")).to_have_text("Latent")
    expect(page.get_by_text("There is no crosscoder yet")).to_be_visible()

    page = open_page(f"{bare.url}/look")
    expect(page.get_by_text("There is no look yet")).to_be_visible()
    expect(page.locator("code", has_text="crosscope look PAIR DATA")).to_be_visible()

    page = open_page(bare.url)
    expect(page.locator("h1")).to_have_text("No crosscoder yet")
    expect(page.get_by_role("alert")).to_contain_text("queue")

    bare.plant()
    page = open_page(f"{bare.url}/lab?text=hello")
    expect(page.get_by_role("alert")).to_contain_text(re.compile("worker"))
    page.get_by_role("button", name="Generate, then look").click()
    expect(page.get_by_role("alert").filter(has_text="worker")).to_have_count(2)
    page = open_page(f"{bare.url}/steer?text=hello&steer=7+add+4")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text(re.compile("worker"))
    page = open_page(f"{bare.url}/latent?latent=999999")
    expect(page.get_by_role("alert")).to_contain_text("0 to 255")
    page = open_page(f"{bare.url}/latent?latent=3")
    expect(page.locator("h1")).to_have_text("Latent 3")

    broken = write_crosscoder(bare.home, "bad", 16)
    manifest = Path(version_folder(bare.home, "bad", broken.version_id)) / MANIFEST
    manifest.write_text(manifest.read_text().replace('"layer": 2', '"layer": -3'))
    page = open_page(f"{bare.url}/?crosscoder=bad")
    expect(page.locator("h1")).to_have_text("demo")
    expect(page.get_by_text("Showing demo")).to_be_visible()
    expect(page.get_by_role("alert").filter(has_text="bad cannot be read:")).to_contain_text("layer")
    page.get_by_role("combobox", name="Crosscoder").click()
    expect(page.get_by_role("option")).to_have_text(["demo"])
    expect(page.locator('[data-testid="stException"]')).to_have_count(0)


@pytest.mark.parametrize("width", [390, 1280])
def test_a_crosscoder_that_does_not_exist_is_said_on_the_page(stack: Stack, open_page: OpenPage, width: int) -> None:
    page = open_page(f"{stack.url}/?crosscoder=nosuch", width=width)
    alert = page.get_by_test_id("stMain").get_by_role("alert").filter(has_text="There is no crosscoder nosuch")
    expect(alert).to_contain_text("Showing demo")
    expect(alert).to_be_in_viewport()
