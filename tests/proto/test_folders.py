"""How large a folder is, whatever lies in it."""

import os
from pathlib import Path

import pytest

from crosscope_proto.folders import bytes_of


def test_files_count_and_links_do_not(tmp_path: Path) -> None:
    (tmp_path / "home/deep").mkdir(parents=True)
    (tmp_path / "home/one").write_bytes(b"123")
    (tmp_path / "home/deep/two").write_bytes(b"4567")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/three").write_bytes(b"x" * 1000)
    (tmp_path / "home/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "home/file-link").symlink_to(tmp_path / "elsewhere/three")
    (tmp_path / "home/nowhere").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "home/pipe")
    assert bytes_of(tmp_path / "home") == 7
    assert bytes_of(tmp_path / "home/one") == 3
    assert bytes_of(tmp_path / "gone") == 0


def test_what_cannot_be_looked_at_counts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").write_bytes(b"123")
    (tmp_path / "two").write_bytes(b"4567")
    real = os.lstat

    def lstat(path: str) -> os.stat_result:
        if str(path).endswith("two"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "lstat", lstat)
    assert bytes_of(tmp_path) == 3
