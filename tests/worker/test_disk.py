"""Files and folders are there whole or not at all, and no other module of the worker renames or syncs by hand."""

import ast
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import crosscope_worker
from crosscope_worker import disk
from crosscope_worker.disk import PARTIAL, replace_folder, whole, whole_folder, write_whole

ROOT = Path(str(crosscope_worker.__file__)).parent


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was synced, in order."""
    found: list[str] = []
    monkeypatch.setattr(disk, "sync", lambda path: found.append(path.name))
    return found


def test_a_file_is_replaced_whole_and_its_folder_synced(tmp_path: Path, synced: list[str]) -> None:
    path = tmp_path / "folder" / "note"
    path.parent.mkdir()
    write_whole(path, "one")
    with whole(path) as partial:
        partial.write_text("two")
        assert path.read_text() == "one"
        assert partial.parent.name.startswith(PARTIAL)
    assert path.read_text() == "two"
    assert names(path.parent) == ["note"]
    assert synced == ["note", "folder"] * 2


def test_a_failure_leaves_the_file_as_it_was_and_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "note"
    write_whole(path, "one")
    with pytest.raises(RuntimeError, match="cut"), whole(path) as partial:  # noqa: PT012
        partial.write_text("tw")
        raise RuntimeError("cut")
    assert path.read_text() == "one"
    assert names(tmp_path) == ["note"]


def test_a_file_that_a_library_makes_itself_is_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    with whole(path) as partial:
        save_file({"a": torch.ones(2)}, partial)
    write_whole(tmp_path / "note", "")
    assert load_file(path)["a"].tolist() == [1, 1]
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "note").stat().st_mode)


def test_a_folder_appears_whole_whatever_a_killed_process_left(tmp_path: Path, synced: list[str]) -> None:
    left = tmp_path / f"{PARTIAL}made"
    left.mkdir()
    (left / "of before").touch()
    with whole_folder(tmp_path / "made") as partial:
        (partial / "a").touch()
        assert not (tmp_path / "made").exists()
    assert names(tmp_path) == ["made"]
    assert names(tmp_path / "made") == ["a"]
    assert synced == ["a", partial.name, tmp_path.name]
    with pytest.raises(RuntimeError, match="cut"), whole_folder(tmp_path / "other"):
        raise RuntimeError("cut")
    assert names(tmp_path) == ["made"]


def test_a_folder_that_somebody_moves_away_meanwhile_is_replaced_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
        (folder / folder.name).touch()

    def moved_away(one: Path, other: Path) -> bool:
        one.rename(tmp_path / "elsewhere")
        return False

    monkeypatch.setattr(disk, "exchanged", moved_away)
    replace_folder(old, new)
    assert names(old) == ["new"]
    assert sorted(names(tmp_path)) == ["elsewhere", "old"]


def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_RENAME_EXCHANGE", 1 << 20)  # a flag that no kernel knows
    old = tmp_path / "old"
    old.mkdir()
    (old / "content").touch()
    with pytest.raises(FileNotFoundError):
        replace_folder(old, tmp_path / "absent")
    assert names(old) == ["content"]
    assert names(tmp_path) == ["old"]


def calls(path: Path) -> Iterator[str]:
    """Calls by which a module renames or syncs by hand, or makes a temporary name to rename later."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        is_path_replace = name == "replace" and isinstance(node.func, ast.Attribute) and len(node.args) == 1
        if name in ("rename", "renames", "fsync", "NamedTemporaryFile", "mkstemp") or (
            is_path_replace and not node.keywords
        ):
            yield f"{path.relative_to(ROOT)}:{node.lineno} {name}"


def test_only_disk_renames_and_syncs() -> None:
    assert [call for path in sorted(ROOT.rglob("*.py")) if path.name != "disk.py" for call in calls(path)] == []
    assert len(list(calls(ROOT / "disk.py"))) >= 3


def test_of_two_that_fill_one_folder_the_first_to_end_counts(tmp_path: Path):
    with disk.first_folder(tmp_path / "part") as late:
        with disk.first_folder(tmp_path / "part") as early:
            (early / "who").write_text("early")
        (late / "who").write_text("late")
    assert (tmp_path / "part" / "who").read_text() == "early"

    def fail() -> None:
        with disk.first_folder(tmp_path / "other") as folder:
            (folder / "half").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(tmp_path) == ["part"]
