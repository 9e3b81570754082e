"""Viewers who log in at an identity provider: a real one (OpenID Connect, code flow), a real browser.

A browser's test.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fixtures_ports import free_port
from fixtures_waiting import until
from playwright.sync_api import Page, expect

from tests.app.stack import Stack, answers
from tests.app.tokens import ann, write

pytestmark = pytest.mark.browser
PEOPLE = (
    {"sub": "Ann@example.org", "email": "Ann@example.org", "email_verified": True},
    {"sub": "eve@example.org", "email": "eve@example.org", "email_verified": True},
    {"sub": "liar", "email": "ann@example.org"},
)


@contextmanager
def provider(folder: Path) -> Iterator[str]:
    """The address of an identity provider that knows three people."""
    port = free_port()
    address = f"http://127.0.0.1:{port}/.well-known/openid-configuration"
    people = [word for each in PEOPLE for word in ("--user-claims", json.dumps(each))]
    command = [str(Path(sys.executable).parent / "oidc-provider-mock"), "--port", str(port), *people]
    with (folder / "provider.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            until(lambda: answers(address))
            yield address
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def app() -> Iterator[Stack]:
    """The app whose viewers log in at a provider; of those who are known there, one has a token here."""
    stack = Stack()
    try:
        with provider(stack.folder) as address:
            stack.plant()
            write(stack, ann())
            stack.start_server()
            tokens, secrets = stack.folder / "addresses.toml", stack.folder / "secrets.toml"
            tokens.write_text('"ann@example.org" = "anns-token"\n')
            secrets.write_text(
                f'[auth]\nredirect_uri = "{stack.url}/oauth2callback"\ncookie_secret = "{"s" * 40}"\n'
                f'client_id = "crosscope"\nclient_secret = "any"\nserver_metadata_url = "{address}"\n'
            )
            stack.start_app(
                CROSSCOPE_APP_LOGIN="oidc",
                CROSSCOPE_APP_OIDC_TOKENS=str(tokens),
                CROSSCOPE_APP_OIDC_SECRETS=str(secrets),
            )
            yield stack
    finally:
        stack.close()


def log_in(app: Stack, page: Page, subject: str) -> None:
    """Goes to the app and logs in at the provider as somebody."""
    page.goto(app.url)
    expect(page.locator("h1").first).to_have_text("Who are you?")
    expect(page.get_by_text("demo")).to_have_count(0)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("textbox").first.fill(subject)
    page.get_by_role("button", name="Authorize").click()


def test_whoever_has_a_token_comes_in_and_acts_with_it(app: Stack, page: Page) -> None:
    log_in(app, page, "Ann@example.org")
    expect(page.locator("h1").first).to_have_text("demo")


def test_whoever_has_none_is_told(app: Stack, page: Page) -> None:
    log_in(app, page, "eve@example.org")
    expect(page.locator("h1").first).to_have_text("You have no token")
    expect(page.get_by_text("has to add eve@example.org")).to_be_visible()
    expect(page.get_by_text("demo")).to_have_count(0)


def test_an_address_that_nobody_verified_is_nobodys(app: Stack, page: Page) -> None:
    log_in(app, page, "liar")
    expect(page.locator("h1").first).to_have_text("You have no token")
    expect(page.get_by_text("does not say that ann@example.org is verified")).to_be_visible()
