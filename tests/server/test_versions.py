"""A request may name a version: it is answered from that one, or says which is the newest."""

import shutil
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
from fixtures_artefacts import write_crosscoder, write_rows
from fixtures_server import Front, details_of, run_front, run_worker
from google.rpc import error_details_pb2

from crosscope_proto import artefacts as layout
from crosscope_proto.v1 import effects_pb2, latents_pb2, prompts_pb2, types_pb2

pytestmark = pytest.mark.asyncio

PROMPT = types_pb2.Prompt(text="a b")


async def answers(front: Front, version_id: str | None) -> dict[str, str]:
    """The version that answers every call that is about one crosscoder."""
    of = {"crosscoder": "demo", "version_id": version_id}
    latents, prompts = front.latents, front.prompts
    encode = prompts_pb2.EncodeRequest(prompt=PROMPT, **of)
    atlas = await latents.GetAtlas(latents_pb2.GetAtlasRequest(columns=["max"], **of)).read()
    generate = effects_pb2.GenerateRequest(prompt=PROMPT, arms=[effects_pb2.Arm()], **of)
    compare = effects_pb2.CompareRequest(prompt=PROMPT, **of)
    attribute = effects_pb2.AttributeRequest(prompt=PROMPT, **of)
    words = [types_pb2.Prompt(text=" ".join("x" * (each + 1))) for each in range(10)]
    contrast = prompts_pb2.ContrastRequest(first=words[:5], second=words[5:], **of)
    match = latents_pb2.MatchLatentsRequest(other="demo", other_version_id=version_id, **of)
    matched = await latents.MatchLatents(match)
    assert matched.first.version_id == matched.second.version_id
    streamed = await prompts.EncodeStream(iter([prompts_pb2.EncodeStreamRequest(request=encode)])).read()
    return {
        "GetCrosscoder": (await latents.GetCrosscoder(latents_pb2.GetCrosscoderRequest(**of))).crosscoder.version_id,
        "GetTrainingCurves": (await latents.GetTrainingCurves(latents_pb2.GetTrainingCurvesRequest(**of))).version_id,
        "ListLatents": (await latents.ListLatents(latents_pb2.ListLatentsRequest(**of))).version_id,
        "GetLatent": (await latents.GetLatent(latents_pb2.GetLatentRequest(**of))).version_id,
        "SearchLatents": (await latents.SearchLatents(latents_pb2.SearchLatentsRequest(text="a", **of))).version_id,
        "MatchLatents": matched.first.version_id,
        "ListExamples": (await latents.ListExamples(latents_pb2.ListExamplesRequest(**of))).version_id,
        "GetAtlas": atlas.version_id,
        "Tokenize": (await prompts.Tokenize(prompts_pb2.TokenizeRequest(prompt=PROMPT, **of))).version_id,
        "Encode": (await prompts.Encode(encode)).version_id,
        "EncodeStream": streamed.response.version_id,
        "Compare": (await prompts.Compare(compare)).version_id,
        "Generate": (await prompts.Generate(generate).read()).start.version_id,
        "Attribute": (await prompts.Attribute(attribute)).version_id,
        "Contrast": (await prompts.Contrast(contrast)).version_id,
        "TopLatents": (await prompts.TopLatents(prompts_pb2.TopLatentsRequest(prompt=PROMPT, **of))).version_id,
    }


