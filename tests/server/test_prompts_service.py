import asyncio
import math
import time
from itertools import pairwise
from pathlib import Path

import grpc
import grpc.aio
import pyarrow.parquet as pq
import pytest
import redis.asyncio
from fixtures_server import code_of, details_of, run_cache, run_front, run_worker, tokens_of
from fixtures_waiting import PATIENCE_S, happening

from crosscope_proto.artefacts import SEQUENCES, version_folder
from crosscope_proto.keys import encode_key
from crosscope_proto.v1 import latents_pb2, prompts_pb2, types_pb2
from crosscope_proto.worker.v1 import inference_pb2
from crosscope_server.encodings import ENCODINGS, Prompt, read_encoding
from crosscope_server.replies import pack

pytestmark = pytest.mark.asyncio


def text(value: str) -> types_pb2.Prompt:
    return types_pb2.Prompt(text=value)


def turns(*pairs: tuple[str, str]) -> types_pb2.Prompt:
    messages = [types_pb2.Turn(role=role, content=content) for role, content in pairs]
    return types_pb2.Prompt(conversation=types_pb2.Conversation(turns=messages))


def ids(num_ids: int, num_roles: int, **fields: bool) -> types_pb2.Prompt:
    """Token ids 0, 1, … and the first roles of them."""
    given = types_pb2.TokenIds(ids=range(num_ids), roles=[types_pb2.TOKEN_ROLE_TEXT] * num_roles)
    return types_pb2.Prompt(token_ids=given, **fields)


def told(kwargs: str, **turn: str) -> types_pb2.Prompt:
    """A turn, and what the template is told."""
    messages = [types_pb2.Turn(role="assistant", content="x", **turn)]
    return types_pb2.Prompt(conversation=types_pb2.Conversation(turns=messages, chat_template_kwargs_json=kwargs))


def encode(value: str, **fields) -> prompts_pb2.EncodeRequest:
    return prompts_pb2.EncodeRequest(crosscoder="demo", prompt=text(value), **fields)


