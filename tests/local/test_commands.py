"""How `crosscope` finds the commands of this part, and the files that they write."""

from pathlib import Path

import click
import pytest

from crosscope.cli import group, run
from crosscope_local.commands import demo, doctor, up
from crosscope_local.disk import write_whole


def test_the_command_line_finds_the_commands_by_their_entry_points() -> None:
    context = click.Context(group.crosscope)
    found = [group.crosscope.get_command(context, name) for name in ("up", "demo", "doctor")]
    assert found == [up, demo, doctor]


def test_without_this_part_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(group, "LOCAL_COMMANDS", "crosscope.nowhere")
    assert run(["up", "--no-app", "--port", "0"]) == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith("'crosscope up' needs crosscope-local; in the source's folder: pip install ./store ./local.")
    )
    context = click.Context(group.crosscope)
    completed = {item.value for item in group.crosscope.shell_complete(context, "")}
    assert {"up", "demo", "doctor", "status"} <= completed


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("ftp://a.org", "must begin with http:// or https://"),
        ("https://me:secret@a.org", "must hold no password"),
        ("https://a.org/v1/../admin", "must hold no .."),
    ],
)
def test_addresses_of_endpoints_are_checked(address: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["up", "--no-app", "--label-address", "http://b:8000,https://c.org/v1", "--label-address", address]) == 2
    assert says in capsys.readouterr().err


def test_a_file_holds_the_new_text_or_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    write_whole(file, "old")
    write_whole(file, "new")
    assert file.read_text() == "new"

    def fail(_: int) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="full"):
        write_whole(file, "newer")
    assert (file.read_text(), list(tmp_path.iterdir())) == ("new", [file])
