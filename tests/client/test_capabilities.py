"""Capabilities, what is said to be wrong, and `crosscope status` and `top`."""

import dataclasses
import fcntl
import json
import os
import pty
import socket
import struct
import subprocess
import sys
import termios
from typing import Any

import pytest
from fixtures_waiting import PATIENCE_S

from crosscope import (
    CallerStatus,
    Capabilities,
    Client,
    DeviceMemory,
    InferenceWorker,
    JobWorker,
    PartState,
    QueueStatus,
    RequestLimits,
    RunningJob,
    StoreStatus,
    Traffic,
    __version__,
)
from crosscope._problems import problems_of, skew
from crosscope.cli import run
from crosscope.cli.live import picture
from crosscope.cli.standing import parts_of

WORKER = InferenceWorker(
    index=0,
    state=PartState.UP,
    says_serving=True,
    version="0.1.0",
    device="cuda:0",
    memory_bytes=12_000_000_000,
    memory_limit_bytes=80_000_000_000,
    max_prompt_tokens=4096,
    queued_tokens=120,
    device_busy_s=0.2,
)
QUEUE = QueueStatus(
    state=PartState.UP,
    jobs={"queued": 2, "running": 1, "succeeded": 0},
    oldest_queued_s=61.0,
    running=(RunningJob("j1", "crosscoder", "demo", "train", "step 10\x1b[31m", 0.25, 1234.5),),
    workers=(JobWorker("cpu", "2 CPU cores", 8 << 30, 1.0),),
)
WELL = Capabilities(
    version="0.1.0",
    client_version="0.1.0",
    schema_version=1,
    features=("latents", "prompts", "jobs", "cache"),
    pairs=("demo",),
    crosscoders=("demo",),
    broken=(),
    inference_workers=(WORKER,),
    queue=QUEUE,
    cache=PartState.UP,
    disk_free_bytes=90_000_000_000,
    traffic=Traffic(12.5, 0.1, 3.25, 40.0, 7, 150_000_000),
    limits=RequestLimits(4 << 20, 1 << 20, 4096, 65536, 8),
    caller=CallerStatus("ada", ("read", "run"), {"concurrent_calls": 4}),
    store=StoreStatus(PartState.ABSENT, "", "", 0, 0, 0),
)


def test_status_tells_the_memory_of_each_device() -> None:
    each = (
        DeviceMemory("cuda:0", 3_000_000_000, 80_000_000_000, 0.41),
        DeviceMemory("cuda:1", 9_000_000_000, 80_000_000_000),
    )
    found = dataclasses.replace(WELL, **worker(device="cuda:0,cuda:1", devices=each))
    said = dict(parts_of(found))["worker 0"]
    assert said == "cuda:0,cuda:1, cuda:0 3.0 GB of 80.0 GB, 41% busy; cuda:1 9.0 GB of 80.0 GB, 120 tokens wait"


def test_status_tells_the_use_of_the_devices_of_jobs() -> None:
    cpu = JobWorker("cpu", "2 CPU cores", 8 << 30, 1.0, (DeviceMemory("cpu", 6_000_000_000, 8_000_000_000, 1.0),))
    gpus = JobWorker("cuda", "H100", 8 << 30, 1.0, (DeviceMemory("cuda:0", 0, 0, 0.5), DeviceMemory("cuda:1", 0, 0)))
    older = JobWorker("cuda", "H100", 8 << 30, 1.0)
    found = dataclasses.replace(WELL, **queue(workers=(cpu, gpus, older)))
    assert [said for name, said in parts_of(found) if name == "jobs on"] == [
        "2 CPU cores, 6.0 GB of 8.0 GB, 100% busy",
        "H100, cuda:0 50% busy; cuda:1 of unknown use",
        "H100",
    ]


def worker(**changed: Any) -> dict[str, Any]:
    return {"inference_workers": (dataclasses.replace(WORKER, **changed),)}


def refused(**reasons: int) -> dict[str, Any]:
    return {"traffic": dataclasses.replace(WELL.traffic, refused=reasons, max_prompts_under_way=128)}


def queue(**changed: Any) -> dict[str, Any]:
    return {"queue": dataclasses.replace(QUEUE, **changed)}


def store(sentence: str, state: PartState = PartState.AWAY) -> dict[str, Any]:
    return {"store": StoreStatus(state, "s3://b", sentence, 3, 10**6, 10**9)}


def test_nothing_is_wrong_where_all_is_well() -> None:
    assert problems_of(WELL) == ()


