"""`crosscope tokens`, `audit` and `certs`, on a home without a server."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from fixtures_waiting import PATIENCE_S

from crosscope.cli import run
from crosscope_local import certs, tokens
from crosscope_local.certs import CertsError
from crosscope_local.doctor import Verdict, _home
from crosscope_local.preflight import prepare_home
from crosscope_proto import access
from crosscope_proto.access import AccessError


def test_a_token_is_shown_once_and_kept_as_its_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = ["--home", str(tmp_path)]
    limits = ["--queued-jobs", "3", "--prompt-tokens-per-minute", "1000", "--expires-in-days", "2"]
    assert run(["tokens", "add", "ann", "--role", "submit", *limits, *home]) == 0
    secret = capsys.readouterr().out.strip()
    assert secret.startswith("cs_")
    path = tmp_path / access.TOKENS
    assert secret not in path.read_text()
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    (entry,) = tokens.read(tmp_path)
    assert (entry.name, entry.roles, entry.digest) == ("ann", ("read", "submit"), access.digest(secret))
    assert entry.limits == {"queued_jobs": 3, "prompt_tokens_per_minute": 1000}
    assert entry.expires_at == pytest.approx(entry.created_at + 2 * 86400, abs=60)

    assert run(["tokens", "add", "bob", "--role", "read", "--json", *home]) == 0
    assert json.loads(capsys.readouterr().out)["roles"] == ["read"]
    assert run(["tokens", "list", "--json", *home]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(each["name"], each["last_used_at"]) for each in listed] == [("ann", None), ("bob", None)]
    assert "digest" not in listed[0]
    assert run(["tokens", "list", *home]) == 0
    out = capsys.readouterr().out
    assert "ann" in out
    assert access.digest(secret) not in out
    assert run(["tokens", "revoke", "ann", *home]) == 0
    assert [entry.name for entry in tokens.read(tmp_path)] == ["bob"]


def test_the_home_of_a_token_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tokens", "add", "ann", "--role", "read", "--home", str(tmp_path / "typo")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"No server has served {tmp_path / 'typo'} yet." in said
    assert f"the token of ann for the home {tmp_path / 'typo'}" in said


@pytest.mark.parametrize(
    "command",
    [["tokens", "list"], ["tokens", "revoke", "ann"], ["audit"], ["gc"], ["backup", "a.tar"], ["store", "push"]],
)
def test_a_home_that_is_not_there_is_no_empty_home(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--home", str(tmp_path / "typo")]) == 2
    assert f"there is no home at {tmp_path / 'typo'}" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["add", "bob", "--role", "read"], "there is a token 'bob' already"),
        (["add", "Ann", "--role", "read"], "cannot name a token"),
        (["add", "operator", "--role", "read"], "cannot name a token"),
        (["revoke", "eve"], "no token 'eve'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    tmp_path: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens.add(tmp_path, "bob", ["read"], {}, None)
    before = (tmp_path / access.TOKENS).read_bytes()
    with pytest.raises(SystemExit) as ended:
        run(["tokens", *arguments, "--home", str(tmp_path)])
    assert ended.value.code == 1
    assert says.lower() in " ".join(capsys.readouterr().err.split()).lower()
    assert (tmp_path / access.TOKENS).read_bytes() == before


def test_a_list_that_cannot_be_read_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / access.FOLDER).mkdir()
    (tmp_path / access.TOKENS).write_text("{")
    with pytest.raises(AccessError, match="no list of tokens"):
        tokens.add(tmp_path, "ann", ["read"], {}, None)
    assert (tmp_path / access.TOKENS).read_text() == "{"


def test_a_full_disk_keeps_no_token_from_being_revoked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ann", "bob"):
        tokens.add(tmp_path, name, ["read"], {}, None)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokens, "write_whole", full)
    with pytest.raises(AccessError, match="cannot be changed: No space left on device"):
        tokens.add(tmp_path, "eve", ["read"], {}, None)
    assert [entry.name for entry in tokens.read(tmp_path)] == ["ann", "bob"]
    tokens.revoke(tmp_path, "ann")
    assert [entry.name for entry in tokens.read(tmp_path)] == ["bob"]


def test_certificates_that_find_no_room_are_not_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def full(path: Any, *rest: Any) -> int:
        if str(path).endswith("server.pem"):
            raise OSError(28, "No space left on device")
        return real(path, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", full)
        with pytest.raises(CertsError, match="No space left on device"):
            certs.make(tmp_path, ["gpu7"], [], 1)
    assert len(certs.make(tmp_path, ["gpu7"], [], 1)) == 2


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from crosscope_local import tokens\n"
        "for i in range(10): tokens.add(Path(sys.argv[1]), f'{sys.argv[2]}{i}', ['read'], {}, None)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "ab"]
    assert [writer.wait(PATIENCE_S) for writer in writers] == [0, 0]
    assert len(tokens.read(tmp_path)) == 20


def test_a_home_that_is_made_is_its_owners_alone(tmp_path: Path) -> None:
    tokens.add(tmp_path / "deep" / "home", "ann", ["read"], {}, None)
    prepare_home(tmp_path / "deep" / "other")
    (tmp_path / "mine").mkdir(mode=0o755)
    prepare_home(tmp_path / "mine")
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("deep/home", "deep/other", "mine")]
    assert modes == [0o700, 0o700, 0o755]
    assert [_home(tmp_path / name).verdict for name in ("deep/home", "mine")] == [Verdict.OK, Verdict.NOTE]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--host", "https://gpu7"], "'https://gpu7' is no host"),
        (["--host", "gpu7:50051"], "'gpu7:50051' is no host"),
        (["--host", ""], "'' is no host"),
        (["--client", "../ann"], "cannot name a client"),
        (["--host", "gpu7", "--client", "server"], "cannot name a client"),
        (["--client", "ca"], "cannot name a client"),
    ],
)
def test_names_that_no_certificate_has(
    tmp_path: Path, given: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["certs", str(tmp_path / "certs"), *given])
    assert ended.value.code == 1
    assert says.lower() in " ".join(capsys.readouterr().err.split()).lower()
    assert list(tmp_path.iterdir()) == []


def test_an_authority_that_has_ended_signs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_ended = tmp_path / "ended"
    monkeypatch.setattr(certs, "_end", lambda _: datetime.now(UTC) - timedelta(days=1))
    with pytest.raises(CertsError, match="has ended on"):
        certs.make(made_ended, ["gpu7"], [], 1)
    monkeypatch.undo()
    with pytest.raises(CertsError, match="has ended on"):
        certs.make(made_ended, ["gpu7"], [], 1)


def test_an_authority_of_somebody_else_is_a_sentence(tmp_path: Path) -> None:
    certs.make(tmp_path, [], ["ann"], 1)
    key = rsa.generate_private_key(65537, 2048)
    kinds = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    for lock in (serialization.NoEncryption(), serialization.BestAvailableEncryption(b"hush")):
        (tmp_path / certs.CA_KEY).write_bytes(key.private_bytes(*kinds, lock))
        with pytest.raises(CertsError, match=r"was not made by|cannot be made in"):
            certs.make(tmp_path, [], ["bob"], 1)


def test_the_end_of_the_audit_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def line(latent: int) -> str:
        on = {"latent": latent}
        return json.dumps({"at": 1.0, "who": "ann", "method": "/crosscope.v1.X/Y", "on": on, "outcome": "OK"})

    (tmp_path / f"{access.AUDIT}.1").write_text("".join(f"{line(i)}\n" for i in range(5)))
    (tmp_path / access.AUDIT).write_text("".join(f"{line(i)}\n" for i in range(5, 8)) + "cut sho")
    assert [each["on"] for each in tokens.audit_lines(tmp_path, 4)] == [{"latent": i} for i in (4, 5, 6, 7)]
    assert run(["audit", "--lines", "2", "--home", str(tmp_path), "--json"]) == 0
    assert [json.loads(each)["on"]["latent"] for each in capsys.readouterr().out.splitlines()] == [6, 7]
    assert run(["audit", "--home", str(tmp_path)]) == 0
    assert "X/Y" in capsys.readouterr().out
    assert tokens.audit_lines(tmp_path / "none", 5) == []
