"""Who may call: tokens, roles, the brake on guesses, the audit log. Against a real server in this process."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from fixtures_artefacts import write_crosscoder
from fixtures_server import Front, run_front
from fixtures_waiting import PATIENCE_S
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from crosscope_proto import access
from crosscope_proto.access import AccessError, TokenEntry
from crosscope_proto.artefacts import OWN_PATHS
from crosscope_proto.v1 import (
    annotations_pb2,
    jobs_pb2,
    jobs_pb2_grpc,
    latents_pb2,
    looks_pb2,
    prompts_pb2,
    system_pb2,
)
from crosscope_server.access import brake as brakes
from crosscope_server.access.audit import Audit
from crosscope_server.access.brake import FREE, MAX_WAITING, Brake
from crosscope_server.access.gate import host_of
from crosscope_server.access.methods import RULES
from crosscope_server.access.store import StoreError, Tokens
from crosscope_server.callers import Limits, Role

LIST = latents_pb2.ListCrosscodersRequest()
DENIED, NO_TOKEN = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED


def entry(name: str, *roles: str, expires_at: float | None = None, **limits: int) -> TokenEntry:
    """A token whose secret is its name."""
    return TokenEntry(name, access.digest(name), access.with_read(roles), time.time(), expires_at, limits)


def write(home: Path, *entries: TokenEntry) -> None:
    path = home / access.TOKENS
    path.parent.mkdir(mode=0o700, exist_ok=True)
    beside = path.with_suffix(".new")
    beside.write_text(access.dump_tokens(entries))
    beside.replace(path)


def bearer(token: str) -> Any:
    return (("authorization", f"Bearer {token}"),)


async def code_of(call: Any) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def ends_with(call: Any, wanted: grpc.StatusCode) -> None:
    """Asks until a call ends with a status."""
    async with asyncio.timeout(PATIENCE_S):
        while await code_of(call()) is not wanted:
            await asyncio.sleep(0.05)


@pytest_asyncio.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    """A server with the tokens ann (run), bob (submit), eve (read), old (expired) and root (admin)."""
    write_crosscoder(tmp_path, "demo", 10)
    people = [entry("ann", "run"), entry("bob", "submit"), entry("eve", "read"), entry("root", "admin")]
    write(tmp_path, *people, entry("old", "admin", expires_at=time.time() - 1))
    async with run_front(home=tmp_path, allow_anyone=False) as running:
        yield running


def test_every_public_method_has_a_role() -> None:
    files = (annotations_pb2, jobs_pb2, latents_pb2, looks_pb2, prompts_pb2, system_pb2)
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    methods = {f"/{each.full_name}/{method.name}" for each in services for method in each.methods}
    assert {method for method in RULES if method.startswith("/crosscope.")} == methods


def test_the_names_on_disk_are_those_of_callers() -> None:
    assert tuple(map(str, Role)) == access.ROLES
    assert tuple(field.name for field in fields(Limits)) == access.LIMITS


async def test_a_role_allows_its_calls_and_a_refusal_names_the_one_that_is_missing(front: Front) -> None:
    encode = prompts_pb2.EncodeRequest(crosscoder="demo")
    encode.prompt.text = "a"
    submit = jobs_pb2.SubmitJobRequest(recipe_yaml="kind: demo-pair\nname: mine\n", validate_only=True)
    star = annotations_pb2.SetStarRequest(of={"crosscoder": "demo"}, latent=1, is_starred=True)
    unavailable, fine = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OK
    jobs = jobs_pb2_grpc.JobsStub(front.channel)
    expected = {  # list, encode (there is no worker), star, submit
        "eve": (fine, DENIED, DENIED, DENIED),
        "ann": (fine, unavailable, fine, DENIED),
        "bob": (fine, DENIED, DENIED, fine),
        "root": (fine, unavailable, fine, fine),
    }
    for name, codes in expected.items():
        as_them = {"metadata": bearer(name)}
        calls = (
            front.latents.ListCrosscoders(LIST, **as_them),
            front.prompts.Encode(encode, **as_them),
            front.annotations.SetStar(star, **as_them),
            jobs.SubmitJob(submit, **as_them),
        )
        assert tuple([await code_of(call) for call in calls]) == codes, name
    with pytest.raises(grpc.aio.AioRpcError, match=r"needs the role 'run', but the token 'eve' has read"):
        await front.prompts.Encode(encode, metadata=bearer("eve"))
    stream = front.prompts.EncodeStream(iter([]), metadata=bearer("eve"))
    assert await code_of(stream.read()) is DENIED


async def test_every_method_with_every_role(front: Front) -> None:
    """As docs/security.md says it: nothing but words and prompts for `run`, jobs for `submit`, imports for `admin`."""
    words = {"SetLabel", "WriteNote", "SetStar", "CreateList", "RenameList", "DeleteList", "ChangeList"}
    jobs = {"PlanJob", "SubmitJob", "CancelJob", "RetryJob"}
    files = (annotations_pb2, jobs_pb2, latents_pb2, looks_pb2, prompts_pb2, system_pb2)
    found = {}
    for service in (each for file in files for each in file.DESCRIPTOR.services_by_name.values()):
        for method in service.methods:
            needs = "run" if service.name == "Prompts" or method.name in words else "read"
            needs = "submit" if method.name in jobs else "admin" if method.name == "ImportAnnotations" else needs
            for name, roles in {"eve": "read", "ann": "read run", "bob": "read submit", "root": "admin"}.items():
                called = f"/{service.full_name}/{method.name}"
                code = await _code_of(front, called, method, bearer(name))
                found[called, name] = (code is DENIED, needs not in roles.split() and name != "root")
                assert code is not NO_TOKEN
    assert {key: refused for key, (refused, _) in found.items()} == {
        key: expected for key, (_, expected) in found.items()
    }
    assert len(found) == 4 * len([method for method in RULES if method.startswith("/crosscope.")])


async def _code_of(front: Front, called: str, method: Any, metadata: Any) -> grpc.StatusCode:
    """How a call with an empty message ends, or begins if it goes on."""
    kinds = {
        (False, False): front.channel.unary_unary,
        (False, True): front.channel.unary_stream,
        (True, False): front.channel.stream_unary,
        (True, True): front.channel.stream_stream,
    }
    call = kinds[method.client_streaming, method.server_streaming](called)
    sent: Any = iter([b""]) if method.client_streaming else b""
    made: Any = call(sent, metadata=metadata, timeout=10)
    try:
        await (made.read() if method.server_streaming else made)
    except grpc.aio.AioRpcError as error:
        return error.code()
    made.cancel()
    return grpc.StatusCode.OK


async def test_tokens_that_are_revoked_added_or_expired_while_the_server_runs(front: Front, tmp_path: Path) -> None:
    assert await code_of(front.latents.ListCrosscoders(LIST, metadata=bearer("ann"))) is grpc.StatusCode.OK
    with pytest.raises(grpc.aio.AioRpcError, match="'old' has expired"):
        await front.latents.ListCrosscoders(LIST, metadata=bearer("old"))
    write(tmp_path, entry("new", "read"))
    await ends_with(lambda: front.latents.ListCrosscoders(LIST, metadata=bearer("ann")), NO_TOKEN)
    await ends_with(lambda: front.latents.ListCrosscoders(LIST, metadata=bearer("new")), grpc.StatusCode.OK)


async def test_a_revoked_token_is_named_to_its_holder_and_in_the_audit_log(front: Front, tmp_path: Path) -> None:
    def ask(name: str) -> Any:
        return front.latents.ListCrosscoders(LIST, metadata=bearer(name))

    assert await code_of(ask("ann")) is grpc.StatusCode.OK
    assert await code_of(ask("old")) is NO_TOKEN
    write(tmp_path, entry("old", "admin", expires_at=time.time() - 1))
    await ends_with(lambda: ask("ann"), NO_TOKEN)
    with pytest.raises(grpc.aio.AioRpcError, match="'ann' was revoked; ask whoever runs this server for a new one"):
        await ask("ann")
    with pytest.raises(grpc.aio.AioRpcError, match="does not know that token"):
        await ask("never")
    lines = [json.loads(line) for line in (tmp_path / access.AUDIT).read_text().splitlines()]
    assert [(line["who"], line["on"], line["outcome"]) for line in lines] == [
        ("old", {"refused": 1}, "UNAUTHENTICATED"),
        ("ann", {"refused": 1}, "UNAUTHENTICATED"),
    ]


async def test_a_stream_ends_when_its_token_is_revoked(front: Front, tmp_path: Path) -> None:
    class Forever:
        """Prompts that never end: a stream's caller decides how long it is."""

        def __aiter__(self) -> "Forever":
            return self

        async def __anext__(self) -> prompts_pb2.EncodeStreamRequest:
            await asyncio.sleep(0.05)
            return prompts_pb2.EncodeStreamRequest()

    streams = {name: front.prompts.EncodeStream(Forever(), metadata=bearer(name)) for name in ("ann", "root")}
    for stream in streams.values():
        await stream.read()  # the error of a prompt that is none
    write(tmp_path, entry("root", "admin"))

    async def read_on() -> None:
        async with asyncio.timeout(20):
            while True:
                await streams["ann"].read()

    with pytest.raises(grpc.aio.AioRpcError, match="'ann' was revoked") as caught:
        await read_on()
    assert caught.value.code() is NO_TOKEN
    for _ in range(3):
        assert (await streams["root"].read()).HasField("error")
    streams["root"].cancel()


