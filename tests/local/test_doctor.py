"""`crosscope doctor` on a home of which some is broken."""

import json
import socket
from pathlib import Path

import pytest

from crosscope.cli import run


def test_what_is_missing_is_told_apart_from_what_is_fine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, broken = tmp_path / "pairs" / "good", tmp_path / "pairs" / "broken"
    for folder, text in ((good, "{}"), (broken, "{")):
        folder.mkdir(parents=True)
        (folder / "pair.json").write_text(text)
    crosscoder = tmp_path / "crosscoders" / "one"
    (crosscoder / "versions" / "v1").mkdir(parents=True)
    (crosscoder / "versions" / "v1" / "crosscoder.json").write_text("{}")
    (crosscoder / "CURRENT").write_text("v1\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit) as ended:
            run(["doctor", "--home", str(tmp_path), "--port", port, "--app-port", "0", "--json"])
    assert ended.value.code == 1
    found = {each["what"]: (each["verdict"], each["detail"]) for each in json.loads(capsys.readouterr().out)}
    assert found["pairs"] == ("bad", "pair.json cannot be read: broken")
    assert found["crosscoders"] == ("ok", "one")
    assert found["server port"][0] == "note"
    assert f"Port {port} of 127.0.0.1 is in use" in found["server port"][1]
    assert found["Redis binary"][0] == "ok"
    assert Path(found["Redis binary"][1]).is_file()
    assert found["torch"][0] == "ok"
    assert {what for what, (verdict, _) in found.items() if verdict == "bad"} == {"pairs"}
