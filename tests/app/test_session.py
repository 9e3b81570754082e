"""What the app's pages share, without a browser."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from fixtures_artefacts import write_crosscoder

from crosscope import Annotations, LatentName
from crosscope.app import (
    asking,
    latent_figures,
    session,
)
from tests.client.conftest import running_server


@pytest.fixture
def version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The version of a crosscoder demo, whose server the app is set to."""
    written = write_crosscoder(tmp_path, "demo", 20)
    with running_server(tmp_path) as address:
        monkeypatch.setenv("CROSSCOPE_ADDRESS", address)
        forget()
        yield written.version_id
        session.client().close()
        forget()


def forget() -> None:
    """Forgets the connection to a server, the handles that use it, and what was answered."""
    for cached in (session.clients, session.crosscoder_as, session.latent, session.examples):
        cached.clear()


def test_latents_that_are_read_ahead_are_there_when_they_are_needed(version: str) -> None:
    asked = [(11, "top", None, 32), (40, "silent", None, 32)]
    first, missing = asking.ahead("demo", version, [6, 99], asked)
    assert first.result(30) is session.latent("demo", version, 6)
    assert first.result() is not None
    assert missing.result(30) is None


def test_a_latents_page_asks_once_for_the_names_of_all_latents_that_it_lists(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Sequence[int]] = []
    names, tables = Annotations.names, {}

    def noted(self: Annotations, latents: Sequence[int]) -> Mapping[int, LatentName]:
        asked.append(latents)
        return names(self, latents)

    monkeypatch.setattr(Annotations, "names", noted)
    monkeypatch.setattr(latent_figures, "table_view", lambda key, *drawn: tables.update({key: drawn}))
    info, latent = session.crosscoder("demo", version).info, session.latent("demo", version, 6)
    latent_figures.relatives(latent, info)
    listed = {each.latent for each in (*latent.neighbours, *latent.coactive)}
    assert [set(each) for each in asked] == [listed]
    called = {
        str(each): str(name)
        for each, name in names(session.crosscoder("demo", version).annotations, list(listed)).items()
    }
    for key, others in (("cosine", latent.neighbours), ("Jaccard index", latent.coactive)):
        ids, shown = (column.cells for column in tables[key][1][:2])
        assert ids == [str(each.latent) for each in others]
        assert shown == [called[each] for each in ids]
