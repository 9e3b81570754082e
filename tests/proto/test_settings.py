"""Settings of a process: by variable, with an empty variable as if it were not there."""

from pathlib import Path

import pytest
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from crosscope_proto.settings import ProcessSettings, RedisUrl, SettingsError, check_settings, read_settings


class Mill(ProcessSettings):
    model_config = SettingsConfigDict(env_prefix="MILL_")

    num_stones: int = Field(default=2, ge=1)
    river: RedisUrl
    miller: str | None = None


def test_each_wrong_variable_has_a_line_with_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILL_NUM_STONES", "0")
    with pytest.raises(SettingsError) as caught:
        read_settings(Mill)
    assert str(caught.value).splitlines() == [
        "MILL_NUM_STONES: Input should be greater than or equal to 1, but is '0'",
        "MILL_RIVER: must be set",
    ]
    monkeypatch.setenv("MILL_NUM_STONES", "3")
    monkeypatch.setenv("MILL_RIVER", "http://x")
    with pytest.raises(SettingsError, match=r"^MILL_RIVER: must start with redis://.*, but is 'http://x'$"):
        read_settings(Mill)


@pytest.mark.parametrize("given", ["http://miller:grain@x/0", "redis:/miller:grain@x/0", "redis:/:grain@x"])
def test_a_password_in_a_wrong_value_is_not_shown(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("MILL_RIVER", given)
    with pytest.raises(SettingsError, match=r"…@x") as caught:
        read_settings(Mill)
    assert "grain" not in str(caught.value)


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILL_RIVER", "unix:///river.sock")
    monkeypatch.setenv("MILL_NUM_STONES", "")
    monkeypatch.setenv("MILL_MILLER", "")
    monkeypatch.setenv("CROSSCOPE_HOME", "")
    settings = read_settings(Mill)
    assert (settings.num_stones, settings.miller) == (2, None)
    assert settings.home == Path("~/.local/share/crosscope").expanduser()


def test_a_home_is_an_absolute_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MILL_RIVER", "unix:///river.sock")
    monkeypatch.setenv("CROSSCOPE_HOME", "kept")
    assert read_settings(Mill).home == tmp_path / "kept"


def test_a_check_names_what_is_wrong_and_what_is_unknown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Oven(ProcessSettings):
        model_config = SettingsConfigDict(env_prefix="MILL_")

        heat: int = 1

    monkeypatch.setenv("MILL_RIVER", "unix:///river.sock")
    monkeypatch.setenv("MILL_HEAT", "2")
    assert check_settings(Mill, Oven) == 0
    assert check_settings(Mill, Oven, own=["MILL_RIVER"]) == 0
    assert check_settings(Mill, Oven, own=["MILL_HEAT"]) == 1
    assert capsys.readouterr().err == "MILL_HEAT: is a setting of another process, and changes nothing here\n"
    monkeypatch.setenv("MILL_NUM_STONES", "none")
    monkeypatch.setenv("MILL_MILER", "Joe")
    capsys.readouterr()
    assert check_settings(Mill) == 1
    assert capsys.readouterr().err.splitlines() == [
        "MILL_NUM_STONES: Input should be a valid integer, unable to parse string as an integer, but is 'none'",
        "MILL_HEAT: there is no such setting",
        "MILL_MILER: there is no such setting; did you mean MILL_MILLER?",
    ]