async def test_a_list_that_cannot_be_read_refuses_all_its_tokens_and_no_other(front: Front, tmp_path: Path) -> None:
    own = (tmp_path / access.OWN_TOKEN).read_text().strip()
    (tmp_path / access.TOKENS).write_text("{")
    await ends_with(lambda: front.latents.ListCrosscoders(LIST, metadata=bearer("ann")), NO_TOKEN)
    assert await code_of(front.latents.ListCrosscoders(LIST, metadata=bearer(own))) is grpc.StatusCode.OK


async def test_the_homes_own_token_is_private_and_is_kept(tmp_path: Path) -> None:
    async with run_front(home=tmp_path, allow_anyone=False):
        first = (tmp_path / access.OWN_TOKEN).read_bytes()
    path = tmp_path / access.OWN_TOKEN
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    Tokens(tmp_path, None)
    assert path.read_bytes() == first
    path.chmod(0o644)
    with pytest.raises(StoreError, match="others may read"):
        Tokens(tmp_path, None)


def test_no_recipe_reads_what_is_about_access() -> None:
    assert {access.FOLDER, access.AUDIT, f"{access.AUDIT}.1", f"{access.AUDIT}.{access.AUDIT_KEPT}"} <= set(OWN_PATHS)


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brakes, "MAX_DELAY_S", 0.1)


