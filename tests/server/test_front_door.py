"""The front door with many callers: who is let in, who is next, and what a worker that hangs or restarts costs."""

import asyncio
import contextlib
import re
import signal
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from fixtures_device import run_device
from fixtures_ports import free_port
from fixtures_server import Front, details_of, run_front, run_worker
from fixtures_waiting import PATIENCE_S, happening
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2

from crosscope_proto.v1 import prompts_pb2, system_pb2, system_pb2_grpc, types_pb2
from crosscope_server.callers import Caller, Limits, set_calling
from crosscope_server.door import Door
from crosscope_server.errors import Overloaded, TooLate
from crosscope_server.line import Line, Work
from crosscope_server.refusals import Refused
from crosscope_server.settings import _LEAST_STREAMS
from crosscope_server.window import EXPRESS_CALLS, MIN_CALLS
from crosscope_server.workers import Worker, Workers

pytestmark = pytest.mark.asyncio


def encode(text: str, **fields: Any) -> prompts_pb2.EncodeRequest:
    return prompts_pb2.EncodeRequest(crosscoder="demo", prompt=types_pb2.Prompt(text=text), **fields)


@contextlib.asynccontextmanager
async def another(front: Front) -> AsyncIterator[Front]:
    """Another caller: a connection of their own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(front.address, options=options) as channel:
        yield Front(channel, front.address)


async def outcome(call: Any) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def capabilities(front: Front) -> system_pb2.GetCapabilitiesResponse:
    return await system_pb2_grpc.SystemStub(front.channel).GetCapabilities(system_pb2.GetCapabilitiesRequest())


def read_text(url: str) -> str:
    with urllib.request.urlopen(url) as reply:
        return reply.read().decode()


def retry_after_s(error: grpc.aio.AioRpcError) -> float:
    retry = error_details_pb2.RetryInfo()
    assert any(packed.Unpack(retry) for packed in details_of(error)[0].details)
    return retry.retry_delay.ToMilliseconds() / 1000


async def test_2000_calls_at_once_are_answered_or_refused_with_a_hint(online, running_worker):
    refused: list[grpc.aio.AioRpcError] = []

    async def ask(number: int) -> str:
        try:
            await online.prompts.Encode(encode(f"p {number}"), timeout=100)
        except grpc.aio.AioRpcError as error:
            refused.append(error)
            return error.code().name
        return "OK"

    codes = Counter(await asyncio.gather(*(ask(number) for number in range(2000))))
    assert codes.keys() <= {"OK", "RESOURCE_EXHAUSTED"}
    assert codes["OK"] >= 102  # 4/5 of 128
    assert codes["OK"] == len(running_worker.worker.prompts)  # what is refused costs no worker anything
    assert all(retry_after_s(error) > 0 for error in refused)


async def test_a_worker_gets_few_calls_and_another_caller_is_next(online, running_worker):
    worker = running_worker.worker
    worker.may_answer.clear()
    greedy = [asyncio.create_task(outcome(online.prompts.Encode(encode(f"greedy {i}")))) for i in range(100)]
    await happening(lambda: len(worker.prompts) == MIN_CALLS)
    async with another(online) as other:
        one = asyncio.create_task(outcome(other.prompts.Encode(encode("one"))))
        await happening(lambda: len(worker.prompts) > MIN_CALLS)
        assert worker.prompts[MIN_CALLS:] == ["one"]  # beside the full window
        more = [asyncio.create_task(outcome(other.prompts.Encode(encode(f"more {i}")))) for i in range(3)]
        await other.health.Check(_CHECK)
        worker.may_answer.set()
        assert set(await asyncio.gather(one, *more, *greedy)) == {"OK"}
        places = [worker.prompts.index(f"more {i}") for i in range(3)]
        assert max(places) < MIN_CALLS + EXPRESS_CALLS + 20  # they took turns with the hundred


_CHECK = health_pb2.HealthCheckRequest()


async def test_who_waits_beyond_their_deadline_costs_the_worker_nothing(online, running_worker):
    worker = running_worker.worker
    worker.may_answer.clear()
    others = [asyncio.create_task(outcome(online.prompts.Encode(encode(f"p {i}")))) for i in range(20)]
    await happening(lambda: len(worker.prompts) == MIN_CALLS)
    assert await outcome(online.prompts.Encode(encode("hasty"), timeout=0.3)) == "DEADLINE_EXCEEDED"
    worker.may_answer.set()
    assert set(await asyncio.gather(*others)) == {"OK"}
    assert "hasty" not in worker.prompts


async def test_a_full_door_names_its_limit_and_leaves_room_for_others(planted_home, running_worker):
    worker = running_worker.worker
    worker.may_answer.clear()
    settings = {"home": planted_home[0], "workers": running_worker.target, "max_calls": 10}
    async with run_front(**settings) as front, another(front) as other:
        await front.prompts_serve()
        calls = [front.prompts.Encode(encode(f"p {i}")) for i in range(9)]
        await happening(lambda: sum(call.done() for call in calls) == 1)
        (refused,) = (call for call in calls if call.done())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await refused
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        said = "8 calls are under way here, 8 of them yours; there may be 10 in all"
        assert said in (caught.value.details() or "")
        assert retry_after_s(caught.value) > 0
        traffic = (await capabilities(other)).traffic
        assert (traffic.prompts_under_way, traffic.max_prompts_under_way, dict(traffic.refused)) == (
            8,
            10,
            {"door_full": 1},
        )
        one = asyncio.create_task(outcome(other.prompts.Encode(encode("other"))))
        await happening(lambda: "other" in worker.prompts)
        worker.may_answer.set()
        assert await one == "OK"


async def test_a_full_door_refuses_before_it_reads_and_what_it_lets_in_must_send_a_message(
    planted_home, running_worker, monkeypatch
):
    """Whoever is refused costs no reading: not even bytes that are no message are looked at."""
    running_worker.worker.may_answer.clear()
    settings = {"home": planted_home[0], "workers": running_worker.target, "max_calls": 3}
    async with run_front(**settings) as front:
        await front.prompts_serve()
        method = "/crosscope.v1.Prompts/Encode"
        rubbish = front.channel.unary_unary(method)
        assert await outcome(rubbish(b"\xff")) == "INVALID_ARGUMENT"
        silent = front.channel.stream_unary(method)
        with monkeypatch.context() as patch:
            patch.setattr("crosscope_server.door.MESSAGE_S", 0.3)
            assert await outcome(silent()) == "DEADLINE_EXCEEDED"
        await (without := silent()).done_writing()
        assert await outcome(without) == "INVALID_ARGUMENT"
        calls = [asyncio.create_task(outcome(front.prompts.Encode(encode(f"p {i}")))) for i in range(3)]
        await happening(lambda: len(running_worker.worker.prompts) == 3)
        assert await outcome(rubbish(b"\xff")) == await outcome(silent()) == "RESOURCE_EXHAUSTED"
        running_worker.worker.may_answer.set()
        assert await asyncio.gather(*calls) == ["OK"] * 3


async def test_calls_beyond_a_connections_limit_wait_at_their_client(front):
    """So a burst of one caller does not stand in front of others."""
    watches = [front.health.Watch(health_pb2.HealthCheckRequest()) for _ in range(_LEAST_STREAMS + 8)]
    begun = [asyncio.create_task(watch.read()) for watch in watches]
    await happening(lambda: sum(task.done() for task in begun) == _LEAST_STREAMS)
    async with another(front) as other:
        await other.health.Check(_CHECK)
    late = [task for task in begun if not task.done()]
    assert len(late) == 8
    for watch, task in zip(watches, begun, strict=True):
        if task.done():
            watch.cancel()
    await asyncio.gather(*late)
    for watch in watches:
        watch.cancel()


async def test_a_callers_own_limit_is_named():
    refused = Refused()
    door = Door("crosscope.v1.Prompts", 100, lambda: 1.5, refused)
    set_calling(Caller("lena", limits=Limits(concurrent_calls=2)))
    with door.entered(), door.entered():
        said = "lena has 2 calls under way, and its limit concurrent_calls is 2"
        with pytest.raises(Overloaded, match=said) as caught, door.entered():
            pass
        assert caught.value.retry_after_s == 1.5
        set_calling(Caller("jan", limits=Limits(concurrent_calls=2)))
        with door.entered():
            assert door.inside == {"lena": 2, "jan": 1}
    assert (door.inside, refused) == ({}, {"concurrent_calls": 1})


async def line_with(worker: Worker, **settings: Any) -> tuple[Line, Refused]:
    async def changed(is_alive: bool) -> None:
        pass

    workers, refused = Workers(["w"], changed), Refused()
    workers._workers.append(worker)
    worker.is_alive = True
    return Line(workers, lambda each: each.prompts, 100, 1.0, refused, **settings), refused


async def test_who_cannot_be_answered_in_time_is_refused_when_they_come():
    """At 1 000 tokens a second, 2 000 that wait take 2 s, so a deadline in 1 s is refused, and one in 4 s is not."""
    none: Any = None
    line, refused = await line_with(Worker("w", none, none, none))
    line._rate.per_s = 1000
    loop = asyncio.get_running_loop()
    places = [await line.enter(Work(100), None) for _ in range(MIN_CALLS)]
    waiting = [asyncio.create_task(line.enter(Work(100), None)) for _ in range(20)]
    await asyncio.sleep(0)
    assert line.num_waiting == 20
    with pytest.raises(Overloaded, match=r"take about 2\.1 s, but its deadline is in 1\.0 s") as caught:
        await line.enter(Work(100), loop.time() + 1)
    assert caught.value.retry_after_s == pytest.approx(2.1)
    assert refused == {"deadline": 1}
    patient = asyncio.create_task(line.enter(Work(100), loop.time() + 4))
    late = asyncio.create_task(line.enter(Work(3000), loop.time() + 5.2))
    await asyncio.sleep(0)
    assert line.num_waiting == 22
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert line.num_waiting == 2  # who leaves makes room
    places.pop().end(answered=True)
    (await patient).end(answered=True)
    late_place = await late
    late_place.end(answered=False)
    line._rate.per_s = 1000
    # Its own work is no wait, and a deadline is judged by what it surely takes.
    (await line.enter(Work(20_000), None)).end(answered=False)
    (await line.enter(Work(20_000, least=100), loop.time() + 1)).end(answered=False)
    hopeless = asyncio.create_task(line.enter(Work(100), loop.time() + 0.15))
    (await hopeless).end(answered=False)
    for place in places:
        place.end(answered=False)
    assert line.num_under_way == 0


async def test_whose_turn_comes_too_late_is_not_asked():
    none: Any = None
    line, refused = await line_with(Worker("w", none, none, none))
    places = [await line.enter(Work(100), None) for _ in range(MIN_CALLS)]
    hasty = asyncio.create_task(line.enter(Work(100), asyncio.get_running_loop().time() + 5))
    await asyncio.sleep(0)
    line._rate.per_s = 10  # its 100 tokens take 10 s
    places.pop().end(answered=False)
    with pytest.raises(TooLate, match="too late to answer it"):
        await hasty
    assert refused == {"late": 1}
    for place in places:
        place.end(answered=False)
    assert line.num_under_way == 0


async def test_calls_of_a_worker_that_stands_still_are_asked_of_another(planted_home, tmp_path):
    sockets = [tmp_path / name for name in ("a.sock", "b.sock")]
    targets, port = ",".join(f"unix:{socket}" for socket in sockets), free_port()
    async with (
        run_device(sockets[0], batch_ms=1, prompt_ms=0.1) as a,
        run_device(sockets[1], batch_ms=1, prompt_ms=0.1) as b,
        run_front(home=planted_home[0], workers=targets, metrics_port=port) as front,
    ):
        await front.prompts_serve()
        for i in range(8):
            await front.prompts.Encode(encode(f"warm {i}"))
        a.send_signal(signal.SIGSTOP)
        asked = [front.prompts.Encode(encode(f"p {i}"), timeout=30) for i in range(20)]
        stream = front.prompts.Tokenize(prompts_pb2.TokenizeRequest(crosscoder="demo", prompt=encode("t").prompt))
        assert {await outcome(each) for each in [*asked, stream]} == {"OK"}  # long before their deadline
        page = await asyncio.to_thread(read_text, f"http://127.0.0.1:{port}/metrics")
        moved = re.search(r'crosscope_moved_calls_total\{why="hangs"\} (\d+)', page)
        assert moved is not None
        assert int(moved[1]) > 0
        b.send_signal(signal.SIGSTOP)
        await front.prompts_serve(serving=False)
        a.send_signal(signal.SIGCONT)
        await front.prompts_serve()
        assert await outcome(front.prompts.Encode(encode("again"), timeout=30)) == "OK"


async def test_prompts_wait_for_a_worker_that_restarts_but_not_for_long(planted_home, tmp_path):
    target = f"unix:{tmp_path}/worker.sock"
    async with run_front(home=planted_home[0], workers=target, hold_s=60) as front:
        async with run_worker(tmp_path) as running:
            await front.prompts_serve()
            running.worker.may_answer.clear()
            under_way = asyncio.create_task(outcome(front.prompts.Encode(encode("under way"))))
            await running.worker.called.wait()
            await running.server.stop(None)
        del running  # with the server goes its socket, and not later, when the next one listens there
        waiting = asyncio.create_task(outcome(front.prompts.Encode(encode("waiting"))))
        async with run_worker(tmp_path) as running:
            assert await under_way == await waiting == "OK"
            assert sorted(running.worker.prompts) == ["under way", "waiting"]
    async with run_front(home=planted_home[0], workers=target, hold_s=0.2) as front:
        assert await outcome(front.prompts.Encode(encode("a"))) == "UNAVAILABLE"
        assert await outcome(front.prompts.Encode(encode("b"))) == "UNAVAILABLE"


async def test_a_workers_cancel_is_no_bug(online, running_worker):
    running_worker.worker.fails_with = grpc.StatusCode.CANCELLED, ""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await online.prompts.Encode(encode("a"))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert re.search("ended while it worked on the call; ask again", caught.value.details() or "")
    assert retry_after_s(caught.value) > 0


async def test_a_cache_for_each_caller_tells_nobody_what_others_asked(planted_home, running_worker, cache_socket):
    settings = {"home": planted_home[0], "workers": running_worker.target, "cache_url": f"unix://{cache_socket}"}
    async with run_front(**settings, cache_per_caller=True) as front, another(front) as other:
        await front.prompts_serve()
        async with asyncio.timeout(PATIENCE_S):
            while not (await front.prompts.Encode(encode("secret"))).cached:
                pass
        assert not (await other.prompts.Encode(encode("secret"))).cached
        assert running_worker.worker.prompts.count("secret") >= 2
        running_worker.worker.may_answer.clear()
        both = [asyncio.create_task(outcome(each.prompts.Encode(encode("joint")))) for each in (front, other)]
        await happening(lambda: running_worker.worker.prompts.count("joint") == 2)  # no shared computation either
        running_worker.worker.may_answer.set()
        assert await asyncio.gather(*both) == ["OK", "OK"]


async def test_streams_that_do_not_read_hold_no_more_than_their_room(planted_home, running_worker):
    """Replies of some 40 KB: 2 MB hold about 16 of them, three times each."""
    words = " ".join(f"w{i}" for i in range(1500))
    settings = {"home": planted_home[0], "workers": running_worker.target, "max_unread_bytes": 2_000_000}
    async with run_front(**settings) as front:
        await front.prompts_serve()
        idle = [front.prompts.EncodeStream() for _ in range(6)]
        for which, call in enumerate(idle):
            for i in range(8):
                await call.write(prompts_pb2.EncodeStreamRequest(sequence=i, request=encode(f"{which} {i} {words}")))
        messages = [prompts_pb2.EncodeStreamRequest(sequence=i, request=encode(f"read {i} {words}")) for i in range(10)]
        async with asyncio.timeout(PATIENCE_S):
            replies = [reply async for reply in front.prompts.EncodeStream(iter(messages))]
        assert [reply.sequence for reply in replies] == list(range(10))
        for call in idle:
            call.cancel()