async def gone(call, newest: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert f"the newest is {newest}" in (caught.value.details() or "")
    info = error_details_pb2.ErrorInfo()
    assert details_of(caught.value)[0].details[0].Unpack(info)
    assert (info.reason, info.metadata["newest_version"]) == ("VERSION_GONE", newest)


async def test_every_call_about_a_crosscoder_is_answered_from_the_version_that_it_names(tmp_path: Path):
    first, second = (write_crosscoder(tmp_path, "demo", n, seed=n).version_id for n in (40, 50))
    for version, n in ((first, 40), (second, 50)):
        write_rows(Path(layout.version_folder(tmp_path, "demo", version)), np.ones((n, 128), np.float32))
    methods = {
        m.name for d in (latents_pb2, prompts_pb2) for s in d.DESCRIPTOR.services_by_name.values() for m in s.methods
    }
    async with run_worker(tmp_path) as worker, run_front(home=tmp_path, workers=worker.target) as front:
        await front.prompts_serve()
        for asked, answered in ((first, first), (second, second), (None, second), ("", second)):
            found = await answers(front, asked)
            assert found == dict.fromkeys(methods - {"ListCrosscoders"}, answered)


@pytest.mark.parametrize("wanted", ["20990101t000000000-ffffffffffff", "../demo", ".tmp-x", "\x00", "\ufffd" * 20])
async def test_a_version_that_is_gone_or_never_was_names_the_newest(tmp_path: Path, wanted: str):
    newest = write_crosscoder(tmp_path, "demo", 40).version_id
    of = {"crosscoder": "demo", "version_id": wanted}
    async with run_worker(tmp_path) as worker, run_front(home=tmp_path, workers=worker.target) as front:
        await front.prompts_serve()
        await gone(front.latents.GetCrosscoder(latents_pb2.GetCrosscoderRequest(**of)), newest)
        await gone(front.latents.GetAtlas(latents_pb2.GetAtlasRequest(columns=["max"], **of)).read(), newest)
        await gone(front.prompts.Encode(prompts_pb2.EncodeRequest(prompt=PROMPT, **of)), newest)
        item = prompts_pb2.EncodeStreamRequest(request=prompts_pb2.EncodeRequest(prompt=PROMPT, **of))
        error = (await front.prompts.EncodeStream(iter([item])).read()).error
        assert error.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
        assert b"VERSION_GONE" in error.status


async def test_a_version_that_goes_while_it_is_read_is_gone_not_broken(tmp_path: Path):
    first = write_crosscoder(tmp_path, "demo", 40)
    async with run_front(home=tmp_path) as front:
        await front.latents.GetLatent(latents_pb2.GetLatentRequest(crosscoder="demo"))
        second = write_crosscoder(tmp_path, "demo", 50, seed=1)
        shutil.rmtree(layout.version_folder(tmp_path, "demo", first.version_id))
        of = {"crosscoder": "demo", "version_id": first.version_id}
        await front.latents.GetLatent(latents_pb2.GetLatentRequest(**of))  # it is in memory
        await gone(front.latents.ListExamples(latents_pb2.ListExamplesRequest(**of)), second.version_id)
        curves = front.latents.GetTrainingCurves(latents_pb2.GetTrainingCurvesRequest(**of))
        await gone(curves, second.version_id)


async def test_a_worker_that_lacks_a_version_that_has_gone_meanwhile_says_so(tmp_path: Path):
    first = write_crosscoder(tmp_path, "demo", 40)
    second = write_crosscoder(tmp_path, "demo", 50, seed=1)
    async with run_worker(tmp_path) as worker, run_front(home=tmp_path, workers=worker.target) as front:
        await front.prompts_serve()
        worker.worker.fails_with = (grpc.StatusCode.NOT_FOUND, "crosscoder 'demo' has no such version")
        worker.worker.may_answer.clear()
        request = prompts_pb2.EncodeRequest(crosscoder="demo", prompt=PROMPT, version_id=first.version_id)
        call = front.prompts.Encode(request)
        await worker.worker.called.wait()
        shutil.rmtree(layout.version_folder(tmp_path, "demo", first.version_id))
        worker.worker.may_answer.set()
        await gone(call, second.version_id)


async def test_a_page_token_of_another_version_than_the_one_named_is_refused(tmp_path: Path):
    first = write_crosscoder(tmp_path, "demo", 40)
    second = write_crosscoder(tmp_path, "demo", 50, seed=1)
    async with run_front(home=tmp_path) as front:
        request = latents_pb2.ListLatentsRequest(crosscoder="demo", version_id=first.version_id, page_size=3)
        request.page_token = (await front.latents.ListLatents(request)).next_page_token
        assert [latent.id for latent in (await front.latents.ListLatents(request)).latents] == [3, 4, 5]
        request.version_id = second.version_id
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await front.latents.ListLatents(request)
    assert details_of(caught.value)[1][0][0] == "page_token"
    assert first.version_id in details_of(caught.value)[1][0][1]