async def failure(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_encode_answers_with_tokens_and_every_latent_that_fires(online):
    reply = await online.prompts.Encode(encode("a b"))
    assert list(reply.tokens.pieces) == ["<bos>", "a", "b"]
    assert list(reply.tokens.roles) == [types_pb2.TOKEN_ROLE_BOS, *[types_pb2.TOKEN_ROLE_TEXT] * 2]
    assert list(reply.code.row_starts) == [0, 2, 4, 6]
    assert list(reply.code.latents) == [0, 1, 1, 2, 2, 3]
    assert list(reply.code.activations) == [2, 1, 4, 2, 6, 3]
    assert (reply.cached, reply.compute_ms) == (False, 1.5)


async def test_top_k_cuts_each_token(online):
    reply = await online.prompts.Encode(encode("a b", top_k=1))
    assert list(reply.code.row_starts) == [0, 1, 2, 3]
    assert list(reply.code.latents) == [0, 1, 2]


async def test_tokenize_answers_with_tokens(online):
    reply = await online.prompts.Tokenize(prompts_pb2.TokenizeRequest(crosscoder="demo", prompt=text("a b")))
    assert list(reply.tokens.pieces) == ["<bos>", "a", "b"]
    assert reply.max_prompt_tokens == 9


async def test_top_latents(online, planted_home):
    request = prompts_pb2.TopLatentsRequest(
        crosscoder="demo", prompt=text("a b"), rank=prompts_pb2.RANK_SUM, limit=2, skip_template_tokens=True
    )
    reply = await online.prompts.TopLatents(request)  # token 1 fires 1: 4, 2: 2; token 2 fires 2: 6, 3: 3
    entries = [(e.latent, e.score, e.max, e.sum, e.count, e.peak_token) for e in reply.entries]
    assert entries == [(2, 8, 6, 8, 2, 2), (1, 4, 4, 4, 1, 1)]
    assert (reply.num_latents, reply.version_id) == (3, planted_home[1].version_id)
    listing = latents_pb2.ListLatentsRequest(crosscoder="demo", page_size=1000)
    measured = {latent.id: latent for latent in (await online.latents.ListLatents(listing)).latents}
    request.rank, request.limit = prompts_pb2.RANK_SHARE_OF_MAX, 3
    shares = {e.latent: e.score for e in (await online.prompts.TopLatents(request)).entries}
    living = {
        latent: fired / measured[latent].max for latent, fired in ((1, 4), (2, 6), (3, 3)) if measured[latent].max
    }
    assert shares == pytest.approx(living | dict.fromkeys({1, 2, 3} - living.keys(), math.nan), nan_ok=True)
    request.max_frequency = sorted(measured[latent].frequency.value for latent in (1, 2, 3))[1]
    rare = {latent for latent in (1, 2, 3) if measured[latent].frequency.value <= request.max_frequency}
    assert {e.latent for e in (await online.prompts.TopLatents(request)).entries} == rare < {1, 2, 3}
    request.ClearField("max_frequency")
    request.rank, classes = prompts_pb2.RANK_USELESSNESS, {measured[latent].latent_class for latent in (1, 2, 3)}
    reply = await online.prompts.TopLatents(request)
    weighed = {latent: fired * measured[latent].base_uselessness_single for latent, fired in ((1, 4), (2, 6), (3, 3))}
    assert {e.latent: e.score for e in reply.entries} == pytest.approx(weighed, nan_ok=True, rel=1e-5)
    for number in classes:
        name = latents_pb2.LatentClass.Name(number).removeprefix("LATENT_CLASS_").lower()
        condition = latents_pb2.LatentFilter(column="latent_class", op=latents_pb2.LatentFilter.OP_EQ, text=name)
        del request.filters[:]
        request.filters.append(condition)
        reply = await online.prompts.TopLatents(request)
        among = {latent for latent in (1, 2, 3) if measured[latent].latent_class == number}
        assert {e.latent for e in reply.entries} == among
        assert (reply.num_latents, reply.num_filtered) == (len(among), 3 - len(among))
    request.filters[0].text = "wizard"
    with pytest.raises(grpc.aio.AioRpcError, match="no latent_class 'wizard'"):
        await online.prompts.TopLatents(request)


async def test_what_training_left_out_is_marked_and_not_ranked(online):
    encoded = await online.prompts.Encode(encode("a sink b"))
    kept, norm = types_pb2.TOKEN_LEFT_OUT_UNSPECIFIED, types_pb2.TOKEN_LEFT_OUT_NORM
    assert list(encoded.tokens.left_out) == [kept, kept, norm, kept]
    request = prompts_pb2.TopLatentsRequest(crosscoder="demo", prompt=text("a sink b"), token_start=2, token_end=3)
    reply = await online.prompts.TopLatents(request)
    assert (len(reply.entries), reply.num_latents, reply.num_left_out) == (0, 0, 1)
    request.include_left_out = True
    reply = await online.prompts.TopLatents(request)
    assert ([entry.latent for entry in reply.entries], reply.num_left_out) == ([2, 3], 0)
    assert reply.tokens == encoded.tokens


async def test_replies_cached_before_tokens_were_marked_are_computed_again(planted_home, running_worker, cache_socket):
    url, version_id = f"unix://{cache_socket}", planted_home[1].version_id
    old = encode_key("demo", version_id, "encode", Prompt("a sink").canonical())
    reply = inference_pb2.EncodeResponse(tokens=tokens_of("a sink"), code=code_of("a sink"))
    async with redis.asyncio.Redis.from_url(url) as client:
        await client.set(old, pack(read_encoding(reply), old, ENCODINGS))
        async with run_front(home=planted_home[0], workers=running_worker.target, cache_url=url) as front:
            await front.prompts_serve()
            found = await front.prompts.Encode(encode("a sink"))
    assert (found.cached, list(found.tokens.left_out)) == (False, [0, 0, types_pb2.TOKEN_LEFT_OUT_NORM])


async def test_a_stored_text_reaches_the_worker_as_its_tokens_and_shares_their_cache(
    planted_home, running_worker, cache_socket
):
    home, manifest = planted_home
    stored = pq.read_table(Path(version_folder(home, "demo", manifest.version_id)) / SEQUENCES).to_pylist()[7]
    ids = stored["token_ids"]
    by_id = types_pb2.Prompt(stored_text=types_pb2.StoredText(sequence_id=7))
    by_tokens = types_pb2.Prompt(token_ids=types_pb2.TokenIds(ids=ids, roles=stored["roles"]))
    by_ids = types_pb2.Prompt(token_ids=types_pb2.TokenIds(ids=ids))
    url = f"unix://{cache_socket}"
    async with run_front(home=home, workers=running_worker.target, cache_url=url) as front:
        await front.prompts_serve()

        async def ask(prompt: types_pb2.Prompt) -> prompts_pb2.EncodeResponse:
            return await front.prompts.Encode(prompts_pb2.EncodeRequest(crosscoder="demo", prompt=prompt))

        first = await ask(by_id)
        assert running_worker.worker.prompts == [
            " ".join(f"{id_}/{role}" for id_, role in zip(ids, stored["roles"], strict=True))
        ]
        assert not first.cached
        async with asyncio.timeout(PATIENCE_S):
            while not (again := await ask(by_tokens)).cached:
                pass
        assert again.code == first.code
        assert not (await ask(by_ids)).cached
        assert running_worker.worker.prompts[-1] == " ".join(f"{id_}/None" for id_ in ids)
        listed = await front.prompts.Tokenize(prompts_pb2.TokenizeRequest(crosscoder="demo", prompt=by_id))
        assert list(listed.tokens.pieces)[1:] == running_worker.worker.prompts[0].split(" ")


async def test_a_stored_text_that_does_not_exist_is_named_with_the_range(online):
    for sequence_id in (80, 2**40):
        prompt = types_pb2.Prompt(stored_text=types_pb2.StoredText(sequence_id=sequence_id))
        for call in (
            online.prompts.Encode(prompts_pb2.EncodeRequest(crosscoder="demo", prompt=prompt)),
            online.prompts.TopLatents(prompts_pb2.TopLatentsRequest(crosscoder="demo", prompt=prompt)),
            online.prompts.Tokenize(prompts_pb2.TokenizeRequest(crosscoder="demo", prompt=prompt)),
        ):
            error = await failure(call)
            assert error.code() is grpc.StatusCode.NOT_FOUND
            assert error.details() == f"the analysis stored no text {sequence_id}; there are 0 to 79"


async def test_control_characters_and_whitespace_are_text(online, running_worker):
    for value in ("\x00", " ", "<end_of_turn>", "\ufffd"):
        await online.prompts.Encode(encode(value))
    assert running_worker.worker.prompts == ["\x00", " ", "<end_of_turn>", "\ufffd"]


@pytest.mark.parametrize(
    ("request_", "field", "says"),
    [
        (encode(""), "prompt.text", "must be at least 1 bytes, but is 0 bytes"),
        (encode("x" * 300_000), "prompt.text", "must be at most 262144 bytes, but is 300000 bytes"),
        (encode("x", top_k=0), "top_k", "less than or equal to 65536, but is 0"),
        (encode("x", top_k=10**9), "top_k", "less than or equal to 65536, but is 1000000000"),
        (prompts_pb2.EncodeRequest(crosscoder="demo"), "prompt", "required"),
        (prompts_pb2.EncodeRequest(crosscoder="demo", prompt=types_pb2.Prompt()), "prompt.content", "required"),
        (prompts_pb2.EncodeRequest(prompt=text("x")), "crosscoder", "at least 1 characters, but is ''"),
        (
            prompts_pb2.EncodeRequest(crosscoder="demo", prompt=turns(("bob", "x"))),
            "prompt.conversation.turns[0].role",
            "must be in list [system, developer, user, assistant, tool], but is 'bob'",
        ),
        (
            prompts_pb2.EncodeRequest(crosscoder="demo", prompt=turns(*[("user", "x")] * 3000)),
            "prompt.conversation.turns",
            "must contain no more than 1024 item(s), but is 3000 items",
        ),
        (prompts_pb2.EncodeRequest(crosscoder="demo", prompt=turns()), "prompt.conversation.turns", "but is 0 items"),
        (
            prompts_pb2.EncodeRequest(crosscoder="demo", prompt=told("[1]")),
            "prompt.conversation.chat_template_kwargs_json",
            "must be a JSON object, but is [1]",
        ),
        (
            prompts_pb2.EncodeRequest(crosscoder="demo", prompt=told("[" * 100_000)),
            "prompt.conversation.chat_template_kwargs_json",
            "is nested too deeply",
        ),
        (
            prompts_pb2.EncodeRequest(crosscoder="demo", prompt=told('{"chat_template": "x"}')),
            "prompt.conversation.chat_template_kwargs_json",
            "'chat_template' cannot be given to a chat template",
        ),
        (
            prompts_pb2.EncodeRequest(crosscoder="demo", prompt=told("", tool_calls_json='[{"name": 3}]')),
            "prompt.conversation.turns[0].tool_calls_json",
            'each call must be an object with "function"',
        ),
        (
            prompts_pb2.EncodeRequest(crosscoder="demo", prompt=ids(3, 1)),
            "prompt.token_ids.roles",
            "has 1 roles for 3 ids; give one a token, or none",
        ),
        (
            prompts_pb2.EncodeRequest(crosscoder="demo", prompt=ids(0, 0)),
            "prompt.token_ids.ids",
            "must contain at least 1 item(s), but is 0 items",
        ),
        (
            prompts_pb2.EncodeRequest(crosscoder="demo", prompt=ids(1, 0, parse_control_tokens=True)),
            "prompt.parse_control_tokens",
            "goes with a text or a conversation",
        ),
        (
            prompts_pb2.EncodeRequest(crosscoder="demo", prompt=turns(*[("user", "x" * 250_000)] * 5)),
            "prompt.conversation.turns",
            "1250000 bytes of text, but may have at most 1048576",
        ),
    ],
)
async def test_bad_requests_are_refused_by_field_value_and_limit(online, request_, field, says):
    error = await failure(online.prompts.Encode(request_))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    _, violations = details_of(error)
    assert violations[0][0] == field
    assert says in violations[0][1]
    assert says in (error.details() or "")


async def test_bytes_that_are_no_message_are_refused(online):
    for data in (b"\xff\xff\xff", encode("AAAA").SerializeToString().replace(b"AAAA", b"\xed\xa0\x80A")):
        call = online.channel.unary_unary("/crosscope.v1.Prompts/Encode")
        error = await failure(call(data))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "not a valid message" in (error.details() or "")


async def test_a_message_beyond_4_mb_is_refused_and_the_server_stays_up(online):
    error = await failure(online.prompts.Encode(encode("x" * 5_000_000)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await online.prompts.Encode(encode("a"))


async def test_an_unknown_crosscoder_is_not_found_and_the_known_ones_are_named(online):
    for name in ("dem", "../../etc", "Demo", "x/y"):
        request = prompts_pb2.EncodeRequest(crosscoder=name, prompt=text("a"))
        error = await failure(online.prompts.Encode(request))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert error.details() == f"no crosscoder {name!r}; there are demo"


async def test_no_worker_means_unavailable_and_browsing_goes_on(front):
    error = await failure(front.prompts.Encode(encode("a")))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "python -m crosscope_worker serve" in (error.details() or "")
    await front.prompts_serve(serving=False)


async def test_a_workers_refusal_reaches_the_caller(online, running_worker):
    running_worker.worker.fails_with = grpc.StatusCode.INVALID_ARGUMENT, "the prompt has 9000 tokens, the limit is 8192"
    error = await failure(online.prompts.Encode(encode("a")))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "the prompt has 9000 tokens, the limit is 8192"
    assert details_of(error)[1] == [("prompt", "the prompt has 9000 tokens, the limit is 8192")]


async def test_a_workers_bug_is_internal_with_a_bug_id_and_nothing_of_its_inside(online, running_worker):
    running_worker.worker.fails_with = grpc.StatusCode.INTERNAL, "Traceback: secret"
    error = await failure(online.prompts.Encode(encode("a")))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "bug id" in (error.details() or "")
    assert "secret" not in (error.details() or "")


async def test_a_busy_worker_is_passed_over_and_only_when_all_are_busy_the_caller_hears_of_it(planted_home, tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    busy = grpc.StatusCode.RESOURCE_EXHAUSTED, "70000 tokens wait"
    async with (
        run_worker(folders[0]) as a,
        run_worker(folders[1]) as b,
        run_front(home=planted_home[0], workers=f"{a.target},{b.target}") as front,
    ):
        await front.prompts_serve()
        while not (a.worker.prompts and b.worker.prompts):
            await front.prompts.Encode(encode("a"))
        a.worker.fails_with = busy
        for prompt in ("c", "d"):  # whoever's turn it is
            assert (await front.prompts.Encode(encode(prompt))).tokens.pieces[1] == prompt
        b.worker.fails_with = busy
        error = await failure(front.prompts.Encode(encode("e")))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details() == "70000 tokens wait"
        assert a.worker.prompts[-1] == b.worker.prompts[-1] == "e"


async def test_health_follows_the_worker(planted_home, tmp_path):
    workers = f"unix:{tmp_path}/worker.sock"
    async with run_front(home=planted_home[0], workers=workers, hold_s=0.1) as front:
        await front.prompts_serve(serving=False)
        async with run_worker(tmp_path):
            await front.prompts_serve()
            await front.prompts.Encode(encode("a"))
        await front.prompts_serve(serving=False)
        assert (await failure(front.prompts.Encode(encode("a")))).code() is grpc.StatusCode.UNAVAILABLE
        async with run_worker(tmp_path):
            await front.prompts_serve()
            await front.prompts.Encode(encode("a"))


async def test_a_worker_that_starts_late_is_found_soon(planted_home, tmp_path):
    """The pauses between tries grow to half a second; gRPC's own would be 1, 1.6, 2.6 and more seconds."""
    tried_at: list[float] = []

    def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tried_at.append(time.monotonic())
        writer.close()

    nobody = await asyncio.start_unix_server(hang_up, tmp_path / "worker.sock")
    async with run_front(home=planted_home[0], workers=f"unix:{tmp_path}/worker.sock") as front:
        await happening(lambda: len(tried_at) == 8)
        nobody.close()
        assert min(later - earlier for earlier, later in pairwise(tried_at[-4:])) < 1
        async with run_worker(tmp_path):
            await front.prompts_serve()


async def test_calls_take_turns_and_pass_over_a_dead_worker(planted_home, tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    async with (
        run_worker(folders[0]) as a,
        run_worker(folders[1]) as b,
        run_front(home=planted_home[0], workers=f"{a.target},{b.target}") as front,
    ):
        await front.prompts_serve()
        while not (a.worker.prompts and b.worker.prompts):
            await front.prompts.Encode(encode("a"))
        await a.server.stop(None)
        before = len(b.worker.prompts)
        for _ in range(4):
            await front.prompts.Encode(encode("a"))
        assert len(b.worker.prompts) == before + 4


async def test_identical_prompts_under_way_share_one_computation(online, running_worker):
    worker = running_worker.worker
    worker.may_answer.clear()
    calls = [asyncio.ensure_future(online.prompts.Encode(encode("a b", top_k=k))) for k in (1, 2, 2)]
    await worker.called.wait()
    other = asyncio.ensure_future(online.prompts.Encode(encode("c")))
    while len(worker.prompts) < 2:
        await asyncio.sleep(0)
    worker.may_answer.set()
    replies = await asyncio.gather(*calls)
    await other
    assert worker.prompts == ["a b", "c"]
    assert [len(reply.code.latents) for reply in replies] == [3, 6, 6]


async def test_one_callers_leaving_does_not_disturb_the_others(online, running_worker):
    worker = running_worker.worker
    worker.may_answer.clear()
    first = online.prompts.Encode(encode("a"))
    await worker.called.wait()
    second = asyncio.ensure_future(online.prompts.Encode(encode("a")))
    await online.prompts.Tokenize(prompts_pb2.TokenizeRequest(crosscoder="demo", prompt=text("a")))
    first.cancel()
    worker.may_answer.set()
    assert len((await second).code.latents) == 4
    assert worker.prompts == ["a"]


async def test_the_worker_hears_that_the_last_caller_left(online, running_worker):
    worker = running_worker.worker
    worker.may_answer.clear()
    call = online.prompts.Encode(encode("a"))
    await worker.called.wait()
    call.cancel()
    async with asyncio.timeout(PATIENCE_S):
        while not worker.cancelled:
            await asyncio.sleep(0)
    assert worker.cancelled == 1


async def test_the_callers_deadline_is_the_workers(online, running_worker):
    await online.prompts.Encode(encode("a"), timeout=40)
    await online.prompts.Encode(encode("b"))
    with_one, without = running_worker.worker.deadlines
    assert 0 < with_one < 41 < without


async def test_a_patient_caller_does_not_share_the_fate_of_a_hasty_one(online, running_worker):
    worker = running_worker.worker
    worker.may_answer.clear()
    hasty = asyncio.ensure_future(failure(online.prompts.Encode(encode("a"), timeout=1.5)))
    await worker.called.wait()
    patient = asyncio.ensure_future(online.prompts.Encode(encode("a"), timeout=PATIENCE_S))
    assert (await hasty).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    worker.may_answer.set()
    await patient
    assert worker.prompts == ["a", "a"]


async def test_a_second_encode_comes_from_the_cache_with_any_top_k(planted_home, running_worker, cache_socket):
    settings = {"home": planted_home[0], "workers": running_worker.target, "cache_url": f"unix://{cache_socket}"}
    async with run_front(**settings) as front:
        await front.prompts_serve()
        first = await front.prompts.Encode(encode("a b"))
        async with asyncio.timeout(PATIENCE_S):
            while not (again := await front.prompts.Encode(encode("a b", top_k=1))).cached:
                pass
    assert list(again.code.latents) == [0, 1, 2]
    assert again.tokens == first.tokens
    assert again.compute_ms == 1.5
    num_calls = len(running_worker.worker.prompts)
    async with run_front(**settings) as front:  # another server finds it, with no worker asked
        reply = await front.prompts.Encode(encode("a b"))
        assert reply.cached
        assert reply.code == first.code
        top = await front.prompts.TopLatents(prompts_pb2.TopLatentsRequest(crosscoder="demo", prompt=text("a b")))
        assert top.cached
    assert len(running_worker.worker.prompts) == num_calls


async def test_a_corrupt_value_is_a_miss_and_is_mended(planted_home, running_worker, cache_socket):
    url = f"unix://{cache_socket}"
    async with (
        run_front(home=planted_home[0], workers=running_worker.target, cache_url=url) as front,
        redis.asyncio.from_url(url) as client,
        asyncio.timeout(PATIENCE_S),
    ):
        await front.prompts_serve()
        while not (await front.prompts.Encode(encode("a b"))).cached:
            pass
        [key] = await client.keys()
        value = await client.get(key)
        for corrupt in (b"", value[:50], value[:20] + b"\xff" + value[21:], b"x" * 10_000):
            await client.set(key, corrupt)
            reply = await front.prompts.Encode(encode("a b"))
            assert (reply.cached, len(reply.code.latents)) == (False, 6)
            while not (await front.prompts.Encode(encode("a b"))).cached:
                pass


async def test_a_cache_that_never_answers_costs_one_call_its_patience_and_no_error(
    planted_home, running_worker, deaf_socket, monkeypatch
):
    for name in ("_PATIENCE_S", "_MOST_S"):
        monkeypatch.setattr(f"crosscope_server.cache.{name}", 1.0)
    url = f"unix://{deaf_socket}"
    async with run_front(home=planted_home[0], workers=running_worker.target, cache_url=url) as front:
        await front.prompts_serve()
        loop = asyncio.get_running_loop()
        started = loop.time()
        for _ in range(20):
            assert not (await front.prompts.Encode(encode("a"))).cached
        assert loop.time() - started < 10, "one of them waited, not all"


async def test_a_cache_killed_and_started_again_is_used_again(planted_home, running_worker, tmp_path):
    path = tmp_path / "cache.sock"
    settings = {"home": planted_home[0], "workers": running_worker.target, "cache_url": f"unix://{path}"}
    async with run_cache(path) as process, run_front(**settings) as front:
        await front.prompts_serve()
        await front.prompts.Encode(encode("a"))
        process.kill()
        await process.wait()
        assert not (await front.prompts.Encode(encode("a"))).cached
        path.unlink(missing_ok=True)
        async with run_cache(path), asyncio.timeout(PATIENCE_S):
            while not (await front.prompts.Encode(encode("a"))).cached:
                await asyncio.sleep(0.01)


async def test_a_stream_answers_in_order_with_errors_in_their_place(online):
    requests = [encode("a"), encode(""), prompts_pb2.EncodeRequest(crosscoder="x", prompt=text("a")), encode("b c")]
    messages = [prompts_pb2.EncodeStreamRequest(sequence=10 + i, request=r) for i, r in enumerate(requests)]
    replies = [reply async for reply in online.prompts.EncodeStream(iter(messages))]
    assert [reply.sequence for reply in replies] == [10, 11, 12, 13]
    assert [reply.WhichOneof("outcome") for reply in replies] == ["response", "error", "error", "response"]
    assert [replies[i].error.code for i in (1, 2)] == [3, 5]
    assert "prompt.text: must be at least 1 bytes" in replies[1].error.message
    assert list(replies[3].response.tokens.pieces) == ["<bos>", "b", "c"]


async def test_a_stream_takes_no_more_than_its_bound_and_hears_a_cancellation(planted_home, running_worker):
    worker = running_worker.worker
    worker.may_answer.clear()
    front_settings = {"home": planted_home[0], "workers": running_worker.target, "stream_in_flight": 3}
    async with run_front(**front_settings) as front:
        await front.prompts_serve()
        call = front.prompts.EncodeStream()
        for i in range(20):
            await call.write(prompts_pb2.EncodeStreamRequest(sequence=i, request=encode(f"p{i}")))
        async with asyncio.timeout(PATIENCE_S):
            while len(worker.prompts) < 3:
                await asyncio.sleep(0.01)
        await front.prompts.Tokenize(prompts_pb2.TokenizeRequest(crosscoder="demo", prompt=text("a")))
        assert sorted(worker.prompts) == ["p0", "p1", "p2"]
        call.cancel()
        async with asyncio.timeout(PATIENCE_S):
            while worker.cancelled < 3:
                await asyncio.sleep(0.01)
        assert len(worker.prompts) == 3
