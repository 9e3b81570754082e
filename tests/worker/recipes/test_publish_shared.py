"""Publishing with a store: what it takes is everywhere, and what it does not take is kept for a retry."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from crosscope_proto.artefacts import CURRENT, CrosscoderManifest, PairManifest, crosscoder_folder
from crosscope_proto.looks import LookManifest
from crosscope_store.errors import StoreAway
from crosscope_store.remote import Store
from crosscope_store.shelf import SharedShelf
from crosscope_worker.dictionary.load import load_crosscoder
from crosscope_worker.recipes.look_files import write_look
from crosscope_worker.recipes.publish import already_published, find_published, publish, publish_again
from crosscope_worker.sharing import Sharing
from crosscope_worker.work import LostClaim, Workspace, silent
from tests.worker.recipes.test_publish import PROVENANCE, allow, analysis, crosscoder

PAIR = PairManifest("tiny", "base", "chat", "chat")


class Machine:
    """A home that shares a store in memory, and a job in it."""

    def __init__(self, home: Path, url: str, job: str = "job-1") -> None:
        self.home, self.shelf = home, SharedShelf(home, Store(url))
        (home / "jobs" / job).mkdir(parents=True)
        self.workspace = Workspace(home, home / "jobs" / job, allow, shelf=self.shelf)
        self.sharing = replace(Sharing.of(self.workspace, silent), wait_s=0.0)

    def publish(self, seed: int = 0, fence: Callable[[], None] = allow) -> CrosscoderManifest:
        provenance = replace(PROVENANCE, job=self.workspace.folder.name)
        return publish(self.home, "demo", crosscoder(seed), provenance, analysis(), [], fence, self.sharing)

    def versions(self) -> list[str]:
        self.shelf.refresh()
        return sorted(path.name for path in (self.home / "crosscoders" / "demo" / "versions").glob("[!.]*"))

    def current(self) -> str:
        return (Path(crosscoder_folder(self.home, "demo")) / CURRENT).read_text().strip()


@pytest.fixture
def machine(tmp_path: Path) -> Callable[[str], Machine]:
    return lambda name: Machine(tmp_path / name, f"memory://{tmp_path.name}")


Machines = Callable[[str], Machine]


def test_a_version_is_published_here_and_everywhere(machine: Machines) -> None:
    one, two = machine("one"), machine("two")
    manifest = one.publish()
    assert one.current() == manifest.version_id
    assert two.versions() == [manifest.version_id]
    assert two.current() == manifest.version_id
    folder = two.home / "crosscoders/demo/versions" / manifest.version_id
    two.shelf.need_all(folder)
    assert torch.equal(load_crosscoder(folder).W_dec, crosscoder().W_dec)
    assert not list(one.home.rglob(".tmp-*")) + list(two.home.rglob(".partial-*"))

    measured = publish_again(two.home, manifest, analysis(2.0).latents, allow, two.sharing)
    assert one.versions() == [manifest.version_id, measured.version_id]
    assert one.current() == measured.version_id > manifest.version_id


def test_publishers_of_the_same_at_the_same_moment_get_a_version_each(
    machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal content at an equal time would be an equal id: whoever comes second takes a later one."""
    pair, found, asked = [machine("one"), machine("two")], list[CrosscoderManifest](), SharedShelf.stamp_for
    first = iter(["20270101t000000000"] * 2)
    monkeypatch.setattr(SharedShelf, "stamp_for", lambda self, *given: next(first, None) or asked(self, *given))
    threads = [threading.Thread(target=lambda each=each: found.append(each.publish())) for each in pair]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = sorted(each.version_id for each in found)
    assert [each[:18] for each in ids] == ["20270101t000000000", "20270101t000000001"]
    assert ids[0][18:] == ids[1][18:], "equal content"
    assert pair[0].versions() == pair[1].versions() == ids
    assert pair[0].current() == pair[1].current() == ids[1]


def test_what_a_store_does_not_take_is_kept_and_a_retry_only_publishes_it(
    machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = machine("one"), machine("two")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "create", _away)
        with pytest.raises(StoreAway) as caught:
            one.publish()
    assert caught.value.__notes__ == ["What was made is kept: crosscope retry job-1 only publishes it."]
    assert find_published(one.home, "demo", "job-1") is None
    assert one.versions() == two.versions() == []
    manifest = already_published("demo", one.workspace, silent)
    assert manifest is not None
    assert manifest.job == "job-1"
    assert one.versions() == two.versions() == [manifest.version_id]
    assert already_published("demo", one.workspace, silent) == manifest


def _away(*_: object) -> None:
    raise StoreAway("the store is away")


def test_whoever_lost_his_claim_publishes_nothing(machine: Machines) -> None:
    one, two = machine("one"), machine("two")

    def lost() -> None:
        raise LostClaim

    with pytest.raises(LostClaim):
        one.publish(fence=lost)
    assert one.versions() == two.versions() == []


def test_a_store_that_comes_back_is_waited_for(machine: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    one, said = machine("one"), list[str]()
    monkeypatch.setattr("crosscope_worker.sharing._PAUSES_S", (0.01,))
    answers = iter([StoreAway("s3://b does not answer"), StoreAway("s3://b does not answer"), None])
    asked = Store.create

    def sometimes(self: Store, path: str, data: bytes) -> None:
        if (error := next(answers)) is not None:
            raise error
        asked(self, path, data)

    def listen(stage: str, fraction: float, message: str = "", **_: object) -> None:
        said.append(message)

    monkeypatch.setattr(Store, "create", sometimes)
    one.sharing = replace(one.sharing, wait_s=60, progress=listen)
    one.publish()
    assert len(one.versions()) == 1
    assert "s3://b does not answer; asking again in 0.01 s" in said
    assert any(message.startswith("writing to the store: 0 of 0 MB") for message in said)


def test_a_look_is_shared_and_kept_likewise(machine: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = machine("one"), machine("two")
    manifest = LookManifest("first", PAIR, {}, {}, 4, (), (), 1, 1, 0, 0, 0, {}, job="job-1")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "create", _away)
        with pytest.raises(StoreAway):
            write_look(one.home / "looks" / "first", manifest, {}, allow, one.sharing)
    assert not (one.home / "looks" / "first").exists()
    kept = one.sharing.kept("looks")
    assert kept is not None
    one.sharing.publish("looks", "first", kept, one.home / "looks" / "first", allow)
    two.shelf.refresh()
    assert (two.home / "looks/first/look.json").read_bytes() == (one.home / "looks/first/look.json").read_bytes()