@pytest.mark.usefixtures("short_waits")
async def test_guesses_wait_for_each_other_and_known_tokens_do_not(front: Front, caplog: Any) -> None:
    assert await code_of(front.latents.ListCrosscoders(LIST, metadata=bearer("ann"))) is grpc.StatusCode.OK
    with caplog.at_level(logging.WARNING):
        for i in range(FREE):
            assert await code_of(front.latents.ListCrosscoders(LIST, metadata=bearer(f"wrong-{i}"))) is NO_TOKEN
    assert [record.count for record in caplog.records if record.msg == "wrong tokens"] == [FREE]
    guesses = [front.latents.ListCrosscoders(LIST, metadata=bearer(f"guess-{i}")) for i in range(4 * MAX_WAITING)]
    codes = await asyncio.gather(*map(code_of, guesses))
    assert codes.count(NO_TOKEN) >= MAX_WAITING
    assert codes.count(NO_TOKEN) + codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == len(codes)
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) >= MAX_WAITING
    assert await code_of(front.latents.ListCrosscoders(LIST, metadata=bearer("ann"))) is grpc.StatusCode.OK


@pytest.mark.usefixtures("short_waits")
async def test_a_refused_guess_is_told_when_to_come_back(front: Front) -> None:
    async def guess(i: int) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await front.latents.ListCrosscoders(LIST, metadata=bearer(f"guess-{i}"))
        return caught.value

    await asyncio.gather(*map(guess, range(FREE)))
    errors = await asyncio.gather(*map(guess, range(4 * MAX_WAITING)))
    refused = next(error for error in errors if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED)
    status, retry = rpc_status.from_call(refused), error_details_pb2.RetryInfo()  # pyright: ignore[reportArgumentType]
    assert status is not None
    assert any(detail.Unpack(retry) for detail in status.details)
    assert retry.retry_delay.ToMilliseconds() > 0


async def test_guesses_that_are_given_up_keep_nobody_out_for_long() -> None:
    brake = Brake()
    for _ in range(FREE + 20):
        brake.wrong("h")
    for _ in range(100):
        waiting = asyncio.ensure_future(brake.before("h"))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    host = brake._hosts["h"]
    assert host.waiting == 0
    assert host.next_at - asyncio.get_running_loop().time() <= MAX_WAITING * brakes.MAX_DELAY_S


async def test_the_memory_of_guesses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brakes, "MAX_HOSTS", 3)
    brake = Brake()
    for host in "abcabd":
        brake.wrong(host)
    assert list(brake._hosts) == ["a", "b", "d"]
    assert [count for count in range(1, 100) if brakes.is_told(count)] == [5, 10, 20, 40, 80]


def test_hosts_of_peers() -> None:
    assert host_of("ipv4:127.0.0.1:4711") == "ipv4:127.0.0.1"
    assert host_of("ipv6:%5B2001:db8::1:2%5D:4711") == host_of("ipv6:%5B2001:db8::ffff%5D:1") == "ipv6:2001:db8::/64"
    assert host_of("ipv6:%5Bfe80::1%25eth0%5D:4711") == "ipv6:fe80::/64"
    assert host_of("ipv6:%5B::ffff:127.0.0.1%5D:4711") == "ipv4:127.0.0.1"
    assert host_of("unix:") == "unix"


