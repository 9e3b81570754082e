"""The command line as processes and in-process against the real server."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_waiting import PATIENCE_S

from crosscope import Client, LatentActivation, TokenRole
from crosscope._tables import duration
from crosscope.cli import run
from crosscope.cli.output import to_plain
from crosscope_proto.v1 import jobs_pb2, jobs_pb2_grpc, types_pb2


@pytest.fixture
def cli(server_address: str, monkeypatch, capsys):
    """Runs a command against the real server: (exit code, stdout, stderr)."""
    monkeypatch.setenv("CROSSCOPE_ADDRESS", server_address)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def process(*arguments: str, address: str = "127.0.0.1:1", stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "CROSSCOPE_ADDRESS": address}
    command = [sys.executable, "-c", "from crosscope.cli import main; main()", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, env=environment, timeout=60)


def test_help_lists_every_command_and_loads_none(cli) -> None:
    code, out, _ = cli("--help")
    assert code == 0
    names = "demo up doctor status look submit plan jobs watch log cancel retry crosscoders latents latent encode top"
    for name in [*names.split(), "tokenize", "completion"]:
        assert f"\n  {name}  " in out
    script = "import sys; from crosscope.cli import run; run(['--help']); print({'grpc', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    "name",
    ["status", "look", "submit", "plan", "jobs", "watch", "log", "cancel", "retry", "latents", "encode", "top", "up"],
)
def test_every_command_has_help(cli, name: str) -> None:
    code, out, _ = cli(name, "--help")
    assert code == 0
    assert out.startswith(f"Usage: crosscope {name}")


def test_status(cli) -> None:
    code, out, _ = cli("status")
    assert code == 0
    assert "prompts  not serving" in out
    assert "batch_topk  1200" in out
    assert "! The server has no inference worker" in out
    code, out, _ = cli("status", "--json")
    document = json.loads(out)
    assert document["services"] == {"latents": True, "prompts": False, "jobs": False}
    assert document["crosscoders"][0]["name"] == "demo"


def test_latents_as_table_and_json(cli) -> None:
    code, out, err = cli("latents", "demo", "--where", "rel_norm > 0.4", "--order-by=-max", "--limit", "3")
    assert code == 0
    assert out.splitlines()[0].split()[:4] == ["id", "class", "verdict", "rel_norm"]
    assert len(out.splitlines()) == 4
    assert "more; --limit" in err
    ids = [int(line.split()[0]) for line in out.splitlines()[1:]]
    code, out, _ = cli("--json", "latents", "demo", "--where", "rel_norm > 0.4", "--order-by=-max", "--limit", "3")
    document = json.loads(out)
    assert [latent["id"] for latent in document["latents"]] == ids
    assert "source" not in document["latents"][0]


def test_latents_by_verdict(cli) -> None:
    code, out, _ = cli("latents", "demo", "--where", "verdict = contradicted", "--order-by=-max", "--limit", "3")
    assert code == 0
    assert [line.split()[2] for line in out.splitlines()] == ["verdict", *["contradicted"] * 3]
    asked = ("latents", "demo", "--where", "verdict = contradicted", "--order-by=-max", "--limit", "1")
    [latent] = json.loads(cli("--json", *asked)[1])["latents"]
    assert latent["verdict"]["verdict"] == "contradicted"
    said = f"contradicted: {', '.join(latent['verdict']['reasons'])}"
    assert said in cli("latent", "demo", str(latent["id"]), "--examples", "0")[1]
    code, _, err = cli("latents", "demo", "--where", "verdict = good")
    assert code == 2
    assert "there are supported, weak, contradicted, too_few, not_judged" in err


def test_latents_as_one_file(cli, tmp_path) -> None:
    file = tmp_path / "latents.html"
    code, out, _ = cli("export", "html", "demo", "0", "3", "--out", str(file))
    assert (code, out) == (0, f"{file}: {file.stat().st_size:,} bytes\n")
    assert file.read_text("utf-8").count("<section") == 2
    assert cli("lists", "demo", "of mine", "--create", "--add", "3,0")[0] == 0
    code, _, _ = cli("export", "html", "demo", "--list", "of mine", "--out", str(file))
    document = file.read_text("utf-8")
    assert "<title>demo: of mine</title>" in document
    assert document.index('<section id="latent-3">') < document.index('<section id="latent-0">')
    code, _, err = cli("export", "html", "demo", "--out", str(file))
    assert code == 2
    assert "name latents, give --list a name, or give --prompt a text" in err
    code, _, err = cli("export", "html", "demo", "0", "--out", str(tmp_path / "none" / "latents.html"))
    assert code == 1
    assert "cannot be written" in err


def test_latent_and_crosscoder(cli) -> None:
    code, out, _ = cli("latent", "demo", "0", "--examples", "2", "--context", "3")
    assert code == 0
    assert "latent 0 of demo" in out
    assert "no logit_lens_chat: Some model has no head" in out
    assert out.count("⟦") >= 2
    document = json.loads(cli("latent", "demo", "0", "--examples", "2", "--json")[1])
    assert len(document["examples"]) == 2
    assert document["examples"][0]["tokens"]["roles"][0] == "bos"
    assert json.loads(cli("crosscoders", "demo", "--json")[1])["crosscoder"]["num_latents"] == 1200
    assert "demo" in cli("crosscoders")[1]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("latents",), 2, "Missing argument"),
        (("nonsense",), 2, "No such command"),
        (("latnet", "demo", "7"), 2, "Did you mean latent"),
        (("--address", "127.0.0.1:99999", "status"), 2, "not between 1 and 65535"),
        (("latents", "demo", "--where", "nu_err"), 2, "is not a condition"),
        (("latents", "demo", "--where", "nope < 1"), 2, "nope"),
        (("latents", "demo", "--where", "max < nan"), 2, "finite"),
        (("latents", "demo", "--limit", "0"), 2, "range"),
        (("latent", "demo", "99999"), 1, "99999"),
        (("latents", "nope"), 1, "nope"),
        (("encode", "demo"), 2, "--message"),
        (("encode", "demo", "hi", "--message", "user:hi"), 2, "one of them"),
        (("encode", "demo", "--turn", "user:hi", "--message", "user:hi"), 2, "one of them"),
        (("encode", "demo", "--message", "hi"), 2, "--message 'hi' has no role"),
        (("encode", "demo", "--turn", "hi"), 2, "--turn 'hi' has no role"),
        (("encode", "demo", "hi", "--stored-text", "1"), 2, "one of them"),
        (("encode", "demo", "--token-ids", "2 x"), 2, "--token-ids 'x' is no token id"),
        (("encode", "demo", "--stored-text", "1", "--control-tokens"), 2, "goes with a text or messages"),
        (("encode", "demo", "hi"), 3, "no inference worker"),
        (("jobs",), 3, "queue"),
        (("submit", "nowhere.yaml"), 2, "No such file"),
        (("status", "--address", "127.0.0.1:1"), 3, "crosscope up"),
        (("--address", "nonsense", "status"), 2, "host:port"),
        (("--address", "127.0.0.1:1", "doctor"), 2, "--address cannot stand before its name"),
        (("--token", "x", "up"), 2, "--token cannot stand before its name"),
        (("--json", "demo"), 2, "--json goes with --once"),
        (("up", "--home", ""), 2, "is empty or the current folder"),
    ],
)
def test_exit_codes_and_sentences(cli, arguments: tuple[str, ...], code: int, says: str) -> None:
    got, out, err = cli(*arguments)
    assert (got, out) == (code, "")
    assert says in err
    assert "Traceback" not in err


def test_errors_as_json(cli) -> None:
    code, out, err = cli("latents", "demo", "--where", "nope < 1", "--json")
    assert (code, out) == (2, "")
    document = json.loads(err)
    assert document["error"] == "InvalidInput"
    assert document["violations"][0]["field"] == "filters[0].column"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("nosuch",), "No such command 'nosuch'"), (("encode", "demo"), "one of them"), (("demo",), "--once")],
)
def test_wrong_usage_as_json(cli, arguments: tuple[str, ...], says: str) -> None:
    code, out, err = cli("--json", *arguments)
    assert (code, out) == (2, "")
    assert says in json.loads(err)["message"]


@pytest.mark.parametrize("name", ["completion", "latents"])
def test_examples_in_help_keep_their_lines(cli, name: str) -> None:
    _, out, _ = cli(name, "--help")
    assert "\\b" not in out
    assert any(line.strip().startswith(("zsh: ", "crosscope latents demo --where")) for line in out.splitlines())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_full_disk_is_a_sentence(server_address: str, form: list[str]) -> None:
    command = [sys.executable, "-c", "from crosscope.cli import main; main()", "latents", "demo", *form]
    environment = {**os.environ, "CROSSCOPE_ADDRESS": server_address}
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment, timeout=60)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1] == "error: the output cannot be written: No space left on device"
    assert b"Traceback" not in done.stderr


def test_prompts(scripted: Client, prompts: Any) -> None:
    address = scripted.address
    done = process("encode", "demo", "-", "--json", address=address, stdin="hé\n".encode())
    assert json.loads(done.stdout)["tokens"]["pieces"] == ["<bos>", "h", "é"]
    done = process("encode", "demo", "a\x1b[2Jb", address=address)
    assert b"\x1b" not in done.stdout
    assert b"\\u001b" in done.stdout
    for option in ("--message", "--turn"):
        done = process("top", "demo", option, "user:hi: you", "--skip-template", address=address)
        assert done.stderr.decode() == "… 8 more; --limit shows more\n"
    assert done.stdout.splitlines()[1].split() == b"7 2.5 2.5 4 2 1 h".split()
    done = process("tokenize", "demo", "hi", address=address)
    assert [line.split()[2] for line in done.stdout.splitlines()[1:]] == [b"<bos>", b"h", b"i"]
    for options, content in (
        (("--token-ids", "2, 17 99"), types_pb2.Prompt(token_ids=types_pb2.TokenIds(ids=[2, 17, 99]))),
        (("--stored-text", "0"), types_pb2.Prompt(stored_text=types_pb2.StoredText(sequence_id=0))),
    ):
        assert process("tokenize", "demo", *options, address=address).returncode == 0
        assert prompts.last.prompt == content
    done = process("encode", "demo", "-", address=address, stdin=b"caf\xe9")
    assert done.returncode == 2
    assert b"lone surrogate" in done.stderr
    assert b"Traceback" not in done.stderr


def test_ranges_and_tokens_that_were_left_out(online: Client, online_address: str) -> None:
    def run(*options: str) -> tuple[list[bytes], str]:
        done = process("top", "demo", "ab!", *options, address=online_address)
        return [line.split()[0] for line in done.stdout.splitlines()[1:]], done.stderr.decode()

    says = "1 token is not ranked, as training left such tokens out (BOS, outlying norms). --include-left-out ranks"
    latents, told = run()
    assert (latents, told.startswith(says)) == ([b"2", b"1", b"3"], True)
    assert run("--include-left-out") == ([b"3", b"2", b"1"], "")
    assert run("--tokens", "1:2") == ([b"1", b"3"], "")
    assert run("--tokens", "-2:-1")[0] == [b"2", b"3"]
    assert run("--tokens", "-1")[0] == []
    assert run("--tokens=-1", "--include-left-out")[0] == [b"3"]
    for wrong in ("a:b", "", "1:2:3"):
        done = process("top", "demo", "ab!", "--tokens", wrong, address=online_address)
        assert done.returncode == 2
        assert b"range" in done.stderr
    done = process("encode", "demo", "ab!", address=online_address)
    assert b"text, left out: norm" in done.stdout.splitlines()[-1]


def test_arguments_of_the_template_and_reasoning_that_it_drops(scripted: Client, prompts: Any) -> None:
    messages = ("--message", "user:hi", "--message", "assistant:<think>a</think>b")
    for command in ("tokenize", "encode", "top"):
        told = ("--template-kwargs", '{"enable_thinking": false}')
        done = process(command, "demo", *messages, *told, address=scripted.address)
        assert done.returncode == 0
        assert b"does not print the reasoning of message 1" in done.stderr
        conversation = prompts.last.prompt.conversation
        assert json.loads(conversation.chat_template_kwargs_json) == {"enable_thinking": False}
    done = process("tokenize", "demo", *messages, "--template-kwargs", "{no}", address=scripted.address)
    assert done.returncode == 2
    assert b"--template-kwargs is not JSON" in done.stderr


def test_a_reader_that_ends_early(server_address: str) -> None:
    command = [sys.executable, "-c", "from crosscope.cli import main; main()", "latents", "demo", "--limit", "1200"]
    environment = {**os.environ, "CROSSCOPE_ADDRESS": server_address}
    reader, writer = os.pipe()
    os.close(reader)
    running = subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, env=environment)
    os.close(writer)
    _, err = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 141
    assert b"Traceback" not in err
    assert b"BrokenPipe" not in err


def in_terminal(address: str, columns: int, *arguments: str, **environment: str) -> tuple[int, bytes]:
    """Runs a command with a terminal of that many columns; its exit code and all that it wrote."""
    master, slave = pty.openpty()
    command = [sys.executable, "-c", "from crosscope.cli import main; main()", "--address", address, *arguments]
    inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    variables = {**inherited, "COLUMNS": str(columns), "TERM": "xterm-256color", **environment}
    running = subprocess.Popen(command, stdout=slave, stderr=slave, stdin=slave, env=variables)
    os.close(slave)
    written = b""
    with contextlib.suppress(OSError):  # the terminal's end is EIO
        while chunk := os.read(master, 4096):
            written += chunk
    os.close(master)
    return running.wait(PATIENCE_S), written


def plain_lines(written: bytes) -> list[str]:
    return re.sub(rb"\x1b\[[?\d;]*[a-zA-Z]", b"", written).decode().replace("\r", "\n").splitlines()


def test_a_narrow_terminal(server_address: str) -> None:
    code, written = in_terminal(server_address, 40, "crosscoders")
    assert code == 0
    assert any(line.startswith("demo") for line in plain_lines(written))
    assert all(len(line) <= 40 for line in plain_lines(written) if not line.startswith("… no room for"))


def test_columns_without_room_are_left_out_and_named(server_address: str) -> None:
    _, written = in_terminal(server_address, 60, "latents", "demo", "--limit", "2")
    header, *lines = plain_lines(written)
    assert header.split()[:4] == ["id", "class", "verdict", "rel_norm"]
    assert "name" not in header
    assert any("no room for" in line and line.endswith("name; widen the terminal, or use --json") for line in lines)
    _, wide = in_terminal(server_address, 160, "latents", "demo", "--limit", "2")
    assert plain_lines(wide)[0].split()[-1] == "name"


@pytest.mark.parametrize(("columns", "has_message"), [(30, False), (100, True)])
def test_bars(serve, columns: int, has_message: bool) -> None:
    jobs = WatchedJobs()
    jobs.release.set()
    code, written = in_terminal(serve(jobs).address, columns, "watch", "j1")
    lines = plain_lines(written)
    assert code == 4
    assert any("train" in line and "50%" in line for line in lines)
    assert any("half way" in line for line in lines) == has_message, lines
    bars = [line for line in lines if "50%" in line]
    assert all(len(line) <= columns for line in bars)


def test_no_color(serve) -> None:
    jobs = WatchedJobs()
    jobs.release.set()
    address = serve(jobs).address
    coloured = re.compile(rb"\x1b\[[\d;]*3[0-8]")
    assert coloured.search(in_terminal(address, 60, "watch", "j1")[1])
    assert not coloured.search(in_terminal(address, 60, "watch", "j1", NO_COLOR="1")[1])


def test_completion(cli) -> None:
    for shell in ("bash", "zsh", "fish"):
        code, out, _ = cli("completion", shell)
        assert code == 0
        assert "_CROSSCOPE_COMPLETE" in out
    environment = {
        **os.environ,
        "_CROSSCOPE_COMPLETE": "bash_complete",
        "COMP_WORDS": "crosscope la",
        "COMP_CWORD": "1",
    }
    command = [sys.executable, "-c", "from crosscope.cli import main; main()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["plain,latents", "plain,latent", "plain,label"]


def test_ctrl_c_leaves_the_job_and_exits_with_130(serve) -> None:
    jobs = WatchedJobs()
    # In the background of a shell SIGINT comes ignored.
    hear = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{hear}; from crosscope.cli import main; main()", "watch", "j1"]
    environment = {**os.environ, "CROSSCOPE_ADDRESS": serve(jobs).address}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as running:
        try:
            assert jobs.watched.wait(PATIENCE_S)
            running.send_signal(signal.SIGINT)
            _, err = running.communicate(timeout=PATIENCE_S)
        finally:
            running.kill()
            jobs.release.set()
    assert running.returncode == 130
    assert b"Traceback" not in err


class WatchedJobs(jobs_pb2_grpc.JobsServicer):
    """One job that fails when it is released."""

    def __init__(self) -> None:
        self.watched, self.release = threading.Event(), threading.Event()

    def job(self, state: jobs_pb2.JobState.ValueType) -> jobs_pb2.Job:
        job = jobs_pb2.Job(id="j1", kind="crosscoder", name="demo", state=state, stage="train", message="no disk")
        job.recipe_yaml, job.total_fraction = "kind: crosscoder", 0.4
        job.eta_s = 3 * 3600 if state == jobs_pb2.JOB_STATE_RUNNING else 0
        return job

    def SubmitJob(self, request, context):
        assert request.validate_only
        job = jobs_pb2.Job(kind="crosscoder", name="demo")
        return jobs_pb2.SubmitJobResponse(job=job, warnings=["the warm-up is long"])

    def PlanJob(self, request, context):
        job = jobs_pb2.Job(kind="crosscoder", name="demo")
        steps = jobs_pb2.PlanEntry(name="steps", value=2500, note="of 64 tokens")
        device = jobs_pb2.DevicePlan(
            name=request.device or "2 CPU cores",
            memory_bytes=2_000_000_000,
            free_bytes=1_000_000_000,
            memory=[jobs_pb2.PlanEntry(name="both models", value=3e9, unit="bytes")],
            fit=jobs_pb2.FIT_NO,
            ways_out=["training.batch_size 16 would fit"],
            times=[jobs_pb2.PlanEntry(name="training", unit="seconds", note="no rates")],
        )
        gated = jobs_pb2.Download(field="pair.base", source="a/b", size_bytes=5_200_000_000, gated=True)
        disk = jobs_pb2.DiskPlan(
            entries=[
                jobs_pb2.PlanEntry(name="version: weights", value=2.7e9, unit="bytes", note="kept"),
                jobs_pb2.PlanEntry(name="parts", unit="bytes", note="nobody knows"),
            ],
            peak_bytes=2_700_000_000,
            kept_bytes=2_600_000_000,
            free_bytes=1_000_000_000,
            left_bytes=9_000_000_000,
            fit=jobs_pb2.FIT_NO,
        )
        return jobs_pb2.PlanJobResponse(
            job=job, warnings=["the warm-up is long"], entries=[steps], devices=[device], downloads=[gated], disk=disk
        )

    def ReadJobLog(self, request, context):
        line = jobs_pb2.LogLine(at=0, attempt=2, event="end", text="failed: no disk")
        return jobs_pb2.ReadJobLogResponse(lines=[line], num_before=request.lines)

    def RetryJob(self, request, context):
        return jobs_pb2.RetryJobResponse(job=self.job(jobs_pb2.JOB_STATE_QUEUED))

    def GetJob(self, request, context):
        return jobs_pb2.GetJobResponse(job=self.job(jobs_pb2.JOB_STATE_RUNNING))

    def WatchJob(self, request, context):
        self.watched.set()
        yield jobs_pb2.WatchJobResponse(job=self.job(jobs_pb2.JOB_STATE_RUNNING))
        self.release.wait(PATIENCE_S)
        event = jobs_pb2.JobEvent(id="1", stage="train", fraction=0.5, message="half way")
        yield jobs_pb2.WatchJobResponse(job=self.job(jobs_pb2.JOB_STATE_FAILED), events=[event])


def test_watch_a_job_that_fails(serve, capsys) -> None:
    jobs = WatchedJobs()
    jobs.release.set()
    address = serve(jobs).address
    assert run(["--address", address, "watch", "j1"]) == 4
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "j1  failed  train   0%  no disk"
    assert "job j1 (crosscoder demo) failed: no disk" in captured.err
    assert run(["--address", address, "watch", "j1", "--json"]) == 4
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["job"]["state"] for line in lines] == ["running", "failed"]
    assert lines[-1]["events"][0]["fraction"] == 0.5
    assert all("recipe_yaml" not in line["job"] for line in lines)
    assert (lines[0]["job"]["total_fraction"], lines[0]["job"]["eta_s"]) == (pytest.approx(0.4), 10800)
    assert run(["--address", address, "watch", "j1", "--json", "--recipe"]) == 4
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["job"]["recipe_yaml"] for line in lines} == {"kind: crosscoder"}


def test_plan_check_and_retry(serve, capsys) -> None:
    address = serve(WatchedJobs()).address
    recipe = "recipes/demo-pair.yaml"
    assert run(["--address", address, "plan", recipe]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "crosscoder demo",
        "what   how much  note",
        "steps  2 500     of 64 tokens",
        "",
        (
            "disk: does not fit (takes up to 2.7 GB and what is unknown at one time, keeps 2.6 GB, 1.0 GB free now, "
            "the home may take in 9.0 GB)"
        ),
        "what              how much  note",
        "version: weights  2.7 GB    kept",
        "parts             unknown   nobody knows",
        "",
        "2 CPU cores: does not fit (needs 3.0 GB, has 2.0 GB, 1.0 GB free now)",
        "  training.batch_size 16 would fit",
        "what                 how much  note",
        "time, training       unknown   no rates",
        "memory, both models  3.0 GB",
        "download: pair.base a/b: 5.2 GB; gated: ask for access on the hub",
        "warning: the warm-up is long",
    ]
    assert run(["--address", address, "plan", recipe, "--device", "h100"]) == 0
    assert "\nh100: does not fit" in capsys.readouterr().out
    assert run(["--address", address, "jobs", "j1", "--recipe"]) == 0
    assert capsys.readouterr().out == "kind: crosscoder\n"
    assert run(["--address", address, "jobs", "--recipe"]) == 2
    assert "--recipe needs the id of a JOB" in capsys.readouterr().err
    assert run(["--address", address, "log", "j1", "--lines", "3"]) == 0
    first, line = capsys.readouterr().out.splitlines()
    assert (first, line.partition(" #")[2]) == ("… 3 lines before", "2 end: failed: no disk")
    assert run(["--address", address, "plan", recipe, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["entries"][0]["value"], told["disk"]["peak_bytes"], told["disk"]["fits"]) == (2500, 2.7e9, False)
    assert run(["--address", address, "submit", recipe, "--check"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "the recipe can run, with 1 warning: it makes crosscoder demo\n"
    assert captured.err == "warning: the warm-up is long\n"
    assert run(["--address", address, "retry", "j1"]) == 0
    assert capsys.readouterr().out == "j1  queued\nfollow it with: crosscope watch j1\n"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(45, "45 s"), (89, "89 s"), (600, "10 min"), (12_000, "3 h 20 min"), (86_400 * 2.2, "2 d 5 h")],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_plain_values() -> None:
    values = {"a": float("nan"), "b": np.float32([1.5, np.inf]), "c": TokenRole.USER, "d": LatentActivation(3, 0.5)}
    assert to_plain(values) == {"a": None, "b": [1.5, None], "c": "user", "d": {"latent": 3, "activation": 0.5}}
