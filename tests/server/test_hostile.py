"""Whatever bytes or messages come, an answer says what is wrong with them: no call ends INTERNAL or UNKNOWN.

Methods and fields are those of the descriptors, so a new one is tried without a line here.
"""

import base64
import contextlib
import random
import string
import urllib.parse
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import pytest_asyncio
from fixtures_artefacts import write_crosscoder, write_rows
from fixtures_server import Front, details_of, run_cache, run_front, run_worker
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from crosscope_proto.artefacts import version_folder
from crosscope_proto.columns import LATENT_COLUMNS
from crosscope_proto.v1 import annotations_pb2, jobs_pb2, jobs_pb2_grpc, latents_pb2, prompts_pb2, types_pb2

pytestmark = pytest.mark.asyncio

FILES = (latents_pb2, prompts_pb2, jobs_pb2, health_pb2, reflection_pb2)
METHODS: list[MethodDescriptor] = [
    method for file in FILES for service in file.DESCRIPTOR.services_by_name.values() for method in service.methods
]
STRICT = {f"/crosscope.v1.Prompts/{name}" for name in ("Compare", "Generate", "Contrast", "TopLatents")}
"""Methods with rules over several fields, which few random messages keep; other tests show that they answer."""
GARBAGE = (b"\xff\xff\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xfe", b"\x08" + b"\xff" * 20, b"\x0b" * 500, b"\x00")
BUGS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
NUM_MESSAGES = 100
"""Of each method; the half names things that exist, so that it comes past the first check."""

RECIPE = "kind: demo-pair\nname: mine\n"
TEXTS = [
    "",
    "demo",
    "a",
    "\0",
    "é" * 40,
    "🦊" * 300,
    "../..",
    "%s{0}",
    "\ufffd",
    "\u2028\r\n",
    "-",
    "x" * 70_000,
    "true",
]
NUMBERS = [0, 1, 2, 7, 99, 255, 4096, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]
FLOATS = [0.0, -0.0, 0.5, 1.0, -1.0, 1e-320, 3.5e38, 1e308, float("nan"), float("inf"), float("-inf")]
COLUMNS = [column.name for column in LATENT_COLUMNS]


