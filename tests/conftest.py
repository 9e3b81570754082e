"""The order of the tests, which of them run in one process, and what they leave alone."""

import os
import tempfile

import pytest
from xdist.remote import Producer
from xdist.scheduler.loadfile import LoadFileScheduling

END_TO_END = "tests/e2e/"


class ByFile(LoadFileScheduling):
    """Gives processes whole files; end-to-end tests go to one, because they share a stack that takes a minute."""

    def _split_scope(self, nodeid: str) -> str:
        return END_TO_END if nodeid.startswith(END_TO_END) else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile | None:
    return ByFile(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_configure(config: pytest.Config) -> None:
    """Servers of tests note their homes in a folder of their own, where the clients of tests find them."""
    folder = tempfile.TemporaryDirectory(prefix="crosscope-state-")
    config.add_cleanup(folder.cleanup)
    os.environ["XDG_STATE_HOME"] = folder.name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests come last: Playwright keeps an event loop in this thread, beside which no asyncio test can run."""
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)
