"""`crosscope up --config FILE`: what a file may say, whose word counts, and what is said of a wrong one."""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from crosscope.cli import run
from crosscope_local.child import Child, Program, environment_of
from crosscope_local.config import Config, ConfigError, read_config
from crosscope_local.preflight import PreflightError, check_exposure
from crosscope_local.programs import Installation

Write = Callable[[str], Path]
OPTIONS = {"home": str, "port": int, "data_root": list, "no_app": bool, "log_mb": float}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        file = tmp_path / "crosscope.toml"
        file.write_text(text)
        return file

    return write


def installed(folder: Path, config: Config) -> Installation:
    return Installation(folder, "127.0.0.1", 50051, None, folder, settings=config.settings)


def test_options_and_settings(write: Write, tmp_path: Path) -> None:
    file = write(
        """
        [up]
        home = "data"
        port = 0
        data_root = ["/sets", "more"]
        no_app = true
        [server]
        search_bytes = 2_000_000
        reflection = false
        [jobs]
        keep_checkpoints_days = 0.5
        """
    )
    config = read_config(file, OPTIONS)
    assert config.options == {
        "home": str(tmp_path / "data"),
        "port": 0,
        "data_root": ["/sets", str(tmp_path / "more")],
        "no_app": True,
    }
    assert config.settings == {
        "server": {"CROSSCOPE_SERVER_SEARCH_BYTES": "2000000", "CROSSCOPE_SERVER_REFLECTION": "false"},
        "jobs": {"CROSSCOPE_WORKER_KEEP_CHECKPOINTS_DAYS": "0.5"},
    }


