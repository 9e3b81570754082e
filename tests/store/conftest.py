"""One S3 server for all tests of a process, and shelves of homes that share a store."""

from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from fixtures_store import S3Server, s3_server

from crosscope_store.remote import Store
from crosscope_store.shelf import SharedShelf


@pytest.fixture(scope="session")
def s3() -> Generator[S3Server]:
    with s3_server() as server:
        yield server


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs a test on the kinds of store that it names, else in memory: each call of S3 takes a while."""
    if "url" in metafunc.fixturenames:
        kinds = next((mark.args for mark in metafunc.definition.iter_markers("stores")), ("memory",))
        metafunc.parametrize("url", kinds, indirect=True)


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty store."""
    if request.param == "memory":
        return f"memory://{tmp_path.name}"
    if request.param == "file":
        (tmp_path / "shared").mkdir()
        return (tmp_path / "shared").as_uri()
    server: S3Server = request.getfixturevalue("s3")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server.bucket()


@pytest.fixture
def shelf_at(tmp_path: Path, url: str) -> Callable[..., SharedShelf]:
    """Makes the shelf of a home by its name, `home / name`."""

    def make(name: str, limit_bytes: int = 10**9) -> SharedShelf:
        return SharedShelf(tmp_path / name, Store(url), limit_bytes)

    return make
