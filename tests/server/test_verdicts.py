"""Verdicts through the real server: latents whose verdicts are known by hand are filtered, ordered, paged and told."""

import grpc
import grpc.aio
import numpy as np
import pyarrow.parquet as pq
import pytest
from fixtures_artefacts import write_crosscoder
from fixtures_server import run_front

from crosscope_proto import artefacts as layout
from crosscope_proto.causal_columns import CAUSAL_COLUMNS
from crosscope_proto.columns import LATENT_COLUMNS
from crosscope_proto.v1 import latents_pb2
from crosscope_proto.verdict import SpecificTo, Verdict

NAN = float("nan")
NAMES = ["contradicted", "shared", "weak", "dead", "supported", "few", "other-chat", "other"]
"""What each latent is, by id."""
COLUMNS = {
    "latent_class": ["chat_only", "shared", "chat_only", "dead", "chat_only", "chat_only", "other", "other"],
    "rel_norm": [0.95, 0.5, 0.95, 0.95, 0.95, 0.95, 0.7, 0.7],
    "num_active": [900, 900, 900, 0, 900, 8, 900, 900],
    "num_texts": [90, 90, 90, 0, 90, 4, 90, 90],
    "nu_err": [0.05, 0.95, 0.18, NAN, 0.05, 0.05, 0.05, 0.95],
    "nu_rec": [0.9, 0.95, 0.05, NAN, 0.05, 0.05, 0.05, 0.95],
    "nu_err_se": [0.02] * 8,
    "nu_rec_se": [0.02] * 8,
    "mirror_nu_err": [0.95] * 8,
    "mirror_nu_rec": [0.95] * 8,
    "mirror_nu_err_se": [0.02] * 8,
    "mirror_nu_rec_se": [0.02] * 8,
    "beta_act_no_bias_base": [0.1] * 8,
    "beta_act_no_bias_chat": [1.0] * 8,
    "base_uselessness_single": [1.0, 1.0, 1.0, NAN, -np.log(1e-5), 1.0, 1.0, 1.0],
    **{column.name: [NAN] * 8 for column in CAUSAL_COLUMNS},
}


@pytest.fixture
def home(tmp_path):
    columns = {name: np.array(values) for name, values in COLUMNS.items()}
    return tmp_path, write_crosscoder(tmp_path, "demo", 8, columns=columns)


def listing(**fields) -> latents_pb2.ListLatentsRequest:
    return latents_pb2.ListLatentsRequest(crosscoder="demo", **fields)


def text(column: str, op: str, value: str) -> latents_pb2.LatentFilter:
    return latents_pb2.LatentFilter(column=column, op=latents_pb2.LatentFilter.Op.Value(op), text=value)


async def names(front, order_by: str = "", *filters: latents_pb2.LatentFilter) -> list[str]:
    """The latents of a listing, read a page of three at a time."""
    found, token = [], ""
    while True:
        request = listing(order_by=order_by, filters=filters, page_size=3, page_token=token)
        page = await front.latents.ListLatents(request)
        found += [NAMES[latent.id] for latent in page.latents]
        token = page.next_page_token
        if not token:
            assert page.num_matching == len(found)
            return found


@pytest.mark.asyncio
async def test_latents_are_filtered_and_ordered_by_verdict(home):
    async with run_front(home=home[0]) as front:
        assert await names(front, "", text("verdict", "OP_EQ", "supported")) == ["shared", "supported", "other-chat"]
        best_first = ["shared", "supported", "other-chat", "weak", "contradicted", "few", "dead", "other"]
        assert await names(front, "verdict") == best_first
        assert await names(front, "-verdict") == [
            *("dead", "other", "few", "contradicted", "weak"),
            *("shared", "supported", "other-chat"),
        ]
        chat = text("specific_to", "OP_EQ", "chat")
        assert await names(front, "", chat) == ["supported", "other-chat"]
        assert await names(front, "-rel_norm", chat, text("latent_class", "OP_NE", "chat_only")) == ["other-chat"]
        # a latent that is specific to neither model meets no condition on it, and comes last in its order
        assert await names(front, "", text("specific_to", "OP_NE", "base")) == ["supported", "other-chat"]
        page = await front.latents.ListLatents(listing(order_by="specific_to"))
        assert [NAMES[latent.id] for latent in page.latents[:2]] == ["supported", "other-chat"]
        assert page.num_undefined == 6