def test_each_thing_that_is_wrong_has_a_line(write: Write) -> None:
    file = write(
        """
        home = "data"
        [up]
        porrt = 1
        [servr]
        [server]
        token = "abc"
        listen = "0.0.0.0:1"
        search_bytes = {a = 1}
        """
    )
    with pytest.raises(ConfigError) as caught:
        read_config(file, OPTIONS)
    assert [line.removeprefix(f"{file}: ") for line in str(caught.value).splitlines()] == [
        "home: stands in no section; write it below [up]",
        "[servr]: there is no such section; there are up, server, worker, jobs",
        "[up] porrt: up has no such option; it has home, port, data_root, no_app, log_mb",
        "[server] token: keep secrets out of files; set CROSSCOPE_SERVER_TOKEN instead",
        "[server] listen: up makes this one from its own options; see [up]",
        "[server] search_bytes: write a number, a text, true, false, or a list of texts",
    ]
    with pytest.raises(ConfigError, match=r"is not TOML: Expected '\]'"):
        read_config(write("\n[up"), OPTIONS)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("home = 5", "a text"),
        ("home = ''", "a text"),
        ("home = ['a']", "a text"),
        ("port = 1.5", "a whole number"),
        ("port = true", "a whole number"),
        ("no_app = 'yes'", "true or false"),
        ("no_app = 1", "true or false"),
        ("data_root = '/sets'", "a list of texts"),
        ("data_root = [1]", "a list of texts"),
        ("log_mb = nan", "a number"),
        ("log_mb = true", "a number"),
    ],
)
def test_an_option_of_another_type_is_refused_and_not_converted(write: Write, line: str, says: str) -> None:
    name = line.partition(" ")[0]
    with pytest.raises(ConfigError, match=rf"\[up\] {name}: write {says}"):
        read_config(write(f"[up]\n{line}\n"), OPTIONS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[server]\nTOKEN = "abc"\n', r"\[server\] 'TOKEN': a setting is named in small letters"),
        ('[server]\n"a=b" = 1\n', r"\[server\] 'a=b': a setting is named in small letters"),
        ('[worker]\ndevice = "a\\u0000"\n', r"\[worker\] device: write a number, a text"),
        (f"a = {'[' * 5000}", "nests its values too deeply|is not TOML"),
        (f"[up]\nport = {'9' * 5000}", "is not TOML: Exceeds the limit"),
        (f"[up]\nport = 0x{'f' * 5000}", r"\[up\] port: write a whole number; it is 'a number of thousands of digits'"),
        (f"[up]\nhome = [0x{'f' * 5000}]", r"\[up\] home: write a text"),
        (f"[up]\nlog_mb = 0x{'f' * 300}", r"\[up\] log_mb: write a number"),
        (f"[server]\nhome_gb = 0x{'f' * 5000}", r"\[server\] home_gb: write a number, a text"),
    ],
)
def test_names_and_values_that_no_environment_holds(write: Write, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_config(write(text), OPTIONS)


def test_files_that_settings_name_lie_beside_the_file(write: Write, tmp_path: Path) -> None:
    config = read_config(write('[server]\ntls_cert = "certs/server.pem"\ntls_key = "/etc/key.pem"\n'), OPTIONS)
    assert config.settings["server"] == {
        "CROSSCOPE_SERVER_TLS_CERT": str(tmp_path / "certs/server.pem"),
        "CROSSCOPE_SERVER_TLS_KEY": "/etc/key.pem",
    }


def test_the_files_tls_counts_where_others_reach_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TLS_CERT", "ALLOW_PLAINTEXT"):
        monkeypatch.delenv(f"CROSSCOPE_SERVER_{name}", raising=False)
    check_exposure("0.0.0.0", {"CROSSCOPE_SERVER_TLS_CERT": "/server.pem"}, with_app=False)
    check_exposure("0.0.0.0", {"CROSSCOPE_SERVER_ALLOW_PLAINTEXT": "true"}, with_app=False)
    monkeypatch.setenv("CROSSCOPE_SERVER_ALLOW_PLAINTEXT", "false")
    with pytest.raises(PreflightError, match="needs TLS"):
        check_exposure("0.0.0.0", {"CROSSCOPE_SERVER_ALLOW_PLAINTEXT": "true"}, with_app=False)


def test_the_processes_judge_their_settings_in_the_files_words(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSCOPE_WORKER_MAX_BATCH_TOKENS", "0")
    file = write(
        "[server]\nstream_in_flight = 0\nserch_bytes = 1\n[worker]\nmax_batch_tokens = 64\njob_beat_s = 5\n[jobs]\n"
    )
    config = read_config(file, OPTIONS)
    with pytest.raises(ConfigError) as caught:
        config.check(installed(tmp_path, config).programs())
    lines = [line.removeprefix(f"{file}: ") for line in str(caught.value).splitlines()]
    assert lines == [
        "[server] stream_in_flight: Input should be greater than or equal to 1, but is '0'",
        "[server] serch_bytes: there is no such setting; did you mean search_bytes?",
        # What the environment says wins over the file, so it is named as the environment's.
        "CROSSCOPE_WORKER_MAX_BATCH_TOKENS: Input should be greater than or equal to 1, but is '0'",
        "[worker] job_beat_s: is a setting of another process, and changes nothing here",
    ]


def test_the_environment_wins_over_the_file_and_up_over_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program(
        "server", (sys.executable,), None, {"A": "up"}, {"A": "file", "B": "file", "C": "file"}, (("A", "B", "C"),)
    )
    monkeypatch.setenv("A", "shell")
    monkeypatch.setenv("B", "shell")
    monkeypatch.setenv("C", "")  # as if it were not set
    got = environment_of(program)
    assert (got["A"], got["B"], got["C"]) == ("up", "shell", "file")

    said = tmp_path / "log"
    child = Child(replace(program, command=(sys.executable, "-c", "import os; print(os.environ['B'])")), said)
    while not child.has_ended():
        time.sleep(0.02)
    assert said.read_text() == "shell\n"


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `up` says when it starts nothing."""
    try:
        code = run(["up", *arguments])
    except SystemExit as ended:
        code = ended.code
    assert code in (1, 2)
    return "".join(capsys.readouterr())


def test_up_takes_its_options_from_the_file(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CROSSCOPE_HOME", raising=False)
    (tmp_path / "data").write_text("a file where the home should be")
    file = str(write('[up]\nhome = "data"\nno_app = true\nport = 0\n'))
    assert f"'{tmp_path / 'data'}' is a file" in refusal(capsys, "--config", file)
    assert "other cannot be written to" in refusal(capsys, "--config", file, "--home", str(tmp_path / "data" / "other"))
    monkeypatch.setenv("CROSSCOPE_HOME", str(tmp_path / "data" / "shell"))
    assert "shell cannot be written to" in refusal(capsys, "--config", file)
    assert "[up] port: write a whole number; it is 'x'" in refusal(capsys, "--config", str(write("[up]\nport = 'x'\n")))


def test_up_says_what_is_wrong_before_anything_starts(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(f'[up]\nhome = "{tmp_path / "home"}"\nno_app = true\nport = 0\n[server]\nlog_level = "loud"\n')
    assert "[server] log_level: String should match pattern" in refusal(capsys, "--config", str(file))
    assert not (tmp_path / "home" / "logs" / "server.log").exists()
