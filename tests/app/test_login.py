"""Who sees the app, and as whom: the start address, typed tokens, a token that is revoked meanwhile."""

from collections.abc import Iterator

import pytest
from fixtures_waiting import until
from playwright.sync_api import Page, expect

from tests.app.stack import Stack, settle
from tests.app.tokens import ann, write

pytestmark = pytest.mark.browser
KEY = "a-secret"


@pytest.fixture(scope="module")
def app() -> Iterator[Stack]:
    """The app in front of a server that knows ann (read) and the home's own token."""
    stack = Stack()
    try:
        stack.plant()
        stack.start_worker()
        write(stack, ann())
        stack.start_server()
        stack.start_app(CROSSCOPE_APP_LOGIN="key", CROSSCOPE_APP_KEY=KEY)
        yield stack
    finally:
        stack.close()


def test_the_start_address_is_the_operators(app: Stack, page: Page) -> None:
    page.goto(f"{app.url}/?key={KEY}")
    expect(page.get_by_text("Who are you?")).to_have_count(0)
    expect(page.locator("h1").first).to_have_text("demo")
    assert KEY not in page.url
    page.goto(f"{app.url}/jobs")
    expect(page.locator("h1").first).to_have_text("Jobs")


def test_others_are_asked_and_act_as_themselves_until_their_token_is_revoked(app: Stack, page: Page) -> None:
    page.goto(app.url)
    expect(page.locator("h1").first).to_have_text("Who are you?")
    expect(page.get_by_text("demo")).to_have_count(0)
    page.get_by_label("Token", exact=True).fill("a-guess")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_text("The server does not know that token.")).to_be_visible()
    page.get_by_label("Token", exact=True).fill("anns-token")
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("h1").first).to_have_text("demo")
    settle(page)
    page.get_by_role("link", name="Prompt lab").click()
    said = page.get_by_label("Turn 1, user")
    said.press_sequentially("a b")
    said.blur()
    expect(page.get_by_text("needs the role 'run'").first).to_be_visible()
    write(app)

    def is_refused() -> bool:
        """The server looks at its tokens twice a second, the app at the cards every other one."""
        page.get_by_role("link", name="Overview").click()
        settle(page)
        return page.locator("h1").first.inner_text() == "Your token is refused"

    until(is_refused)
    page.get_by_role("button", name="Log in again").click()
    expect(page.locator("h1").first).to_have_text("Who are you?")
