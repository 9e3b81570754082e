import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from fixtures_artefacts import write_crosscoder
from fixtures_server import Front, RunningWorker, run_cache, run_front, run_worker
from fixtures_waiting import PATIENCE_S

from crosscope_proto.artefacts import CrosscoderManifest
from crosscope_server import cache


@pytest.fixture(scope="session")
def planted_home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CrosscoderManifest]:
    """A folder with the crosscoder "demo" of 100 latents. Read only."""
    home = tmp_path_factory.mktemp("home")
    return home, write_crosscoder(home, "demo", 100)


@pytest_asyncio.fixture
async def front(planted_home: tuple[Path, CrosscoderManifest]) -> AsyncIterator[Front]:
    """A server with no worker and no cache."""
    async with run_front(home=planted_home[0]) as running:
        yield running


@pytest_asyncio.fixture
async def running_worker(tmp_path: Path) -> AsyncIterator[RunningWorker]:
    async with run_worker(tmp_path) as running:
        yield running


@pytest_asyncio.fixture
async def online(planted_home: tuple[Path, CrosscoderManifest], running_worker: RunningWorker) -> AsyncIterator[Front]:
    """A server with one worker and no cache."""
    async with run_front(home=planted_home[0], workers=running_worker.target) as running:
        await running.prompts_serve()
        yield running


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers wait for their cache, also where a busy machine lets it be slow for a moment."""
    for name in ("_PATIENCE_S", "_MOST_S", "_WRITE_S"):
        monkeypatch.setattr(cache, name, PATIENCE_S)


@pytest_asyncio.fixture
async def cache_socket(patient: None, tmp_path: Path) -> AsyncIterator[Path]:
    """The socket of a running cache, for which servers wait."""
    path = tmp_path / "cache.sock"
    async with run_cache(path):
        yield path


@pytest.fixture
def deaf_socket(tmp_path: Path) -> Iterator[Path]:
    """A socket that takes connections and never answers."""
    path = tmp_path / "deaf.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(16)
        yield path