def path_of(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


@pytest_asyncio.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    """A server with everything: a crosscoder, a worker, a queue."""
    version = write_crosscoder(tmp_path, "demo", 40).version_id
    write_rows(Path(version_folder(tmp_path, "demo", version)), np.ones((40, 128), np.float32))
    async with (
        run_cache(tmp_path / "queue.sock"),
        run_worker(tmp_path) as worker,
        run_front(home=tmp_path, workers=worker.target, queue_url=f"unix://{tmp_path}/queue.sock") as running,
    ):
        await running.prompts_serve()
        yield running


async def ask(
    front: Front, method: MethodDescriptor, *requests: bytes
) -> tuple[list[bytes], grpc.aio.AioRpcError | None]:
    """The replies of a call, the first three of one without end, and its error."""
    streams = (method.client_streaming, method.server_streaming)
    make: Any = {
        (False, False): front.channel.unary_unary,
        (False, True): front.channel.unary_stream,
        (True, True): front.channel.stream_stream,
    }[streams]
    call = make(path_of(method))(iter(requests) if method.client_streaming else requests[0], timeout=5)
    replies: list[bytes] = []
    try:
        if not method.server_streaming:
            return [await call], None
        while (reply := await call.read()) is not grpc.aio.EOF and len(replies) < 3:
            replies.append(reply)
            if method.name in ("Watch", "WatchJob"):
                call.cancel()
                return replies, None
    except grpc.aio.AioRpcError as error:
        return replies, error
    return replies, None


async def test_bytes_that_are_no_message_are_refused_by_every_method(front: Front):
    tried = 0
    for method in METHODS:
        request = GetMessageClass(method.input_type)
        for data in GARBAGE:
            with contextlib.suppress(DecodeError):
                request.FromString(data)
                continue
            replies, error = await ask(front, method, data)
            assert error is not None, path_of(method)
            assert not replies
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, (path_of(method), error.details())
            assert "the request is not a valid message" in (error.details() or "")
            assert details_of(error)[1]
            tried += 1
    assert tried >= 3 * len(METHODS)


async def test_a_stream_answers_what_came_before_bytes_that_are_no_message(front: Front):
    [method] = [method for method in METHODS if method.name == "EncodeStream"]
    prompt = prompts_pb2.EncodeRequest(crosscoder="demo", prompt=types_pb2.Prompt(text="a"))
    good = prompts_pb2.EncodeStreamRequest(sequence=5, request=prompt).SerializeToString()
    replies, error = await ask(front, method, good, good, b"\xff", good)
    read = [prompts_pb2.EncodeStreamResponse.FromString(reply) for reply in replies]
    assert [(reply.sequence, reply.WhichOneof("outcome")) for reply in read] == [(5, "response")] * 2
    assert error is not None
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_error_fits_its_headers_whatever_language_it_quotes(front: Front):
    """gRPC allows 8 KiB of them, in which a byte that is not ASCII takes three."""
    submit = jobs_pb2_grpc.JobsStub(front.channel).SubmitJob
    for sign in ("x", "é", "字", "🦊"):
        recipe = f"{RECIPE}seed: {sign * 900}\n" + "".join(f"{sign * 90}{i}: 1\n" for i in range(12))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await submit(jobs_pb2.SubmitJobRequest(recipe_yaml=recipe))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        status, violations = details_of(caught.value)
        assert len(violations) == 10
        text = len(urllib.parse.quote(status.message, safe=string.printable))
        assert text + len(base64.b64encode(status.SerializeToString())) < 8192


async def test_a_long_value_in_an_errors_facts_fits_its_headers(front: Front):
    """The refusal of a stale note repeats the one that stands there now: it is cut, and the error is still Stale."""
    write = front.annotations.WriteNote
    of = annotations_pb2.WordsOf(crosscoder="demo")
    for sign in ("Ω", "🦊"):
        await write(annotations_pb2.WriteNoteRequest(of=of, latent=1, text=sign * 10_000, author=sign * 100))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await write(annotations_pb2.WriteNoteRequest(of=of, latent=1, text="mine", seen_revision=0))
        assert caught.value.code() is grpc.StatusCode.ABORTED
        info = error_details_pb2.ErrorInfo()
        assert details_of(caught.value)[0].details[0].Unpack(info)
        assert info.reason == "STALE"
        assert info.metadata["now"].startswith(sign)


class Maker:
    """Random messages of any type: every field may be absent, ordinary, at an edge, or nothing that makes sense."""

    def __init__(self, seed: int, known: dict[str, list[Any]]) -> None:
        self._random = random.Random(seed)
        self._known = known
        """Values that exist, by the name of a field."""

    def message(self, kind: Any) -> Message:
        made = GetMessageClass(kind)()
        chosen = {group.name: self._random.choice(group.fields).name for group in kind.oneofs}
        skipped = {f.name for group in kind.oneofs for f in group.fields if f.name != chosen[group.name]}
        for field in kind.fields:
            if field.name in skipped or self._random.random() < 0.15:
                continue
            if field.is_repeated:
                target = getattr(made, field.name)
                for _ in range(self._random.choice([0, 1, 1, 2, 40])):
                    if field.message_type is not None:
                        target.add().CopyFrom(self.message(field.message_type))
                    else:
                        target.append(self._value(field))
            elif field.message_type is not None:
                getattr(made, field.name).CopyFrom(self.message(field.message_type))
            else:
                setattr(made, field.name, self._value(field))
        return made

    def _value(self, field: FieldDescriptor) -> Any:
        choose = self._random.choice
        if field.name in self._known and self._random.random() < 0.8:
            return choose(self._known[field.name])
        if field.enum_type is not None:
            return choose([*field.enum_type.values_by_number, 99, -1, 2**31 - 1])
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING:
                text = choose(TEXTS)
                return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
            case FieldDescriptor.CPPTYPE_BOOL:
                return choose([True, False])
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                return choose(FLOATS)
            case FieldDescriptor.CPPTYPE_UINT32:
                return choose([number for number in NUMBERS if number < 2**32])
            case FieldDescriptor.CPPTYPE_INT32:
                return choose([-1, -(2**31), *(number for number in NUMBERS if number < 2**31)])
            case _:
                return choose(NUMBERS)


async def known_values(front: Front) -> dict[str, list[Any]]:
    """Values that lead a request past the first check, by the name of the field."""
    listing = latents_pb2.ListLatentsRequest(crosscoder="demo", page_size=2)
    token = (await front.latents.ListLatents(listing)).next_page_token
    version = (await front.latents.GetLatent(latents_pb2.GetLatentRequest(crosscoder="demo"))).version_id
    submit = jobs_pb2.SubmitJobRequest(recipe_yaml=RECIPE)
    job = (await jobs_pb2_grpc.JobsStub(front.channel).SubmitJob(submit)).job.id
    return {
        "crosscoder": ["demo"],
        "other": ["demo"],
        "version_id": ["", version],
        "other_version_id": ["", version],
        "latent": [0, 3, 39],
        "dataset": ["", "chats"],
        "page_token": ["", token, token[:-1], "W10"],
        "order_by": ["", *COLUMNS, *(f"-{column}" for column in COLUMNS)],
        "column": COLUMNS,
        "columns": COLUMNS,
        "text": ["a b c", "chat_only", "<end_of_turn>"],
        "role": ["system", "user", "assistant"],
        "content": ["hello", "", " ", "🦊"],
        "recipe_yaml": [RECIPE, "a: 1", "[", f"{RECIPE}seed: {'9' * 5000}", f"{RECIPE}documents: 1e999"],
        "id": [job],
        "after": [job],
        "after_event": ["", "0", "1-1", f"{2**64}-0", f"{2**64 - 1}-{2**64}", "0-0-0", "٣", "-1", "9" * 20],
        "service": ["", "crosscope.v1.Latents"],
        "file_containing_symbol": ["crosscope.v1.Latents"],
        "containing_type": ["google.protobuf.FieldOptions"],
    }


async def test_no_message_ends_in_a_bug(front: Front):
    known = await known_values(front)
    seen: dict[str, set[grpc.StatusCode]] = {}
    for method in METHODS:
        maker = Maker(7, known)  # A method's messages do not depend on which others there are.
        for _ in range(NUM_MESSAGES):
            request = maker.message(method.input_type)
            replies, error = await ask(front, method, request.SerializeToString())
            code = grpc.StatusCode.OK if error is None else error.code()
            assert code not in BUGS, (path_of(method), error and error.details(), str(request)[:500])
            assert code is not grpc.StatusCode.DEADLINE_EXCEEDED, (path_of(method), str(request)[:500])
            seen.setdefault(path_of(method), set()).add(code)
            if method.name == "EncodeStream":
                codes = {prompts_pb2.EncodeStreamResponse.FromString(reply).error.code for reply in replies}
                assert not codes & {code.value[0] for code in BUGS}, str(request)[:500]
    # The messages come past the checks: every method answers some of them.
    silent = {path for path, codes in seen.items() if grpc.StatusCode.OK not in codes}
    assert silent - STRICT == {"/grpc.health.v1.Health/List"}  # which the library itself does not implement
