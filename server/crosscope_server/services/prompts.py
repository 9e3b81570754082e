"""The service crosscope.v1.Prompts: decode, call, reply. Knows nothing about workers or the cache."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict

import grpc
import grpc.aio

from crosscope_proto.v1 import effects_pb2, prompts_pb2, prompts_pb2_grpc
from crosscope_server.budgets import Budgets
from crosscope_server.catalogue import Catalogue
from crosscope_server.contrast import NUM_SHUFFLES
from crosscope_server.effects import Effects
from crosscope_server.errors import status_of
from crosscope_server.latents import Filter
from crosscope_server.prompt_sets import Place, PromptSets
from crosscope_server.prompts import Prompts
from crosscope_server.ranking import Rank, Ranked, TokenRange, rank_latents
from crosscope_server.services import decode
from crosscope_server.streams import in_order
from crosscope_server.unread import Unread
from crosscope_server.validation import check

Context = grpc.aio.ServicerContext

_DEFAULT_LIMIT = 20
_COPIES = 3
"""A reply on its way takes its size about so often: as a message, as bytes, and in gRPC's buffer."""
_RANKS = {
    prompts_pb2.RANK_UNSPECIFIED: Rank.MAX,
    prompts_pb2.RANK_MAX: Rank.MAX,
    prompts_pb2.RANK_SUM: Rank.SUM,
    prompts_pb2.RANK_COUNT: Rank.COUNT,
    prompts_pb2.RANK_SHARE_OF_MAX: Rank.SHARE_OF_MAX,
    prompts_pb2.RANK_USELESSNESS: Rank.USELESSNESS,
}


