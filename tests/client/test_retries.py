"""Calls that are made again: which ones, for how long, and what is refused at once."""

import os
import signal
import threading
import time
from collections import Counter
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from crosscope import Busy, Client, Encoding, InvalidInput, ServerError, Unavailable, _repeats
from crosscope._repeats import REPEATS, Failure, Patience
from crosscope_proto.v1 import (
    annotations_pb2,
    jobs_pb2,
    jobs_pb2_grpc,
    latents_pb2,
    latents_pb2_grpc,
    looks_pb2,
    prompts_pb2,
    system_pb2,
)

from .conftest import (
    ScriptedLatents,
    ScriptedPrompts,
    abort,
    free_port,
    running_worker,
    server_process,
    wait_until_serving,
)


def hint(seconds: float) -> RetryInfo:
    return RetryInfo(
        retry_delay=Duration(nanos=round(seconds * 1e9)) if seconds < 1 else Duration(seconds=int(seconds))
    )


class Refusing(latents_pb2_grpc.LatentsServicer):
    """Refuses the first calls, then answers."""

    def __init__(self, times: int, code: grpc.StatusCode, *details: Any) -> None:
        self.times, self.code, self.details, self.calls = times, code, details, 0

    def ListCrosscoders(self, request, context):
        self.calls += 1
        if self.calls <= self.times:
            return abort(context, self.code, "not now", *self.details)
        return latents_pb2.ListCrosscodersResponse()


def test_every_method_has_a_rule() -> None:
    files = (latents_pb2, annotations_pb2, looks_pb2, prompts_pb2, jobs_pb2, system_pb2)
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    methods = {method.name: method for service in services for method in service.methods}
    assert set(REPEATS) == {*methods, "HealthCheck"}
    for name, method in methods.items():
        assert method.input_type.name == f"{name}Request", "the rule is found by the request"


@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE])
def test_a_refusal_with_a_hint_is_tried_again_when_it_says_so(serve, code: grpc.StatusCode) -> None:
    refusing = Refusing(3, code, hint(0.05))
    with Client(serve(refusing).address) as client:
        started = time.monotonic()
        assert client.crosscoders() == []
    assert refusing.calls == 4
    assert time.monotonic() - started >= 3 * 0.05


@pytest.mark.parametrize(
    ("code", "details", "error"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, [], Busy),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, [hint(9)], Busy),  # later than the deadline
        (grpc.StatusCode.INTERNAL, [hint(0.05)], ServerError),
    ],
)
def test_what_a_second_try_cannot_mend_ends_at_once(serve, code: grpc.StatusCode, details: list, error: type) -> None:
    refusing = Refusing(9, code, *details)
    with Client(serve(refusing).address, timeout_s=5) as client, pytest.raises(error, match="not now"):
        client.crosscoders()
    assert refusing.calls == 1


def test_pauses_grow_and_end() -> None:
    lost = Failure(is_passing=True)
    known = Patience(60, was_answered=True)
    pauses = [known.pause_s(lost) or 0 for _ in range(6)]
    assert all(low <= pause <= 1.5 * low for pause, low in zip(pauses, (0.05, 0.1, 0.2, 0.4, 0.5, 0.5), strict=True))
    busy = Failure(is_passing=True, was_begun=False, is_busy=True, after_s=20)
    assert 20 <= (Patience(60, was_answered=False).pause_s(busy) or 0) <= 30
    assert Patience(10, was_answered=True).pause_s(busy) is None, "the deadline comes first"
    assert Patience(60, was_answered=False).pause_s(Failure(is_passing=True, after_s=0.2)), "a server that answers"
    assert Patience(60, was_answered=True).pause_s(Failure(is_passing=False)) is None


class Losing(jobs_pb2_grpc.JobsServicer):
    """Cuts every call off without a word, or refuses it with a hint."""

    def __init__(self, *details: Any) -> None:
        self.details, self.calls = details, 0

    def RetryJob(self, request, context):
        self.calls += 1
        if self.details and self.calls > 1:
            return jobs_pb2.RetryJobResponse(job=jobs_pb2.Job(id="a"))
        if not self.details:
            return context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return abort(context, grpc.StatusCode.UNAVAILABLE, "not now", *self.details)


def test_a_change_that_may_have_been_made_is_not_made_again(serve) -> None:
    losing = Losing()
    with Client(serve(losing).address) as client, pytest.raises(Unavailable, match="Socket closed"):
        client.jobs.retry("a")
    assert losing.calls == 1
    refusing = Losing(hint(0.02))
    with Client(serve(refusing).address) as client:
        assert client.jobs.retry("a").id == "a"
    assert refusing.calls == 2


