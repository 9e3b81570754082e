"""`crosscope tokens`, `audit` and `certs`, on a home without a server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures_waiting import PATIENCE_S

from crosscope.cli import run
from crosscope_local import tokens
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


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from crosscope_local import tokens\n"
        "for i in range(10): tokens.add(Path(sys.argv[1]), f'{sys.argv[2]}{i}', ['read'], {}, None)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "ab"]
    assert [writer.wait(PATIENCE_S) for writer in writers] == [0, 0]
    assert len(tokens.read(tmp_path)) == 20


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