class PromptsService(prompts_pb2_grpc.PromptsServicer):
    """Online questions."""

    def __init__(
        self,
        prompts: Prompts,
        effects: Effects,
        catalogue: Catalogue,
        budgets: Budgets,
        stream_in_flight: int,
        unread: Unread,
    ) -> None:
        self._prompts = prompts
        self._budgets = budgets
        self._effects = effects
        self._catalogue = catalogue
        self._stream_in_flight = stream_in_flight
        self._unread = unread
        self._sets = PromptSets(prompts, catalogue, stream_in_flight)

    async def Tokenize(self, request: prompts_pb2.TokenizeRequest, context: Context) -> prompts_pb2.TokenizeResponse:
        """The tokens of a prompt."""
        self._budgets.check()
        reply, version_id = await self._prompts.tokenize(
            request.crosscoder, request.version_id or None, decode.prompt(request.prompt), context.time_remaining()
        )
        return prompts_pb2.TokenizeResponse(
            tokens=reply.tokens, version_id=version_id, max_prompt_tokens=reply.max_prompt_tokens
        )

    async def Encode(self, request: prompts_pb2.EncodeRequest, context: Context) -> prompts_pb2.EncodeResponse:
        """The sparse code of a prompt."""
        self._budgets.check()
        return await self._encode(request, context)

    async def TopLatents(
        self, request: prompts_pb2.TopLatentsRequest, context: Context
    ) -> prompts_pb2.TopLatentsResponse:
        """The latents that a prompt fires."""
        self._budgets.check()
        encoded = await self._prompts.encode(
            request.crosscoder, request.version_id or None, decode.prompt(request.prompt), context.time_remaining()
        )
        rank, filters = _RANKS[request.rank], [decode.latent_filter(each) for each in request.filters]
        if request.HasField("max_frequency"):
            filters.append(Filter("frequency", "<=", request.max_frequency))
        allowed, figures, notes = None, None, ()
        if filters or rank.column:
            table = (await self._catalogue.open(request.crosscoder, encoded.version_id)).table
            figures = table.column(rank.column) if rank.column else None
            allowed, notes = (table.matching(filters) if filters else None), table.notes(filters)
        end = request.token_end if request.HasField("token_end") else None
        ranked = rank_latents(
            encoded.encoding,
            rank,
            request.limit if request.HasField("limit") else _DEFAULT_LIMIT,
            TokenRange(request.token_start, end, request.skip_template_tokens, request.include_left_out),
            allowed=allowed,
            figures=figures,
        )
        return prompts_pb2.TopLatentsResponse(
            entries=_entries(ranked),
            tokens=encoded.encoding.tokens,
            version_id=encoded.version_id,
            num_latents=ranked.num_latents,
            num_left_out=ranked.num_left_out,
            num_filtered=ranked.num_filtered,
            notes=notes,
            cached=encoded.cached,
        )

    async def EncodeStream(
        self, request_iterator: AsyncIterator[prompts_pb2.EncodeStreamRequest], context: Context
    ) -> AsyncIterator[prompts_pb2.EncodeStreamResponse]:
        """Encodes many prompts. Replies come in order, and a prompt that fails gets its error as its reply."""

        async def one(request: prompts_pb2.EncodeStreamRequest) -> prompts_pb2.EncodeStreamResponse:
            try:
                check(request)
                self._budgets.check()
                response = await self._encode(request.request, context, is_bulk=True)
            except Exception as error:
                status = status_of(error, "EncodeStream")
                outcome = prompts_pb2.StreamError(
                    code=status.code, message=status.message, status=status.SerializeToString()
                )
                return prompts_pb2.EncodeStreamResponse(sequence=request.sequence, error=outcome)
            return prompts_pb2.EncodeStreamResponse(sequence=request.sequence, response=response)

        async for reply in in_order(request_iterator, one, self._stream_in_flight, self._unread, _size_bytes):
            yield reply
            del reply

    async def Contrast(self, request: prompts_pb2.ContrastRequest, context: Context) -> prompts_pb2.ContrastResponse:
        """The latents that tell two sets of prompts apart."""
        self._budgets.check()
        found = await self._sets.contrast(
            request.crosscoder,
            request.version_id or None,
            ([decode.prompt(each) for each in request.first], [decode.prompt(each) for each in request.second]),
            request.limit if request.HasField("limit") else _DEFAULT_LIMIT,
            request.seed,
            context.time_remaining(),
        )
        return prompts_pb2.ContrastResponse(
            places=[_place(place) for place in found.places],
            num_first=found.num_first,
            num_second=found.num_second,
            num_repeats=found.num_repeats,
            version_id=found.version_id,
        )

    async def Compare(self, request: effects_pb2.CompareRequest, context: Context) -> effects_pb2.CompareResponse:
        """How both models' predictions differ at every token."""
        self._budgets.check()
        reply = await self._effects.compare(request, decode.prompt(request.prompt), context.time_remaining())
        self._budgets.charge(len(reply.tokens.ids))
        return reply

    async def Attribute(self, request: effects_pb2.AttributeRequest, context: Context) -> effects_pb2.AttributeResponse:
        """Which latents carry the difference at some tokens."""
        self._budgets.check()
        reply = await self._effects.attribute(request, decode.prompt(request.prompt), context.time_remaining())
        self._budgets.charge(len(reply.tokens.ids))
        return reply

    async def Generate(
        self, request: effects_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[effects_pb2.GenerateResponse]:
        """Continues a prompt in several ways at once."""
        self._budgets.check()
        replies = self._effects.generate(request, decode.prompt(request.prompt), context.time_remaining())
        async with aclosing(replies):
            async for reply in replies:
                self._budgets.charge(len(reply.start.tokens.ids) + len(reply.step.tokens))
                yield reply

    async def _encode(
        self, request: prompts_pb2.EncodeRequest, context: Context, *, is_bulk: bool = False
    ) -> prompts_pb2.EncodeResponse:
        prompt, left_s = decode.prompt(request.prompt), context.time_remaining()
        encoded = await self._prompts.encode(
            request.crosscoder, request.version_id or None, prompt, left_s, is_bulk=is_bulk
        )
        return decode.encode_message(encoded, request.top_k if request.HasField("top_k") else None)


def _size_bytes(reply: prompts_pb2.EncodeStreamResponse) -> int:
    return _COPIES * reply.ByteSize()


def _place(place: Place) -> prompts_pb2.ContrastResponse.Place:
    found = place.contrast
    return prompts_pb2.ContrastResponse.Place(
        place=place.name,
        entries=[prompts_pb2.ContrastResponse.Entry(**asdict(entry)) for entry in found.entries],
        held_out_auc=found.held_out_auc,
        held_out_auc_se=found.held_out_auc_se,
        shuffled_auc=found.shuffled_auc,
        num_shuffles=NUM_SHUFFLES,
        num_latents=found.num_latents,
        num_without_token=place.num_without_token,
    )


def _entries(ranked: Ranked) -> list[prompts_pb2.TopLatentsResponse.Entry]:
    columns = (ranked.latents, ranked.scores, ranked.maxima, ranked.sums, ranked.counts, ranked.peaks)
    return [
        prompts_pb2.TopLatentsResponse.Entry(
            latent=latent, score=score, max=maximum, sum=total, count=count, peak_token=peak
        )
        for latent, score, maximum, total, count, peak in zip(*(column.tolist() for column in columns), strict=True)
    ]
