"""Contrasts of two sets of prompts through gRPC, with a worker whose codes the prompt itself says."""

import asyncio
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from fixtures_server import CountingWorker, Front, details_of, run_front, run_worker
from fixtures_waiting import PATIENCE_S

from crosscope_proto.artefacts import CrosscoderManifest
from crosscope_proto.roles import LeftOut, TokenRole
from crosscope_proto.v1 import prompts_pb2, types_pb2
from crosscope_proto.worker.v1 import inference_pb2

pytestmark = pytest.mark.asyncio


class SpellingWorker(CountingWorker):
    """A word "7=2.5" fires latent 7 with 2.5, other words fire nothing; nothing is put in front.

    A word that begins with "/" is a turn's end, and training left out one that begins with "sink".
    """

    under_way = most = 0

    async def Encode(self, request: Any, context: Any) -> inference_pb2.EncodeResponse:
        words = request.prompt.text.split(" ")
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        if "wrong" in words:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the prompt is wrong; mend it")
        roles: list[Any] = [TokenRole.TURN_END if word.startswith("/") else TokenRole.TEXT for word in words]
        left_out: list[Any] = [LeftOut.NORM if word.startswith("sink") else LeftOut.KEPT for word in words]
        ids = [zlib.crc32(word.encode()) for word in words]
        code = types_pb2.SparseCode(row_starts=[0])
        for word in words:
            if "=" in word:
                latent, activation = word.split("=")
                code.latents.append(int(latent.lstrip("/sink")))
                code.activations.append(float(activation))
            code.row_starts.append(len(code.latents))
        tokens = types_pb2.Tokens(ids=ids, pieces=words, roles=roles, left_out=left_out)
        return inference_pb2.EncodeResponse(tokens=tokens, code=code, compute_ms=1)


@pytest_asyncio.fixture
async def spelled(
    planted_home: tuple[Path, CrosscoderManifest], tmp_path: Path
) -> AsyncIterator[tuple[Front, SpellingWorker]]:
    worker = SpellingWorker()
    async with (
        run_worker(tmp_path, worker) as running,
        run_front(home=planted_home[0], workers=running.target, stream_in_flight=3) as front,
    ):
        await front.prompts_serve()
        yield front, worker


def request(first: list[str], second: list[str], **fields: Any) -> prompts_pb2.ContrastRequest:
    return prompts_pb2.ContrastRequest(
        crosscoder="demo",
        first=[types_pb2.Prompt(text=text) for text in first],
        second=[types_pb2.Prompt(text=text) for text in second],
        **fields,
    )


def numbered(text: str, count: int = 10) -> list[str]:
    return [f"n{index} {text}" for index in range(count)]


async def refused(call: Any) -> tuple[grpc.StatusCode, str, list[tuple[str, str]]]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or "", details_of(caught.value)[1]


async def test_planted_latents_are_found_where_they_fire(spelled, planted_home) -> None:
    front, worker = spelled
    # Latent 5 is stronger within the first set, and 9 fires at the decision of the second. 3 and 4 count nowhere: they
    # fire on a token that training left out, and on a turn's end that is no decision.
    first = numbered("5=2 5=4 sink3=99 /4=50 /x")
    second = numbered("5=3 1=1 y 9=8")
    reply = await front.prompts.Contrast(request(first, second, limit=3, seed=7))
    assert (reply.num_first, reply.num_second, reply.num_repeats) == (10, 10, 0)
    assert reply.version_id == planted_home[1].version_id
    decision, within = reply.places
    assert (decision.place, within.place) == ("decision", "within")
    assert [entry.latent for entry in decision.entries] == [9]
    entry = decision.entries[0]
    assert (entry.auc, entry.auc_se, entry.mean_first, entry.mean_second) == (0, 0, 0, 8)
    assert entry.p_value == pytest.approx(1 / 201)
    assert [(entry.latent, entry.auc) for entry in within.entries] == [(1, 0), (5, 1), (9, 0)]
    assert [(e.mean_first, e.mean_second) for e in within.entries] == [(0, 1), (4, 3), (0, 8)]
    for place in reply.places:
        assert (place.held_out_auc, place.held_out_auc_se, place.num_shuffles) == (1, 0, 200)
        assert place.shuffled_auc == pytest.approx(0.5, abs=0.05)
        assert place.num_without_token == 0
    assert (decision.num_latents, within.num_latents) == (1, 3)
    assert worker.most <= 3
    assert reply == await front.prompts.Contrast(request(first, second, limit=3, seed=7))