async def test_the_audit_log_names_who_and_what_and_holds_no_words(front: Front, tmp_path: Path) -> None:
    of = annotations_pb2.WordsOf(crosscoder="demo")
    label = annotations_pb2.SetLabelRequest(of=of, latent=3, text="a secret word", author="somebody else")
    await front.annotations.SetLabel(label, metadata=bearer("ann"))
    label.latent = 99
    assert await code_of(front.annotations.SetLabel(label, metadata=bearer("ann"))) is not grpc.StatusCode.OK
    assert await code_of(front.annotations.SetLabel(label, metadata=bearer("eve"))) is DENIED
    for i in range(FREE):
        await code_of(front.latents.ListCrosscoders(LIST, metadata=bearer(f"wrong-{i}")))
    rows = [annotations_pb2.ImportAnnotationsRequest(options={"of": of, "author": "x"})]
    assert await code_of(front.annotations.ImportAnnotations(iter(rows), metadata=bearer("ann"))) is DENIED
    await front.annotations.ImportAnnotations(iter(rows), metadata=bearer("root"))
    text = (tmp_path / access.AUDIT).read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    method = "/crosscope.v1.Annotations/SetLabel"
    assert [(line["who"], line["method"], line["on"], line["outcome"]) for line in lines] == [
        ("ann", method, {"crosscoder": "demo", "latent": 3}, "OK"),
        ("ann", method, {"crosscoder": "demo", "latent": 99}, "NOT_FOUND"),
        ("eve", method, {}, "PERMISSION_DENIED"),
        (lines[3]["who"], "/crosscope.v1.Latents/ListCrosscoders", {"wrong_tokens": FREE}, "UNAUTHENTICATED"),
        ("ann", "/crosscope.v1.Annotations/ImportAnnotations", {}, "PERMISSION_DENIED"),
        ("root", "/crosscope.v1.Annotations/ImportAnnotations", {"crosscoder": "demo"}, "OK"),
    ]
    assert "secret" not in text
    assert (tmp_path / access.AUDIT).stat().st_mode & 0o777 == 0o600
    asked = annotations_pb2.GetHistoryRequest(of=of, latent=3)
    history = await front.annotations.GetHistory(asked, metadata=bearer("eve"))
    assert [change.author for change in history.changes] == ["ann"]


def test_the_audit_log_is_rotated_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crosscope_server.access.audit.MAX_BYTES", 1000)
    audit = Audit(tmp_path)
    for i in range(200):
        audit.write("ann", "m", {"latent": i}, "OK")
    files = sorted(tmp_path.glob("audit.jsonl*"))
    assert len(files) <= access.AUDIT_KEPT + 1
    assert all(file.stat().st_size < 1200 for file in files)
    last = max(json.loads(line)["on"]["latent"] for file in files for line in file.read_text().splitlines())
    assert last == 199


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "Ann"}, "cannot name a token"),
        ({"name": "operator"}, "cannot name a token"),
        ({"name": "ipv4:127.0.0.1:1"}, "cannot name a token"),
        ({"digest": "abc"}, "SHA-256"),
        ({"roles": ("root",)}, "root"),
        ({"roles": ()}, "none"),
        ({"limits": {"calls": 3}}, "is no limit"),
        ({"limits": {"queued_jobs": -1}}, "must be from 0"),
        ({"limits": {"queued_jobs": True}}, "no whole number"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused(change: dict[str, Any], says: str) -> None:
    good: dict[str, Any] = {"name": "ann", "digest": "0" * 64, "roles": ("read",), "created_at": 0.0}
    TokenEntry(**good)
    with pytest.raises(AccessError, match=says):
        TokenEntry(**good | change)


def test_the_list_is_read_as_it_was_written() -> None:
    entries = [entry("ann", "run", queued_jobs=3), entry("bob", "admin", expires_at=5.0)]
    assert access.parse_tokens(access.dump_tokens(entries).encode()) == entries
    assert entries[0].roles == ("read", "run")
    for text in ("[]", "{}", '{"tokens": 3}', '{"tokens": [{}]}', "\xff", access.dump_tokens([entries[0]] * 2)):
        with pytest.raises(AccessError):
            access.parse_tokens(text.encode("latin-1"))


async def test_when_a_token_was_last_used_is_written_at_the_end(tmp_path: Path) -> None:
    write(tmp_path, entry("ann", "run"))
    before = time.time()
    async with run_front(home=tmp_path, allow_anyone=False) as front:
        await front.latents.ListCrosscoders(LIST, metadata=bearer("ann"))
    assert before <= json.loads((tmp_path / access.USED).read_text())["ann"] <= time.time()