@pytest.mark.asyncio
async def test_each_latent_says_why(home):
    async with run_front(home=home[0]) as front:
        latents = (await front.latents.ListLatents(listing())).latents
        one = (await front.latents.GetLatent(latents_pb2.GetLatentRequest(crosscoder="demo", latent=4))).latent
    assert one == latents[4]
    told = {NAMES[latent.id]: latent.verdict for latent in latents}
    assert list(told["supported"].reasons) == [
        "ν err 0.05 ± 0.02 < 0.2",
        "ν rec 0.05 ± 0.02 < 0.5",
        "base uselessness at its floor (≥ 11.51)",
    ]
    assert told["supported"].verdict == latents_pb2.VERDICT_SUPPORTED
    assert told["supported"].specific_to == latents_pb2.SPECIFIC_TO_CHAT
    assert list(told["contradicted"].reasons) == ["ν rec 0.9 ± 0.02 > 0.5"]
    assert told["contradicted"].specific_to == latents_pb2.SPECIFIC_TO_UNSPECIFIED
    assert list(told["weak"].reasons) == ["ν err 0.18 ± 0.02 within its error of 0.2"]
    assert list(told["few"].reasons) == ["too few texts (4)"]
    assert list(told["dead"].reasons) == ["it never fired"]


@pytest.mark.asyncio
async def test_the_atlas_has_verdicts_as_numbers_with_their_texts(home):
    request = latents_pb2.GetAtlasRequest(crosscoder="demo", columns=["verdict", "specific_to"])
    async with run_front(home=home[0]) as front:
        verdict, specific_to = [piece async for piece in front.latents.GetAtlas(request)]
    assert np.frombuffer(verdict.values, "<f4").tolist() == [3, 1, 2, 5, 1, 4, 1, 5]
    assert list(verdict.categories) == ["", *Verdict]
    assert np.frombuffer(specific_to.values, "<f4").tolist() == [0, 0, 0, 0, 1, 0, 1, 0]
    assert list(specific_to.categories) == ["", *SpecificTo]


@pytest.mark.asyncio
async def test_a_version_from_before_num_texts_is_judged_too(home):
    """By tokens, of which the latent with 8 has too few."""
    path, manifest = home
    latents = f"{layout.version_folder(path, 'demo', manifest.version_id)}/{layout.LATENTS}"
    newer = [column.name for column in LATENT_COLUMNS if column.absent is not None]
    pq.write_table(pq.read_table(latents).drop(newer), latents)
    async with run_front(home=path) as front:
        assert await names(front, "", text("verdict", "OP_EQ", "too_few")) == ["few"]
        [few] = (await front.latents.ListLatents(listing(filters=[text("verdict", "OP_EQ", "too_few")]))).latents
        assert list(few.verdict.reasons) == ["too few tokens (8)"]
        assert await names(front, "", text("specific_to", "OP_EQ", "chat")) == ["supported", "other-chat"]


@pytest.mark.asyncio
async def test_what_is_no_verdict_is_named(home):
    async with run_front(home=home[0]) as front:
        for condition, says in (
            (text("verdict", "OP_EQ", "good"), "no verdict 'good'; there are supported, weak, contradicted"),
            (text("specific_to", "OP_EQ", ""), "no specific_to ''; there are chat, base, each"),
            (text("verdict", "OP_LT", "weak"), "verdict can only be compared for equality, not by <"),
            (text("verdict_reasons", "OP_EQ", "x"), "verdict_reasons holds lists"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await front.latents.ListLatents(listing(filters=[condition]))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert says in (caught.value.details() or "")


def test_the_numbers_are_those_of_the_public_enums():
    for enum, prefix, words in (
        (latents_pb2.Verdict, "VERDICT", Verdict),
        (latents_pb2.SpecificTo, "SPECIFIC_TO", SpecificTo),
    ):
        assert [enum.Value(f"{prefix}_{word.upper()}") for word in words] == list(range(1, len(words) + 1))
