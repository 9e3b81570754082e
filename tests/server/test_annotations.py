"""Words through the real server: what is written comes back, belongs to its weights, and is remembered."""

import asyncio
from pathlib import Path

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from fixtures_artefacts import write_crosscoder
from fixtures_server import Front, details_of, run_front
from google.rpc import error_details_pb2

from crosscope_proto.v1 import annotations_pb2 as pb
from crosscope_proto.v1 import latents_pb2

pytestmark = pytest.mark.asyncio

DEMO = pb.WordsOf(crosscoder="demo")


@pytest_asyncio.fixture
async def words(tmp_path: Path):
    """A server of its own with the crosscoder "demo" of 40 latents."""
    write_crosscoder(tmp_path, "demo", 40, num_sequences=20)
    async with run_front(home=tmp_path) as running:
        yield running


async def failure(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def label(latent: int, text: str, **fields) -> pb.SetLabelRequest:
    return pb.SetLabelRequest(of=DEMO, latent=latent, text=text, **{"author": "ada", **fields})


async def test_words_come_back_as_they_were_written(words: Front):
    said = words.annotations
    empty = (await said.GetAnnotation(pb.GetAnnotationRequest(of=DEMO, latent=7))).annotation
    assert empty == pb.Annotation(latent=7)
    hostile = "\u202erefusals\u202c =1+1 👩‍👩‍👧 Ünï"
    written = (await said.SetLabel(label(7, hostile))).annotation
    assert (written.label.text, written.label.author, written.label.revision) == (hostile, "ada", 1)
    note = "line one\nline two\t'; DROP TABLE words; --"
    await said.WriteNote(pb.WriteNoteRequest(of=DEMO, latent=7, text=note, author="ada"))
    await said.SetStar(pb.SetStarRequest(of=DEMO, latent=7, is_starred=True, author="bob"))
    await said.CreateList(pb.CreateListRequest(of=DEMO, name="mine", author="bob"))
    changed = await said.ChangeList(pb.ChangeListRequest(of=DEMO, name="mine", add=[9, 7, 9, 3], author="bob"))
    assert (changed.num_added, changed.num_removed, changed.list.num_latents) == (3, 0, 3)
    reply = await said.GetAnnotation(pb.GetAnnotationRequest(of=DEMO, latent=7))
    assert len(reply.weights) == 64
    found = reply.annotation
    assert (found.label.text, found.note.text, found.star.author) == (hostile, note, "bob")
    assert [(place.name, place.position) for place in found.lists] == [("mine", 1)]
    in_order = await said.GetList(pb.GetListRequest(of=DEMO, name="mine"))
    assert list(in_order.latents) == [9, 7, 3]
    await said.SetLabel(label(7, ""))
    await said.SetStar(pb.SetStarRequest(of=DEMO, latent=7, author="bob"))
    found = (await said.GetAnnotation(pb.GetAnnotationRequest(of=DEMO, latent=7))).annotation
    assert not found.HasField("label")
    assert not found.HasField("star")
    assert found.HasField("note")


async def test_history_says_who_changed_what(words: Front):
    said = words.annotations
    for author, text in (("ada", "a"), ("bob", "b"), ("bob", "b"), ("ada", "")):
        await said.SetLabel(label(3, text, author=author))
    await said.CreateList(pb.CreateListRequest(of=DEMO, name="mine", author="eve"))
    await said.ChangeList(pb.ChangeListRequest(of=DEMO, name="mine", add=[3], author="eve"))
    await said.RenameList(pb.RenameListRequest(of=DEMO, name="mine", new_name="ours", author="eve"))
    await said.DeleteList(pb.DeleteListRequest(of=DEMO, name="ours", author="eve"))
    first = await said.GetHistory(pb.GetHistoryRequest(of=DEMO, latent=3, page_size=2))
    request = pb.GetHistoryRequest(of=DEMO, latent=3, page_token=first.next_page_token)
    changes = [*first.changes, *(await said.GetHistory(request)).changes]

    def texts(change: pb.Change) -> tuple[str | None, str | None]:
        return tuple(getattr(change, side) if change.HasField(side) else None for side in ("before", "after"))  # pyright: ignore[reportReturnType]

    assert [(each.what, each.list, each.author, *texts(each)) for each in changes] == [
        ("list", "ours", "eve", "", None),
        ("list", "mine", "eve", None, ""),
        ("label", "", "ada", "b", None),
        ("label", "", "bob", "a", "b"),
        ("label", "", "ada", None, "a"),
    ], "writing the same again is no change"
    assert [each.revision for each in changes] == sorted((each.revision for each in changes), reverse=True)


async def test_a_stale_write_is_refused_with_both_texts(words: Front):
    said = words.annotations
    seen = (await said.SetLabel(label(1, "first"))).annotation.label.revision
    await said.SetLabel(label(1, "second", author="bob", seen_revision=seen))
    error = await failure(said.SetLabel(label(1, "third", seen_revision=seen)))
    assert error.code() is grpc.StatusCode.ABORTED
    for part in ("'second'", "'third'", "by bob", "revision 2"):
        assert part in (error.details() or "")
    info = error_details_pb2.ErrorInfo()
    assert details_of(error)[0].details[0].Unpack(info)
    facts = dict(info.metadata)
    assert facts.pop("request_id")
    assert (info.reason, facts) == ("STALE", {"revision": "2", "now": "second"})
    # A call that is sent twice has not missed its own change.
    again = await said.SetLabel(label(1, "second", seen_revision=seen))
    assert again.annotation.label.author == "bob"
    error = await failure(said.WriteNote(pb.WriteNoteRequest(of=DEMO, latent=1, text="n", seen_revision=9)))
    assert "it is cleared" in (error.details() or "")
    await said.SetLabel(label(2, "new", seen_revision=0))
    error = await failure(said.SetLabel(label(2, "newer", seen_revision=0)))
    assert error.code() is grpc.StatusCode.ABORTED


async def test_a_person_goes_before_a_program(words: Front):
    said = words.annotations
    automatic = {"origin": pb.LABEL_ORIGIN_AUTOMATIC, "author": "some-model", "scores": {"detection": 0.75}}
    await said.SetLabel(label(4, "said by a program", **automatic))
    await said.SetLabel(label(5, "said by a program", **automatic))
    await said.SetLabel(label(4, "said by a person"))
    names = (await said.GetNames(pb.GetNamesRequest(of=DEMO, latents=[5, 4, 6]))).names
    assert [(each.latent, each.label, each.label_origin) for each in names] == [
        (5, "said by a program", pb.LABEL_ORIGIN_AUTOMATIC),
        (4, "said by a person", pb.LABEL_ORIGIN_PERSON),
        (6, "", pb.LABEL_ORIGIN_UNSPECIFIED),
    ]
    found = (await said.GetAnnotation(pb.GetAnnotationRequest(of=DEMO, latent=4))).annotation
    assert (found.automatic_label.text, dict(found.automatic_label.scores)) == (
        "said by a program",
        {"detection": 0.75},
    )
    error = await failure(said.SetLabel(label(4, "x", scores={"detection": 1.0})))
    assert details_of(error)[1][0][0] == "scores"


async def test_a_latent_without_a_label_is_called_by_its_peak(words: Front):
    names = (await words.annotations.GetNames(pb.GetNamesRequest(of=DEMO, latents=range(40)))).names
    for name in names:
        examples = await words.latents.ListExamples(
            latents_pb2.ListExamplesRequest(crosscoder="demo", latent=name.latent, group="EXAMPLE_GROUP_TOP")
        )
        if not examples.examples:
            assert not name.peak_context
            continue
        strongest = examples.examples[0]
        pieces, at = list(strongest.tokens.pieces), strongest.peak
        around = ["".join(pieces[max(0, at - 4) : at]), pieces[at], "".join(pieces[at + 1 : at + 5])]
        assert list(name.peak_context) == around


async def test_limits(words: Front):
    wrong = (
        (label(1, "x" * 201), "text"),
        (label(1, "two\nlines"), "text"),
        (label(1, "\u200b "), "text"),
        (label(1, "x", author="a" * 101), "author"),
        (label(1, "x", origin=9), "origin"),
        (pb.WriteNoteRequest(of=DEMO, text="x" * 10_001), "text"),
        (pb.WriteNoteRequest(of=DEMO, text="a\0b"), "text"),
        (pb.CreateListRequest(of=DEMO, name="x" * 101), "name"),
        (pb.CreateListRequest(of=DEMO, name=" "), "name"),
        (pb.ChangeListRequest(of=DEMO, name="x", add=range(1001)), "add"),
        (pb.GetNamesRequest(of=DEMO, latents=range(1001)), "latents"),
        (pb.SetStarRequest(latent=1), "of"),
    )
    for request, field in wrong:
        method = type(request).__name__.removesuffix("Request")
        error = await failure(getattr(words.annotations, method)(request))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert [name for name, _ in details_of(error)[1]] == [field]
    await words.annotations.SetLabel(label(1, "é" * 200))
    await words.annotations.WriteNote(pb.WriteNoteRequest(of=DEMO, text="é\n" * 5000))


async def test_what_is_not_there_is_named(words: Front):
    said = words.annotations
    error = await failure(said.SetLabel(label(40, "x")))
    assert "its latents are 0 to 39" in (error.details() or "")
    error = await failure(said.GetList(pb.GetListRequest(of=DEMO, name="mine")))
    assert (error.code(), "no list yet" in (error.details() or "")) == (grpc.StatusCode.NOT_FOUND, True)
    await said.CreateList(pb.CreateListRequest(of=DEMO, name="mine"))
    error = await failure(said.CreateList(pb.CreateListRequest(of=DEMO, name="mine")))
    assert error.code() is grpc.StatusCode.ALREADY_EXISTS
    error = await failure(said.DeleteList(pb.DeleteListRequest(of=DEMO, name="yours")))
    assert "there are 'mine'" in (error.details() or "")
    error = await failure(said.SetLabel(pb.SetLabelRequest(of=pb.WordsOf(crosscoder="no"), text="x")))
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_words_stay_with_the_weights(tmp_path: Path):
    old = write_crosscoder(tmp_path, "demo", 40, num_sequences=20)
    async with run_front(home=tmp_path) as front:
        said = front.annotations
        await said.SetLabel(label(7, "refusals"))
        await said.SetStar(pb.SetStarRequest(of=DEMO, latent=8, is_starred=True))
        again = write_crosscoder(tmp_path, "demo", 40, num_sequences=20, created_at=1_700_000_100.0)
        assert again.version_id != old.version_id
        found = await said.ListAnnotations(pb.ListAnnotationsRequest(of=DEMO))
        assert [each.latent for each in found.annotations] == [7, 8], "a new analysis of the same weights keeps them"
        assert not found.notes
        write_crosscoder(tmp_path, "demo", 40, num_sequences=20, seed=5)
        found = await said.ListAnnotations(pb.ListAnnotationsRequest(of=DEMO))
        assert not found.annotations, "a new training does not inherit"
        assert [note.partition(";")[0].partition(",")[0] for note in found.notes] == [
            "1 label and 1 star of demo belong to other weights"
        ]
        of_old = pb.WordsOf(crosscoder="demo", version_id=old.version_id)
        found = await said.ListAnnotations(pb.ListAnnotationsRequest(of=of_old))
        assert [each.latent for each in found.annotations] == [7, 8]

        async def exported(**fields) -> list[int]:
            replies = said.ExportAnnotations(pb.ExportAnnotationsRequest(of=DEMO, **fields))
            return [row.annotation.latent async for reply in replies for row in reply.rows]

        assert await exported() == []
        assert await exported(with_earlier=True) == [7, 8]
        (tmp_path / "crosscoders/demo/CURRENT").unlink()
        assert await exported(with_earlier=True) == [7, 8], "words outlive their crosscoder"
        with pytest.raises(grpc.aio.AioRpcError):
            await exported()


async def test_listing_filters_and_pages(words: Front):
    said = words.annotations
    for latent in range(0, 12, 2):
        await said.SetLabel(label(latent, f"About {latent} ÄPFEL"))
    await said.WriteNote(pb.WriteNoteRequest(of=DEMO, latent=11, text="äpfel, too"))
    await said.SetStar(pb.SetStarRequest(of=DEMO, latent=4, is_starred=True))
    await said.CreateList(pb.CreateListRequest(of=DEMO, name="l"))
    await said.ChangeList(pb.ChangeListRequest(of=DEMO, name="l", add=[30, 4]))

    async def ids(**fields) -> list[int]:
        request, found = pb.ListAnnotationsRequest(of=DEMO, page_size=4, **fields), []
        while True:
            reply = await said.ListAnnotations(request)
            found += [each.latent for each in reply.annotations]
            if not reply.next_page_token:
                assert len(found) == reply.num_matching
                return found
            request.page_token = reply.next_page_token

    assert await ids() == [0, 2, 4, 6, 8, 10, 11, 30]
    assert await ids(text="äpfel") == [0, 2, 4, 6, 8, 10, 11]
    assert await ids(is_labelled=True, list="l") == [4]
    assert await ids(is_noted=True) == [11]
    assert await ids(is_starred=True) == [4]
    assert await ids(list="l") == [4, 30]
    reply = await said.ListAnnotations(pb.ListAnnotationsRequest(of=DEMO, list="l"))
    assert (reply.num_labelled, reply.num_starred, reply.num_noted) == (6, 1, 1)
    error = await failure(said.ListAnnotations(pb.ListAnnotationsRequest(of=DEMO, list="no")))
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_latents_are_filtered_and_ordered_by_words(words: Front):
    said, op = words.annotations, latents_pb2.LatentFilter
    for latent, text in ((3, "Refusals"), (5, "bread"), (9, "a refusal")):
        await said.SetLabel(label(latent, text))
    await said.SetStar(pb.SetStarRequest(of=DEMO, latent=5, is_starred=True))
    await said.CreateList(pb.CreateListRequest(of=DEMO, name="l"))
    await said.ChangeList(pb.ChangeListRequest(of=DEMO, name="l", add=[9, 2, 5]))

    async def listing(*filters, order_by: str = "", size: int = 40):
        request = latents_pb2.ListLatentsRequest(crosscoder="demo", filters=filters, order_by=order_by, page_size=size)
        return await words.latents.ListLatents(request)

    async def ids(*filters, order_by: str = "") -> list[int]:
        return [each.id for each in (await listing(*filters, order_by=order_by)).latents]

    contains = op(column="label", op=op.OP_CONTAINS, text="REFUSAL")
    assert await ids(contains) == [3, 9]
    assert await ids(op(column="label", op=op.OP_EQ, text="bread")) == [5]
    assert len(await ids(op(column="label", op=op.OP_NE, text="bread"))) == 39
    assert await ids(op(column="starred", op=op.OP_EQ, number=1)) == [5]
    assert await ids(op(column="labelled", op=op.OP_EQ, number=1), contains) == [3, 9]
    in_list = op(column="list", op=op.OP_EQ, text="l")
    assert await ids(in_list) == [2, 5, 9]
    assert await ids(in_list, order_by="list") == [9, 2, 5]
    reply = await listing(order_by="label", size=4)
    assert [each.id for each in reply.latents] == [9, 5, 3, 0]
    assert (reply.num_undefined, reply.num_matching) == (37, 40)
    second = latents_pb2.ListLatentsRequest(
        crosscoder="demo", order_by="label", page_size=2, page_token=reply.next_page_token
    )
    assert [each.id for each in (await words.latents.ListLatents(second)).latents] == [1, 2]
    assert (await ids(order_by="-starred"))[:2] == [5, 0]
    found = (await words.latents.GetLatent(latents_pb2.GetLatentRequest(crosscoder="demo", latent=5))).latent
    assert (found.label, found.is_starred) == ("bread", True)
    request = latents_pb2.GetAtlasRequest(crosscoder="demo", columns=["starred", "max", "labelled"])
    columns = {reply.column: reply.values async for reply in words.latents.GetAtlas(request)}
    assert list(columns) == ["starred", "max", "labelled"]
    assert columns["starred"] == b"\0\0\0\0" * 5 + b"\0\0\x80?" + b"\0\0\0\0" * 34
    for condition, field in (
        (op(column="starred", op=op.OP_LT, number=1), "filters[0]"),
        (op(column="label", op=op.OP_LT, text="a"), "filters[0].op"),
        (op(column="list", op=op.OP_CONTAINS, text="a"), "filters[0].op"),
        (op(column="label", op=op.OP_EQ, number=1), "filters[0].number"),
        (op(column="max", op=op.OP_CONTAINS, number=1), "filters[0].op"),
        (op(column="top_tokens", op=op.OP_CONTAINS, text="a"), "filters[0].op"),
    ):
        assert details_of(await failure(listing(condition)))[1][0][0] == field
    error = await failure(listing(order_by="list"))
    assert "exactly one filter" in (error.details() or "")
    error = await failure(listing(op(column="list", op=op.OP_EQ, text="no")))
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_many_writers_at_once_lose_nothing(words: Front):
    said = words.annotations
    await said.CreateList(pb.CreateListRequest(of=DEMO, name="l"))
    calls = [said.SetLabel(label(i, f"label {i}")) for i in range(40)]
    calls += [said.ChangeList(pb.ChangeListRequest(of=DEMO, name="l", add=[i])) for i in range(40)]
    await asyncio.gather(*calls)
    found = (await said.ListAnnotations(pb.ListAnnotationsRequest(of=DEMO))).annotations
    assert [each.label.text for each in found] == [f"label {i}" for i in range(40)]
    assert sorted(place.position for each in found for place in each.lists) == list(range(40))
    # Of many that have seen the same, one wins.
    seen = found[0].label.revision
    results = await asyncio.gather(
        *(said.SetLabel(label(0, f"again {i}", seen_revision=seen)) for i in range(8)), return_exceptions=True
    )
    assert sum(isinstance(each, grpc.aio.AioRpcError) for each in results) == 7
