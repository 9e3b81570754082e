import threading
from collections.abc import Iterator

import pytest

from crosscope import Client, Crosscoder, Encoding, InvalidInput, ServerError
from crosscope_proto.v1 import prompts_pb2, prompts_pb2_grpc


def test_many_in_order(scripted: Client) -> None:
    texts = ["ab" * (i % 7 + 1) for i in range(300)]
    found = list(scripted.crosscoder("demo").encode_many(texts, in_flight=16))
    assert [encoding.tokens.text for encoding in found if isinstance(encoding, Encoding)] == [
        f"<bos>{text}" for text in texts
    ]


def test_none_and_conversations(scripted: Client) -> None:
    demo = scripted.crosscoder("demo")
    assert list(demo.encode_many([])) == []
    (found,) = demo.encode_many([[{"role": "user", "content": "hi"}]], add_generation_prompt=True)
    assert isinstance(found, Encoding)
    assert found.tokens.text == "<bos>hi"


def test_at_most_in_flight_are_drawn_ahead(scripted: Client, prompts) -> None:
    drawn = 0

    def endless() -> Iterator[str]:
        nonlocal drawn
        while True:
            drawn += 1
            yield "abc"

    stream = scripted.crosscoder("demo").encode_many(endless(), in_flight=4)
    for i in range(10):
        next(stream)
        assert drawn == 4 + i
    stream.close()
    assert prompts.requests_read <= drawn


def test_errors_of_one_prompt(scripted: Client) -> None:
    demo = scripted.crosscoder("demo")
    texts = ["good", "wrong", "good"]
    found = list(demo.encode_many([*texts, "not \ud800 sent", "good"], in_flight=2, return_errors=True))
    assert [type(outcome) for outcome in found] == [Encoding, InvalidInput, Encoding, InvalidInput, Encoding]
    assert [str(found[i])[:18] for i in (1, 3)] == ["text: is wrong", "text: holds a lone"]
    former = demo.encode_many(texts, on_error="return")
    assert [type(outcome) for outcome in former] == [Encoding, InvalidInput, Encoding]
    stream = demo.encode_many(texts)
    assert isinstance(next(stream), Encoding)
    with pytest.raises(InvalidInput, match="text: is wrong"):
        next(stream)


def test_an_error_of_the_callers_iterable_is_the_callers(scripted: Client) -> None:
    def breaks() -> Iterator[str]:
        yield "good"
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        list(scripted.crosscoder("demo").encode_many(breaks()))
    with pytest.raises(InvalidInput, match="lone surrogate"):
        list(scripted.crosscoder("demo").encode_many(["good", "\ud800"]))


def test_leaving_early_ends_the_threads(scripted: Client) -> None:
    demo = scripted.crosscoder("demo")
    demo.tokenize("warm")
    before = threading.active_count()
    for _ in range(20):
        stream = demo.encode_many(["abc"] * 100, in_flight=8)
        next(stream)
        stream.close()
    deadline = threading.Event()
    for _ in range(100):
        if threading.active_count() <= before + 10:
            break
        deadline.wait(0.05)
    assert threading.active_count() <= before + 10, "the server's own pool has eight threads"


class EndsEarly(prompts_pb2_grpc.PromptsServicer):
    def EncodeStream(self, request_iterator, context):
        first = next(request_iterator)
        yield prompts_pb2.EncodeStreamResponse(sequence=first.sequence, response=prompts_pb2.EncodeResponse())


def test_a_stream_that_ends_early_is_an_error(serve, scripted: Client) -> None:
    from crosscope._connection import Connection
    from crosscope._sync.transport import Transport

    info = scripted.crosscoder("demo").info
    transport = Transport(Connection(serve(EndsEarly()).address, None, 10, None))
    stream = Crosscoder(transport, info).encode_many(["a", "b"])
    next(stream)
    with pytest.raises(ServerError, match="at prompt 1"):
        next(stream)