@pytest.mark.parametrize(
    ("changed", "said", "action"),
    [
        (
            {"version": "0.2.0", **worker(version="0.2.0")},
            "client is of version 0.1.0, and the server of 0.2.0",
            "0.2.0",
        ),
        (worker(version="0.1.1"), "worker 0 is of version 0.1.1", "same version"),
        (worker(version=""), "older than 0.1", "same version"),
        ({"inference_workers": ()}, "no inference worker", "CROSSCOPE_SERVER_WORKERS"),
        (worker(state=PartState.AWAY), "worker 0 hangs", "kill -9"),
        (worker(state=PartState.AWAY, says_serving=False), "worker 0 is away", "logs/worker.log"),
        (worker(device_busy_s=301.0), "one piece of work on cuda:0 for 301 s", "kill -9"),
        (queue(state=PartState.AWAY), "queue does not answer", "full disk"),
        (queue(workers=()), "No job worker listens, and 2 jobs wait", "crosscope_worker jobs"),
        (queue(workers=(JobWorker("cpu", "2 CPU cores", None, 21.0),)), "said nothing for 21 s", "logs/jobs.log"),
        ({"cache": PartState.AWAY}, "cache does not answer", "nothing is lost"),
        ({"disk_free_bytes": 1_900_000_000}, "Only 1.9 GB are free", "activations/"),
        (
            {"home_bytes": 3_000_000_000, "home_max_bytes": 2_000_000_000},
            "holds 3 GB of the 2 GB that it may: no job is accepted",
            "crosscope gc --dry-run",
        ),
        (store("s3://b does not answer"), "cannot be looked up: s3://b does not answer.", "served meanwhile"),
        (store("x.json cannot be used", PartState.UP), "not shown: x.json cannot be used.", "Mend"),
        ({"broken": ("old",)}, "cannot read old", "publish"),
        (refused(door_full=7), "7 calls of the last ten seconds were refused, because 128 prompt calls", "another"),
        (refused(late=1), "1 call of the last ten seconds was refused", "more time"),
    ],
)
def test_what_is_wrong_is_a_sentence_with_what_to_do(changed: dict[str, Any], said: str, action: str) -> None:
    (problem,) = problems_of(dataclasses.replace(WELL, **changed))
    assert said in problem.sentence
    assert action in problem.action
    assert str(problem).endswith(".")


def test_a_server_without_queue_and_cache_is_not_wrong() -> None:
    absent = QueueStatus(PartState.ABSENT, {}, 0.0, (), ())
    assert problems_of(dataclasses.replace(WELL, queue=absent, cache=PartState.ABSENT)) == ()


@pytest.mark.parametrize(
    ("one", "other", "matters"),
    [
        ("0.1.0", "0.1.9", False),
        ("0.1.0", "0.2.0", True),
        ("1.2.0", "1.9.3", False),
        ("1.0.0", "2.0.0", True),
        ("0.9.0", "1.0.0", True),
        ("0.1.0", "", True),
    ],
)
def test_versions_that_differ_in_a_way_that_matters(one: str, other: str, matters: bool) -> None:
    assert skew(one, other) is skew(other, one) is matters


def test_the_picture_has_what_is_asked_for_and_no_control_characters() -> None:
    said = "\n".join(picture("host:1", WELL))
    for part in (
        "crosscope 0.1.0 at host:1",
        "12.5 a second, 7 under way",
        "3.2 ms for half of them, 40.0 ms for 99 of 100",
        "cuda:0, 12.0 GB of 80.0 GB, 120 tokens wait",
        "2 queued, 1 running; the oldest has waited 61 s",
        "ada: read, run",
        "All is well.",
    ):
        assert part in said
    assert "\x1b" not in said
    row = next(line for line in said.splitlines() if line.startswith("j1"))
    assert row.split()[:6] == ["j1", "crosscoder", "demo", "25%", "1,234", "tokens/s"]


def test_the_real_server_says_what_it_is(real: Client) -> None:
    found = real.capabilities()
    assert (found.version, found.client_version) == (__version__, __version__)
    assert found.features == ("latents", "reflection")
    assert "demo" in found.crosscoders
    assert (found.queue.state, found.cache) == (PartState.ABSENT, PartState.ABSENT)
    assert (found.caller.name, found.caller.roles) == ("operator", ("admin", "read", "run", "submit"))
    assert found.limits == RequestLimits(4 << 20, 1 << 20, None, 65536, 8)
    assert found.disk_free_bytes > 0
    assert [problem.sentence[:34] for problem in found.problems][:1] == ["The server has no inference worker"]
    assert real.capabilities().traffic.calls_per_s > 0


def test_top_alone_prints_one_picture_in_a_pipe(server_address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["top", "--address", server_address]) == 0
    said = capsys.readouterr().out
    assert f"crosscope {__version__} at {server_address}" in said
    assert "! The server has no inference worker" in said
    assert run(["--json", "top", "--address", server_address]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["capabilities"]["version"] == __version__
    assert "CROSSCOPE_SERVER_WORKERS" in document["capabilities"]["problems"][0]["action"]


def test_top_with_options_of_latents_still_needs_a_crosscoder(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["top", "--limit", "5"]) == 2
    assert "Missing argument 'CROSSCODER'" in capsys.readouterr().err


def test_status_without_a_server_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--address", "127.0.0.1:1"]) == 3
    assert "no server answers at 127.0.0.1:1; start one with `crosscope up`" in capsys.readouterr().err


def test_status_of_a_server_that_hangs_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert run(["status", "--address", f"127.0.0.1:{silent.getsockname()[1]}"]) == 3
    assert "it hangs: end its process with kill -9" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["the server's", "127.0.0.1:1"])
def test_top_on_a_terminal_goes_on_until_q(server_address: str, address: str) -> None:
    asked = server_address if address == "the server's" else address
    wanted = "no inference worker" if asked == server_address else "no server answers"
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    command = [sys.executable, "-c", "from crosscope.cli import main; main()", "top", "--address", asked]
    environment = {**os.environ, "TERM": "xterm"}
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    seen = b""
    while wanted.encode() not in seen:
        seen += os.read(controller, 4096)
    os.write(controller, b"q")
    try:
        while os.read(controller, 4096):
            pass
    except OSError:  # the program has closed the terminal
        pass
    assert process.wait(PATIENCE_S) == 0
    os.close(controller)
