"""Room on the disk: told when it is low, with a reserve that goes and comes back. Files are real, the room is told."""

from pathlib import Path

import pytest

from crosscope_local.room import RESERVE, Room, largest_folders

MB = 1_000_000


class Disk:
    """What the disk has left, apart from the reserve."""

    def __init__(self, home: Path) -> None:
        self.home, self.free, self.said = home, 5000 * MB, []
        self.room = Room(
            home,
            lambda *each: self.said.append(each),
            low_bytes=1000 * MB,
            reserve_bytes=3 * MB,
            full_bytes=MB,
            free=lambda _: self.free,
        )

    def look(self, free: int) -> list[str]:
        """What is said when so much is left."""
        self.free, self.said = free, []
        self.room.look()
        return [text for _, text in self.said]


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def test_the_reserve_goes_when_the_disk_is_full_and_comes_back(disk: Disk) -> None:
    reserve = disk.home / RESERVE
    assert disk.look(5000 * MB) == []
    assert reserve.stat().st_size == 3 * MB
    assert reserve.stat().st_blocks * 512 >= 3 * MB
    (disk.home / "jobs" / "a").mkdir(parents=True)
    (disk.home / "jobs" / "a" / "big").write_bytes(b"x" * 2 * MB)
    (told,) = disk.look(MB // 2)
    assert told.startswith(
        f"The disk of {disk.home} is full (0 MB left). The reserve of 3 MB was freed, so that the queue can go on. Free"
    )
    assert told.endswith("The largest folders of the home: jobs/a (2 MB).")
    assert not reserve.exists()
    assert disk.look(3 * MB) == []  # the reserve's own bytes
    assert not reserve.exists()
    assert disk.look(6 * MB) == []
    assert reserve.exists()
    assert disk.look(2000 * MB) == [f"The disk of {disk.home} has room again: 2.0 GB."]
    assert disk.look(MB // 2)[0].startswith(f"The disk of {disk.home} is full")


def test_a_low_disk_is_told_once(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    assert disk.look(900 * MB)[0].startswith(f"The disk of {disk.home} has 900 MB left. Free some: ")
    assert disk.look(800 * MB) == []
    monkeypatch.setattr("crosscope_local.room._AGAIN_S", -1.0)
    assert len(disk.look(800 * MB)) == 1
    assert disk.look(1100 * MB) == [f"The disk of {disk.home} has room again: 1.1 GB."]


def test_a_reserve_that_does_not_fit_is_made_later(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.posix_fallocate", no_room)
        assert disk.look(5000 * MB) == []
    assert list(disk.home.iterdir()) == []
    disk.look(5000 * MB)
    assert (disk.home / RESERVE).exists()


def test_the_largest_folders_are_named(tmp_path: Path) -> None:
    for place, size in (("jobs/a/checkpoints/x", 3), ("jobs/b/y", 1), ("activations/z", 2), ("top", 5)):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(b"x" * size * MB)
    assert [name for name, _ in largest_folders(tmp_path)] == ["jobs/a", "activations", "jobs/b"]
