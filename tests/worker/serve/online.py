"""A server and its worker in this process, and what tests ask them about answers."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from fixtures_server import Front, details_of, run_front

from crosscope_proto.v1 import effects_pb2, types_pb2
from crosscope_worker.serve.process import InferenceProcess
from crosscope_worker.serve.settings import ServeSettings

TEXT = "the baker tells a story about the old river"
ADD, ABLATE, SWAP = effects_pb2.ACTION_ADD, effects_pb2.ACTION_ABLATE, effects_pb2.ACTION_SWAP_STREAM


@dataclass
class Online:
    front: Front
    process: InferenceProcess
    home: Path

    @property
    def prompts(self) -> Any:
        return self.front.prompts


@contextlib.asynccontextmanager
async def run_online(home: Path, **settings: Any) -> AsyncIterator[Online]:
    """A server and its worker, on the crosscoders and pairs of a home."""
    address = f"unix:{home}/worker"
    process = InferenceProcess(ServeSettings(home=home, listen=address, **settings))
    await process.start()
    try:
        async with run_front(home=home, workers=address) as front:
            await front.prompts_serve()
            yield Online(front, process, home)
    finally:
        await process.stop()


def prompt(text: str = TEXT) -> types_pb2.Prompt:
    return types_pb2.Prompt(text=text)


def arm(*interventions: effects_pb2.Intervention, model: Any = effects_pb2.MODEL_CHAT, **sampling: Any) -> Any:
    sampling = {"max_new_tokens": 6} | sampling
    return effects_pb2.Arm(model=model, interventions=interventions, sampling=effects_pb2.Sampling(**sampling))


def change(*latents: int, action: Any = ABLATE, **fields: Any) -> effects_pb2.Intervention:
    return effects_pb2.Intervention(latents=latents, action=action, **fields)


def generation(*arms: effects_pb2.Arm, text: str = TEXT, **fields: Any) -> effects_pb2.GenerateRequest:
    named = fields if "pair" in fields else {"crosscoder": "demo"} | fields
    return effects_pb2.GenerateRequest(prompt=prompt(text), arms=arms or [arm()], **named)


async def collected(call: Any) -> list[effects_pb2.GenerateResponse]:
    """What is still to come of a stream."""
    replies: list[effects_pb2.GenerateResponse] = []
    while (reply := await call.read()) is not grpc.aio.EOF:
        replies.append(reply)
    return replies


async def refused(call: Any) -> tuple[grpc.StatusCode, str, list[tuple[str, str]]]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (collected(call) if hasattr(call, "read") else call)
    return caught.value.code(), caught.value.details() or "", details_of(caught.value)[1]


def texts(replies: list[effects_pb2.GenerateResponse]) -> dict[tuple[int, int], str]:
    """The answers joined from their pieces."""
    found: dict[tuple[int, int], str] = {}
    for token in (token for reply in replies for token in reply.step.tokens):
        found[token.arm, token.sample] = found.get((token.arm, token.sample), "") + token.piece
    return found
