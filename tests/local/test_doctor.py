"""`crosscope doctor` on a home with a broken pair and broken crosscoders."""

import asyncio
import json
import socket
from pathlib import Path

import pytest
from fixtures_artefacts import write_crosscoder
from fixtures_server import run_front

from crosscope.cli import run
from crosscope_local.doctor import Verdict, examine_service


def test_broken_things_are_bad_and_all_else_is_fine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_crosscoder(tmp_path, "one", 8)
    broken = tmp_path / "pairs" / "broken"
    broken.mkdir()
    (broken / "pair.json").write_text("{")
    later = tmp_path / "crosscoders" / "later"
    (later / "versions" / "v1").mkdir(parents=True)
    (later / "versions" / "v1" / "crosscoder.json").write_text('{"schema_version": 999}')
    (later / "CURRENT").write_text("v1\n")
    (tmp_path / "crosscoders" / "lost").mkdir()
    (tmp_path / "crosscoders" / "lost" / "CURRENT").write_text("v1\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit) as ended:
            run(["doctor", "--home", str(tmp_path), "--port", port, "--app-port", "0", "--json"])
    assert ended.value.code == 1
    found = {each["what"]: (each["verdict"], each["detail"]) for each in json.loads(capsys.readouterr().out)}
    assert found["pairs"][0] == found["crosscoders"][0] == "bad"
    assert found["pairs"][1].startswith("broken: pair.json cannot be used: is not JSON")
    assert "later: crosscoder.json cannot be used: has schema version 999" in found["crosscoders"][1]
    assert "lost: crosscoder.json cannot be read (No such file" in found["crosscoders"][1]
    assert "one" not in found["crosscoders"][1].split(":")[0]
    assert found["server port"][0] == "note"
    assert f"Port {port} of 127.0.0.1 is in use" in found["server port"][1]
    assert found["Redis binary"][0] == "ok"
    assert Path(found["Redis binary"][1]).is_file()
    assert found["torch"][0] == "ok"
    assert {what for what, (verdict, _) in found.items() if verdict == "bad"} == {"pairs", "crosscoders", "service"}
    assert "does not answer; if it is the server, it hangs: end its process with kill -9" in found["service"][1]


async def test_what_is_wrong_with_a_server_that_runs_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with run_front(home=tmp_path) as front:
        port = int(front.address.rpartition(":")[2])
        (finding,) = await asyncio.to_thread(examine_service, "127.0.0.1", port)
    assert (finding.what, finding.verdict) == ("service", Verdict.BAD)
    assert "no inference worker" in finding.detail
    monkeypatch.setenv("CROSSCOPE_TOKEN", "another")
    async with run_front(home=tmp_path, token="s3cret", allow_anyone=False) as front:
        port = int(front.address.rpartition(":")[2])
        (finding,) = await asyncio.to_thread(examine_service, "127.0.0.1", port)
    assert finding.verdict is Verdict.BAD
    assert "CROSSCOPE_TOKEN" in finding.detail
    (finding,) = await asyncio.to_thread(examine_service, "127.0.0.1", port)
    assert finding.verdict is Verdict.NOTE
    assert "crosscope up" in finding.detail
