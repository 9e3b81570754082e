"""Searches through the server, on a version whose texts are known."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
from fixtures_artefacts import write_crosscoder
from fixtures_server import Front, run_front

from crosscope_proto import artefacts as layout
from crosscope_proto.column import arrow_schema
from crosscope_proto.columns import EXAMPLE_COLUMNS, SEQUENCE_COLUMNS
from crosscope_proto.v1 import annotations_pb2
from crosscope_proto.v1 import latents_pb2 as pb
from crosscope_server.search import index

TEXTS = [
    ["I", " can", "not", " help", " you"],
    ["Un", " Café", " ou", " non"],
    ["日", "", "本", "語", " refuse"],
    ["the", " refusal", " is", " a", " can"],
]
# Latent, text, positions, values.
EXAMPLES = [
    (1, 0, [2], [4.0]),
    (1, 3, [1, 4], [2.0, 1.0]),
    (2, 0, [3], [6.0]),
    (3, 2, [1, 4], [3.0, 1.5]),
    (3, 3, [1], [5.0]),
    (4, 1, [1], [9.0]),
]
MAX = {1: 4.0, 2: 6.0, 3: 5.0, 4: 9.0}
LABEL, PEAK, EXAMPLE = pb.SEARCH_PLACE_LABEL, pb.SEARCH_PLACE_PEAK, pb.SEARCH_PLACE_EXAMPLE
NOTE = pb.SEARCH_PLACE_NOTE


def write_known(home: Path, *, created_at: float = 1_700_000_000.0, texts: list[list[str]] = TEXTS) -> str:
    """A version of "demo" with 8 latents, TEXTS and EXAMPLES; its id."""
    maxima = np.array([MAX.get(latent, 0.0) for latent in range(8)])
    manifest = write_crosscoder(
        home, "demo", 8, num_sequences=4, created_at=created_at, columns={"max": maxima, "num_active": maxima > 0}
    )
    folder = Path(layout.version_folder(home, "demo", manifest.version_id))
    sequences = {
        "id": range(len(texts)),
        "dataset": ["documents"] * len(texts),
        "token_ids": [list(range(len(text))) for text in texts],
        "pieces": texts,
        "roles": [[1] * len(text) for text in texts],
    }
    pq.write_table(pa.table(sequences, arrow_schema(SEQUENCE_COLUMNS)), folder / layout.SEQUENCES)
    # Each example stands in both groups: it counts once.
    rows = [
        {
            "latent": latent,
            "dataset": "documents",
            "group": group,
            "quantile": 0,
            "rank": 0,
            "sequence": text,
            "max": max(values),
            "positions": positions,
            "values": values,
            "repeats": 0,
        }
        for latent, text, positions, values in EXAMPLES
        for group in ("quantile", "top")
    ]
    for part in (folder / layout.EXAMPLES).iterdir():
        part.unlink()
    schema = arrow_schema(EXAMPLE_COLUMNS)
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / layout.EXAMPLES / layout.example_part(0, 8))
    return manifest.version_id


@pytest_asyncio.fixture
async def known(tmp_path: Path) -> AsyncIterator[Front]:
    write_known(tmp_path)
    async with run_front(home=tmp_path) as front:
        yield front


async def search(front: Front, text: str, *places: int, **fields: Any) -> pb.SearchLatentsResponse:
    request = pb.SearchLatentsRequest(crosscoder="demo", text=text, places=places or [EXAMPLE], **fields)  # pyright: ignore[reportArgumentType]
    return await front.latents.SearchLatents(request)


async def refused(front: Front, text: str, **fields: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await search(front, text, **fields)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    return caught.value.details() or ""


def ids(reply: pb.SearchLatentsResponse) -> list[int]:
    return [each.latent.id for each in reply.results]


async def test_a_text_within_words_ranks_who_peaks_on_it_then_who_fires_then_who_is_silent(known: Front) -> None:
    reply = await search(known, "cannot")
    first, silent = reply.results
    assert (first.latent.id, first.num_examples, first.num_matching, first.num_firing, first.num_peaking) == (
        1,
        2,
        1,
        1,
        1,
    )
    [match] = first.matches
    assert (match.before, match.matched, match.behind) == ("I ", "cannot", " help you")
    assert (match.activation, match.sequence_id, match.token_start, match.token_end) == (4.0, 0, 1, 3)
    assert (silent.latent.id, silent.num_matching, silent.num_firing) == (2, 1, 0)
    assert not silent.matches[0].HasField("activation")
    assert (reply.num_matching, reply.num_text_matches, reply.num_texts) == (2, 1, 1)
    # Latents 2 and 3 are silent on " can", in one text each: they come by id.
    assert ids(await search(known, " can")) == [1, 2, 3]
    assert ids(await search(known, "refus")) == [3, 1]


async def test_case_accents_and_scripts(known: Front) -> None:
    for text in ("cafe", "CAFÉ", "Cafe\u0301"):
        [found] = (await search(known, text)).results
        assert (found.latent.id, found.matches[0].matched) == (4, "Café")
    assert not (await search(known, "cafe", match_case=True)).results
    [found] = (await search(known, "日")).results
    # The token behind "日" has no text of its own: it is a part of the character, and the latent fires there.
    assert (found.latent.id, found.matches[0].activation, found.num_peaking) == (3, 3.0, 1)


async def test_regular_expressions_and_what_is_wrong_with_them(known: Front) -> None:
    [found] = (await search(known, r"\brefus\w+$", is_regex=True)).results
    assert (found.latent.id, found.matches[0].matched) == (3, "refuse")
    assert ids(await search(known, "^the REFUSAL", is_regex=True)) == [3, 1]
    assert not (await search(known, "REFUSAL", is_regex=True, match_case=True)).results
    assert "at character 1" in await refused(known, "a**", is_regex=True)
    assert "neither look-around" in await refused(known, "(?=a)b", is_regex=True)
    assert "unexpected )" in await refused(known, "a)|(b", is_regex=True)
    assert "matches the empty text" in await refused(known, "x*", is_regex=True)
    assert not (await search(known, "(a+)+$x", is_regex=True)).results
    assert (await search(known, r"\b|cannot", is_regex=True)).notes
    assert not (await search(known, "a.*[\x00\n<script>")).results
    assert await refused(known, "")
    assert await refused(known, "x" * 501)
    assert "only accents" in await refused(known, "\u0301")


async def test_an_order_is_of_all_that_is_found_whatever_the_page(known: Front) -> None:
    of = annotations_pb2.WordsOf(crosscoder="demo")
    for latent, score in ((1, 0.5), (3, 0.9), (6, 1.0)):  # latent 2 has no score, latent 6 is not found
        label = annotations_pb2.SetLabelRequest(
            of=of,
            latent=latent,
            text="fog",
            origin=annotations_pb2.LABEL_ORIGIN_AUTOMATIC,
            author="m",
            scores={"detection": score},
        )
        await known.annotations.SetLabel(label)
    assert ids(await search(known, " can")) == [1, 2, 3]
    for order, expected in (("-detection", [3, 1, 2]), ("detection", [1, 3, 2]), ("-id", [3, 2, 1])):
        assert ids(await search(known, " can", order_by=order)) == expected
        reply, walked = await search(known, " can", order_by=order, page_size=1), []
        while True:
            walked += ids(reply)
            if not reply.next_page_token:
                break
            reply = await search(known, " can", order_by=order, page_size=1, page_token=reply.next_page_token)
        assert walked == expected
    assert "no_column" in await refused(known, " can", order_by="no_column")
    columns = [
        each async for each in known.latents.GetAtlas(pb.GetAtlasRequest(crosscoder="demo", columns=["detection"]))
    ]
    values = np.frombuffer(b"".join(each.values for each in columns), "<f4")
    assert np.flatnonzero(~np.isnan(values)).tolist() == [1, 3, 6]
    assert values[3] == np.float32(0.9)


async def test_labels_tokens_and_filters(known: Front) -> None:
    of = annotations_pb2.WordsOf(crosscoder="demo")
    label = annotations_pb2.SetLabelRequest(
        of=of, latent=6, text="Refuses politely", origin=annotations_pb2.LABEL_ORIGIN_PERSON, author="ada"
    )
    await known.annotations.SetLabel(label)
    reply = await search(known, "refus", LABEL, PEAK, EXAMPLE)
    assert ids(reply)[:2] == [6, 3]
    assert reply.results[0].matches[0].matched == "Refus"
    assert {each.place: each.num_latents for each in reply.counts}[EXAMPLE] == 2
    text = f"{'x' * 200} They refuse here."
    note = annotations_pb2.WriteNoteRequest(of=of, latent=5, text=text, author="ada")
    await known.annotations.WriteNote(note)
    reply = await search(known, "refus", LABEL, EXAMPLE, NOTE)
    assert ids(reply)[:3] == [6, 5, 3]
    match = reply.results[1].matches[0]
    assert (match.place, len(match.before), match.behind) == (NOTE, 80, "e here.")
    only = pb.LatentFilter(column="max", op=pb.LatentFilter.OP_GT, number=4.5)
    reply = await search(known, "refus", LABEL, EXAMPLE, filters=[only])
    assert ids(reply) == [3]
    assert [each.num_latents for each in reply.counts] == [0, 1]


async def test_pages_stay_with_their_version(known: Front, tmp_path: Path) -> None:
    first = await search(known, "can", page_size=1)
    assert (ids(first), first.num_matching) == ([1], 3)
    newer = write_known(tmp_path, created_at=1_800_000_000.0, texts=[["nothing"], *TEXTS[1:]])
    second = await search(known, "can", page_size=1, page_token=first.next_page_token)
    assert (ids(second), second.version_id) == ([2], first.version_id)
    assert "another" in await refused(known, "cannot", page_token=first.next_page_token)
    broken = await search(known, "can")
    assert broken.version_id == newer
    # Its first text is shorter than its examples say: examples are not searched, and the reply says why.
    assert "a position that there is not" in broken.counts[0].not_searched


async def test_an_index_is_built_once_kept_mended_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = write_known(tmp_path)
    built: list[Path] = []
    write = index._write  # pyright: ignore[reportPrivateUsage]

    def counted(*arguments: Any) -> Path:
        built.append(write(*arguments))
        return built[-1]

    monkeypatch.setattr(index, "_write", counted)
    for _ in range(2):
        async with run_front(home=tmp_path) as front:
            replies = await asyncio.gather(*(search(front, text) for text in ("can", "refus", "cafe")))
            assert [len(each.results) for each in replies] == [3, 2, 1]
    assert len(built) == 1
    [file] = (tmp_path / "search/demo").iterdir()
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.unlink()
    file.write_bytes(damaged)
    write_known(tmp_path, created_at=1_800_000_000.0)
    async with run_front(home=tmp_path) as front:
        assert len((await search(front, "can", version_id=version)).results) == 3
        assert len(built) == 2
        shutil.rmtree(layout.version_folder(tmp_path, "demo", version))
        assert len((await search(front, "can")).results) == 3
    assert [version not in each.name for each in (tmp_path / "search/demo").iterdir()] == [True]


async def test_what_was_not_searched_is_said(tmp_path: Path) -> None:
    write_known(tmp_path)
    (tmp_path / "search").write_text("a file where the folder should be")
    async with run_front(home=tmp_path) as front:
        reply = await search(front, "can", PEAK, EXAMPLE)
        assert "their index cannot be written" in reply.counts[-1].not_searched
        assert not reply.counts[0].not_searched
