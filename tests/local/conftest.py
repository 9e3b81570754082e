"""Fixtures of the supervisor's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jobs.rig import Rig
from tests.local.small_programs import Stage


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@pytest.fixture
def bare_rig() -> Iterator[Rig]:
    """A supervisor's folder and script; nothing runs yet."""
    made = Rig()
    yield made
    made.close()
