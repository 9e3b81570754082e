"""`crosscope gc`: what goes, and what stays."""

import json
import os
from pathlib import Path

import pytest

from crosscope.cli import run
from crosscope_local.garbage import Keep, find, remove

NOW = 2_000_000_000.0
DAY = 86_400.0


def put(home: Path, name: str, age_days: float, text: str = "xy") -> None:
    path = home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    for each in (path, *(parent for parent in path.parents if parent.is_relative_to(home) and parent != home)):
        os.utime(each, (NOW - age_days * DAY, NOW - age_days * DAY))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for age, version in ((50, "v1"), (40, "v2"), (30, "v3"), (20, "v4")):
        put(tmp_path, f"crosscoders/c/versions/{version}/crosscoder.json", age)
    put(tmp_path, "crosscoders/c/CURRENT", 45, "v1\n")  # somebody went back to it
    put(tmp_path, "crosscoders/without-current/versions/v1/crosscoder.json", 50)
    put(tmp_path, "search/c/v4-abc.arrow", 1)
    put(tmp_path, "search/c/v0-abc.arrow", 1)
    put(tmp_path, "crosscoders/c/versions/.partial-1/file", 0.5)
    put(tmp_path, "crosscoders/c/versions/.partial-2/file", 0.01)
    put(tmp_path, "activations/old/shard-000000.safetensors", 31)
    put(tmp_path, "activations/old/.partial-1/shard", 31)
    put(tmp_path, "activations/new/shard-000000.safetensors", 29)
    ended, running = '{"event": "end", "state": "failed"}\n', '{"event": "stage"}\n'
    put(tmp_path, "jobs/ended-long-ago/log.jsonl", 91, ended)
    put(tmp_path, "jobs/ended-lately/log.jsonl", 89, ended)
    put(tmp_path, "jobs/never-ended/log.jsonl", 91, running)
    put(tmp_path, "jobs/unreadable/log.jsonl", 91, "\x00")
    put(tmp_path, "jobs/to-be-retried/log.jsonl", 91, ended)
    put(tmp_path, "jobs/to-be-retried/checkpoints/step-1/weights", 91)
    put(tmp_path, "labels/one.refused", 91)
    put(tmp_path, "labels/two", 91)
    return tmp_path


def found(home: Path, keep: Keep) -> set[str]:
    return {str(each.path.relative_to(home)) for each in find(home, keep, NOW)}


def test_what_goes(home: Path) -> None:
    always = {"search/c/v0-abc.arrow", "crosscoders/c/versions/.partial-1"}
    assert found(home, Keep()) == always | {
        "crosscoders/c/versions/v2",
        "crosscoders/c/versions/v3",
        "activations/old",
        "jobs/ended-long-ago",
        "labels/one.refused",
    }
    assert found(home, Keep(versions=4, jobs_days=1000, activations_days=1000)) == always | {
        "activations/old/.partial-1"
    }
    assert {"crosscoders/c/versions/v4", "jobs/ended-lately", "activations/new"} <= found(home, Keep(1, 1, 1))


def test_what_goes_is_gone_and_the_rest_stays(home: Path) -> None:
    before = {path for path in home.rglob("*") if path.is_file()}
    garbage = find(home, Keep(), NOW)
    assert [each.bytes for each in garbage] == sorted((each.bytes for each in garbage), reverse=True)
    assert {remove(each) for each in garbage} == {None}
    after = {path for path in home.rglob("*") if path.is_file()}
    assert before - after == {path for path in before if any(path.is_relative_to(each.path) for each in garbage)}
    assert find(home, Keep(), NOW) == []


def test_what_cannot_be_removed_is_not_said_to_be_freed(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.raises(SystemExit) as ended:
        run(["gc", "--home", str(home), "--json"])
    assert ended.value.code == 1
    said = json.loads(capsys.readouterr().out)
    assert all(Path(failure.partition(": ")[0]).exists() for failure in said["failures"])
    assert said["failures"]
    assert not any(Path(row["path"]).exists() for row in said["garbage"])


def test_activations_that_are_read_are_of_use(home: Path) -> None:
    shard = home / "activations/old/shard-000000.safetensors"
    os.utime(shard, (NOW - DAY, NOW - 31 * DAY))  # read yesterday
    assert "activations/old" not in found(home, Keep())


def test_the_command_says_what_would_go_and_removes_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            run(["gc", "--home", str(home), "--versions", "4", *arguments])
        return int(ended.value.code or 0), capsys.readouterr().out

    code, said = call("--dry-run")
    assert (code, "Would free 0.0 MB in" in said, "search indices of versions that are gone" in said) == (0, True, True)
    code, said = call("--dry-run", "--json")
    paths = {row["path"] for row in json.loads(said)["garbage"]}
    assert str(home / "search/c/v0-abc.arrow") in paths
    assert all(Path(path).exists() for path in paths)
    assert call()[0] == 0
    assert not any(Path(path).exists() for path in paths)
    assert "There is nothing to free." in call()[1]