class BusyPrompts(ScriptedPrompts):
    """Refuses a prompt where more than `room` came since the last answer; breaks the first stream off at a number."""

    def __init__(self, refusals: int, *details: Any, breaks_at: int | None = None) -> None:
        super().__init__()
        self.refusals, self.details, self.breaks_at = refusals, details, breaks_at
        self.refused: Counter[int] = Counter()

    def EncodeStream(self, request_iterator, context):
        for item in request_iterator:
            number = item.sequence
            if number == self.breaks_at:
                self.breaks_at = None
                context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            if number % 3 == 0 and self.refused[number] < self.refusals:
                self.refused[number] += 1
                status = Status(code=8, message="not now")
                for detail in self.details:
                    status.details.add().Pack(detail)
                error = prompts_pb2.StreamError(code=8, message="not now", status=status.SerializeToString())
                yield prompts_pb2.EncodeStreamResponse(sequence=number, error=error)
            else:
                yield prompts_pb2.EncodeStreamResponse(sequence=number, response=self.encode(item.request))


def texts_of(found: Any) -> list[str]:
    return [outcome.tokens.text if isinstance(outcome, Encoding) else type(outcome).__name__ for outcome in found]


def test_refused_prompts_of_many_are_asked_again_in_their_order(serve) -> None:
    prompts = BusyPrompts(2, hint(0.01), breaks_at=17)
    texts = [f"text {i}" for i in range(40)]
    with Client(serve(ScriptedLatents(), prompts).address) as client:
        found = list(client.crosscoder("demo").encode_many(texts, in_flight=8))
    assert texts_of(found) == [f"<bos>{text}" for text in texts]
    assert set(prompts.refused.values()) == {2}


def test_refused_prompts_without_a_hint_are_errors(serve) -> None:
    prompts = BusyPrompts(2)
    with Client(serve(ScriptedLatents(), prompts).address) as client:
        found = list(client.crosscoder("demo").encode_many(["a", "b", "c", "d"], return_errors=True))
    assert texts_of(found) == ["Busy", "<bos>b", "<bos>c", "Busy"]


def test_a_server_that_only_refuses_ends_many_with_busy(serve) -> None:
    prompts = BusyPrompts(10**6, hint(0.05))
    with Client(serve(ScriptedLatents(), prompts).address, timeout_s=0.4) as client, pytest.raises(Busy):
        list(client.crosscoder("demo").encode_many(["a", "b"]))
    assert prompts.refused[0] > 1


@pytest.mark.parametrize("token", ["abc\n", "päss", "two words", "a\tb"])
def test_a_token_that_no_header_can_hold_is_refused_here(token: str, monkeypatch) -> None:
    monkeypatch.setenv("CROSSCOPE_TOKEN", token)
    with pytest.raises(InvalidInput, match=r"token: must be 1 to 4096 printable ASCII.*CROSSCOPE_TOKEN"):
        Client()


def test_an_answer_whose_headers_are_too_long_is_not_taken_for_busy(serve) -> None:
    class Talkative(latents_pb2_grpc.LatentsServicer):
        def ListCrosscoders(self, request, context):
            context.set_trailing_metadata((("long", "x" * 60_000),))
            return context.abort(grpc.StatusCode.INVALID_ARGUMENT, "wrong")

    with Client(serve(Talkative()).address) as client, pytest.raises(ServerError, match="lost on the way"):
        client.crosscoders()


def test_a_restart_of_the_server_fails_no_call(home: Path, monkeypatch) -> None:
    """The server is killed under load, and started again at its port."""
    monkeypatch.setattr(_repeats, "_BRIDGE_S", 120.0)  # a start takes long on a busy machine
    address, outcomes, over = f"127.0.0.1:{free_port()}", Counter[str](), threading.Event()
    with (
        running_worker() as target,
        Client(address, timeout_s=120) as client,
        server_process(home, address, CROSSCOPE_SERVER_WORKERS=target) as first,
    ):
        wait_until_serving(address, first)
        demo = client.crosscoder("demo")
        while not client.health()["prompts"]:
            time.sleep(0.05)

        def ask(who: int) -> None:
            number = 0
            while not over.is_set():
                text = f"{who} {(number := number + 1)}"
                outcomes[(demo.encode(text).tokens.text == f"<bos>{text}" and "encoded") or "wrong"] += 1

        def many() -> list[str]:
            drawn = (f"many {i}" for i in range(100_000) if i < 50 or not over.is_set())
            return texts_of(demo.encode_many(drawn))

        with futures.ThreadPoolExecutor(5) as pool:
            asking = [pool.submit(ask, who) for who in range(4)]
            all_of_many = pool.submit(many)
            while outcomes["encoded"] < 40:
                time.sleep(0.01)
            os.kill(first.pid, signal.SIGKILL)
            first.wait()
            before = outcomes["encoded"]
            with server_process(home, address, CROSSCOPE_SERVER_WORKERS=target) as second:
                wait_until_serving(address, second)
                while outcomes["encoded"] < before + 40:
                    assert not [each for each in asking if each.done()], [each.result() for each in asking]
                    time.sleep(0.01)
                over.set()
                for each in asking:
                    each.result()
                found = all_of_many.result()
    assert set(outcomes) == {"encoded"}
    assert found == [f"<bos>many {i}" for i in range(len(found))]
