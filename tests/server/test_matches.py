"""Matching the latents of two crosscoders: rows made by hand, through the real server, and against the worker's."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
import pytest_asyncio
import torch

from crosscope_proto import artefacts as layout
from crosscope_proto.artefacts import CrosscoderManifest
from crosscope_proto.v1 import latents_pb2
from crosscope_server import matches
from crosscope_server.matching import Dictionary, match
from crosscope_worker.analysis.stability import match_latents
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.keep import StoredKeep
from crosscope_worker.dictionary.streams import STREAMS
from tests.fixtures_artefacts import write_crosscoder, write_rows
from tests.fixtures_server import Front, run_front

ONE = [[1, 0, 0, 0], [0, 1, 0, 0], [3, 4, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]]
OTHER = [[2, 0, 0, 0], [0, 0, 5, 0], [0, 1, 0, 0.75], [9, 9, 9, 9]]
"""Latent 4 of the first and latent 3 of the second are dead."""


def plant(home: Path, name: str, rows: Any, dead: int, **changes: Any) -> CrosscoderManifest:
    rows = np.asarray(rows, np.float32)
    num_active = np.where(np.arange(len(rows)) == dead, 0, 100)
    classes = np.where(num_active == 0, "dead", np.where(np.arange(len(rows)) < 2, "chat_only", "shared"))
    written = write_crosscoder(home, name, len(rows), columns={"num_active": num_active, "latent_class": classes})
    folder = Path(layout.version_folder(home, name, written.version_id))
    write_rows(folder, rows)
    manifest = {**json.loads((folder / layout.MANIFEST).read_text()), "d_model": (2, 2), **changes}
    (folder / layout.MANIFEST).write_text(json.dumps(manifest))
    return written


@pytest_asyncio.fixture
async def planted(tmp_path: Path) -> AsyncIterator[tuple[Front, Path]]:
    plant(tmp_path, "one", ONE, 4)
    plant(tmp_path, "other", OTHER, 3)
    async with run_front(home=tmp_path) as front:
        yield front, tmp_path


def request(one: str = "one", other: str = "other") -> latents_pb2.MatchLatentsRequest:
    return latents_pb2.MatchLatentsRequest(crosscoder=one, other=other)


async def test_nearest_latents_both_ways_and_their_counts(planted: tuple[Front, Path]) -> None:
    reply = await planted[0].latents.MatchLatents(request())
    first, second = reply.first, reply.second
    # Cosines with (2 0 0 0), (0 0 5 0), (0 1 0 .75), which is 0.8 along the second axis.
    assert (list(first.latents), list(first.nearest)) == ([0, 1, 2, 3], [0, 2, 2, 1])
    assert first.cosines == pytest.approx([1, 0.8, 0.64, 1])
    assert list(first.is_mutual) == [True, True, False, True]
    assert (list(second.latents), list(second.nearest), list(second.is_mutual)) == ([0, 1, 2], [0, 3, 1], [True] * 3)
    assert second.cosines == pytest.approx([1, 1, 0.8])
    assert (first.num_dead, second.num_dead, reply.min_cosine) == (1, 1, pytest.approx(0.7))
    counts = {(each.column, each.value): each for each in first.counts}
    everything = counts["", ""]
    assert (everything.num, everything.num_matched, everything.num_alone) == (4, 3, 1)
    assert everything.mean_cosine == pytest.approx((1 + 0.8 + 0.64 + 1) / 4)
    by_class = [(each.value, each.num, each.num_matched) for each in first.counts if each.column == "latent_class"]
    assert by_class == [("chat_only", 2, 2), ("shared", 2, 1)]
    assert {"verdict", "specific_to"} <= {each.column for each in first.counts}
    for column in matches.KINDS:
        assert sum(each.num for each in first.counts if each.column == column) == 4


async def test_an_answer_is_remembered_by_both_versions(planted: tuple[Front, Path]) -> None:
    front, home = planted
    before = await front.latents.MatchLatents(request())
    for weights in home.glob("crosscoders/*/versions/*/crosscoder.safetensors"):
        weights.unlink()
    assert await front.latents.MatchLatents(request()) == before
    with pytest.raises(grpc.aio.AioRpcError, match=r"crosscoder.safetensors is missing") as error:
        await front.latents.MatchLatents(request("other", "one"))
    assert error.value.code() is grpc.StatusCode.DATA_LOSS


async def test_a_damaged_file_is_named(planted: tuple[Front, Path]) -> None:
    front, home = planted
    plant(home, "short", [[1, 0], [0, 1]], 9)
    plant(home, "torn", ONE, 4)
    [torn] = home.glob("crosscoders/torn/versions/*/crosscoder.safetensors")
    torn.write_bytes(torn.read_bytes()[:-8])
    for name, says in (("short", "cannot be read"), ("torn", "has the SHA-256")):
        with pytest.raises(grpc.aio.AioRpcError, match=rf"{name}/versions/\w+/crosscoder.safetensors {says}") as error:
            await front.latents.MatchLatents(request("one", name))
        assert error.value.code() is grpc.StatusCode.DATA_LOSS


async def test_what_cannot_be_compared_is_refused(planted: tuple[Front, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    front, home = planted
    plant(home, "upper", ONE, 4, layer=3)
    plant(home, "wide", [[1, 0, 0, 0, 0]] * 2, 9, d_model=(2, 3))
    for name, says in (("upper", "the layer of one is 2, that of upper is 3"), ("wide", "the widths of one")):
        with pytest.raises(grpc.aio.AioRpcError, match=says) as error:
            await front.latents.MatchLatents(request("one", name))
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    monkeypatch.setattr(matches, "MAX_WORK", 47)  # 4 · 3 · 4 is 48
    with pytest.raises(grpc.aio.AioRpcError, match=r"crosscope_worker.analysis.stability crosscoders/one"):
        await front.latents.MatchLatents(request())
    monkeypatch.undo()
    monkeypatch.setattr(matches, "MAX_WAITING", 0)
    with pytest.raises(grpc.aio.AioRpcError, match="0 matches run or wait, the most at a time") as error:
        await front.latents.MatchLatents(request())
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("reads", [("both", "both"), ("both", "difference")])
def test_the_worker_finds_the_same(reads: tuple[str, str]) -> None:
    """One rule in two places: here without torch, there for dictionaries of any size and on a GPU."""
    generator = torch.Generator().manual_seed(0)
    crosscoders, dictionaries = [], []
    for index, (num_latents, name) in enumerate(zip((70, 50), reads, strict=True)):
        rows = torch.randn(num_latents, 8, generator=generator)
        if name == "difference":
            rows[:, :4] = 0
        scale = (1.0 + index, 2.0)
        living = torch.rand(num_latents, generator=generator) > 0.1
        zeros = torch.zeros(8, num_latents)
        crosscoder = Crosscoder(
            zeros,
            zeros[0],
            rows,
            zeros[:, 0],
            (4, 4),
            "l1",
            "none",
            STREAMS[name],
            StoredKeep(None, None).rule(),
            scale,
        )
        crosscoders.append((crosscoder, living))
        dictionaries.append(Dictionary(rows.numpy(), (4, 4), living.numpy(), name == "difference", scale))
    (a, living_a), (b, living_b) = crosscoders
    expected = match_latents(a, b, living_a, living_b)
    found, back = match(*dictionaries)
    assert found.latents.tolist() == expected.ids.tolist()
    assert found.nearest.tolist() == expected.nearest.tolist()
    assert found.mutual.tolist() == expected.mutual.tolist()
    assert found.cosines == pytest.approx(expected.cosines.numpy(), abs=1e-6)
    assert back.mutual.sum() == found.mutual.sum()


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(2, 60, 6)).astype(np.float32)
    one, other = (Dictionary(each, (3, 3), np.arange(60) % 7 > 0, False, (1.0, 1.0)) for each in rows)
    whole = match(one, other)
    monkeypatch.setattr("crosscope_server.matching._CHUNK_BYTES", 4 * 60 * 9)
    for side, before in zip(match(one, other), whole, strict=True):
        assert np.array_equal(side.nearest, before.nearest)
        assert np.array_equal(side.mutual, before.mutual)
    assert replace(whole[0]).matched.sum() == whole[1].matched.sum()
