"""What the app's pages share, without a browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures_artefacts import write_crosscoder

from crosscope.app import (
    asking,
    session,
)
from tests.client.conftest import running_server


@pytest.fixture
def version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The version of a crosscoder demo, whose server the app is set to."""
    written = write_crosscoder(tmp_path, "demo", 20)
    with running_server(tmp_path) as address:
        monkeypatch.setenv("CROSSCOPE_ADDRESS", address)
        session.clients.clear()
        yield written.version_id
        session.client().close()
        session.clients.clear()


def test_latents_that_are_read_ahead_are_there_when_they_are_needed(version: str) -> None:
    asked = [(11, "top", None, 32), (40, "silent", None, 32)]
    first, missing = asking.ahead("demo", version, [6, 99], asked)
    assert first.result(30) is session.latent("demo", version, 6)
    assert first.result() is not None
    assert missing.result(30) is None