async def test_repeats_and_prompts_without_a_token_are_counted(spelled) -> None:
    front, _ = spelled
    first = [*numbered("5=1", 6), "n0 5=1", "n0 5=1"]
    second = [*numbered("x", 5), "sink5=1", "/end"]
    reply = await front.prompts.Contrast(request(first, second))
    assert (reply.num_first, reply.num_second, reply.num_repeats) == (6, 7, 2)
    assert [place.num_without_token for place in reply.places] == [1, 2]


async def test_a_prompt_that_fails_is_named_by_set_and_index(spelled) -> None:
    front, _ = spelled
    good, other = numbered("x", 6), numbered("y", 6)
    code, says, violations = await refused(front.prompts.Contrast(request(good, [*other, "wrong"])))
    assert (code, says) == (grpc.StatusCode.INVALID_ARGUMENT, "second[6]: the prompt is wrong; mend it")
    assert violations == [("second[6]", "the prompt is wrong; mend it")]

    gone = request(good, other)
    gone.first[2].stored_text.sequence_id = 999
    code, says, _ = await refused(front.prompts.Contrast(gone))
    assert code is grpc.StatusCode.NOT_FOUND
    assert says == "first[2]: the analysis stored no text 999; there are 0 to 79"

    odd = request(good, other)
    odd.second[1].token_ids.ids.extend([1, 2])
    odd.second[1].token_ids.roles.append(types_pb2.TOKEN_ROLE_TEXT)
    _, _, violations = await refused(front.prompts.Contrast(odd))
    assert violations == [("second[1].token_ids.roles", "has 1 roles for 2 ids; give one a token, or none")]


async def test_more_contrasts_than_run_at_a_time_are_refused(spelled, monkeypatch: pytest.MonkeyPatch) -> None:
    front, _ = spelled
    monkeypatch.setattr("crosscope_server.prompt_sets.MAX_AT_ONCE", 0)
    code, says, _ = await refused(front.prompts.Contrast(request(numbered("5=1"), numbered("x"))))
    assert (code, says) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "0 contrasts run, the most at a time; try again")
    monkeypatch.undo()
    assert (await front.prompts.Contrast(request(numbered("5=1"), numbered("x")))).num_first == 10


async def test_sets_that_cannot_be_told_apart_are_refused(spelled) -> None:
    front, _ = spelled
    code, says, violations = await refused(front.prompts.Contrast(request(numbered("x"), [*numbered("y", 7), "n3 x"])))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert violations[0][0] == "second[7]"
    assert "has the same tokens as first[3]" in says
    _, says, _ = await refused(front.prompts.Contrast(request(numbered("x"), ["y"] * 9)))
    assert "second: has 1 different prompts; give at least 5" in says
    _, _, violations = await refused(front.prompts.Contrast(request(numbered("x"), ["y"] * 4)))
    assert violations[0] == ("second", "must contain at least 5 item(s), but is 4 items")
    _, _, violations = await refused(front.prompts.Contrast(request(numbered("x", 501), numbered("y"))))
    assert violations[0][0] == "first"


async def test_a_caller_whose_time_is_over_stops_the_work(spelled) -> None:
    front, worker = spelled
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await front.prompts.Contrast(request(numbered("x"), numbered("y")), timeout=0.001)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(PATIENCE_S):
        while worker.under_way:
            await asyncio.sleep(0)
