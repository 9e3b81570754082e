"""What the other tests rely on: a page has settled when the runs that its clicks ask for have ended, not before."""

import os
import signal
import threading

import pytest

from tests.app.stack import OpenPage, Stack, settle

pytestmark = pytest.mark.browser


def test_a_click_is_waited_for_of_which_the_app_has_not_heard_yet(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(f"{stack.url}/atlas?crosscoder=demo")
    os.kill(stack.app_pid, signal.SIGSTOP)
    going_on = threading.Timer(0.7, os.kill, (stack.app_pid, signal.SIGCONT))
    going_on.start()
    page.get_by_role("link", name="Jobs", exact=True).click()
    settle(page)
    going_on.join()
    assert page.locator("h1").inner_text() == "Jobs"
