"""A published crosscoder to ask: its latents, its examples, and what it makes of a prompt."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from crosscope import _decode, _html, _tables
from crosscope._encoding import Encoding, Rank, TopLatents
from crosscope._errors import CrosscopeError, InvalidInput, ServerError, VersionGone
from crosscope._filters import Condition, build_filters
from crosscope._latents import ExampleList, Latent, LatentList, LatentPage
from crosscope._prompts import Turns, build_prompt, check_count, check_flag, check_number, check_text, check_whole
from crosscope._streaming import encode_stream
from crosscope._transport import Transport
from crosscope._types import CrosscoderInfo, Detector, Tokens, TrainingCurves
from crosscope_proto.artefacts import ExampleGroup
from crosscope_proto.v1 import latents_pb2, prompts_pb2, types_pb2
from crosscope_proto.v1.latents_pb2_grpc import LatentsStub
from crosscope_proto.v1.prompts_pb2_grpc import PromptsStub

if TYPE_CHECKING:
    import numpy as np

_LATENTS_A_PAGE = 500
_EXAMPLES_A_PAGE = 100
_RANKS: dict[str, prompts_pb2.Rank.ValueType] = {
    "max": prompts_pb2.RANK_MAX,
    "sum": prompts_pb2.RANK_SUM,
    "count": prompts_pb2.RANK_COUNT,
    "share_of_max": prompts_pb2.RANK_SHARE_OF_MAX,
}
_GROUPS: dict[str | None, latents_pb2.ExampleGroup.ValueType] = {
    None: latents_pb2.EXAMPLE_GROUP_UNSPECIFIED,
    ExampleGroup.TOP: latents_pb2.EXAMPLE_GROUP_TOP,
    ExampleGroup.QUANTILE: latents_pb2.EXAMPLE_GROUP_QUANTILE,
}


class Crosscoder:
    """One version of a published crosscoder. Made by `Client.crosscoder` and `Client.crosscoders`; safe to share among
    threads.

    Whatever is published later, every call is answered from this version, or raises VersionGone once the server has
    removed it. `current()` goes on with the newest.
    """

    def __init__(self, transport: Transport, info: CrosscoderInfo) -> None:
        self.info = info
        """Its card, as it was when this handle was made."""
        self._transport = transport

    @property
    def name(self) -> str:
        """Its name."""
        return self.info.name

    @property
    def version_id(self) -> str:
        """The version that every call is answered from."""
        return self.info.version_id

    def current(self) -> "Crosscoder":
        """A handle of the version that is the current one now; this handle stays as it is. Raises NotFound."""
        return open_crosscoder(self._transport, self.name)

    def __reduce__(self) -> tuple[object, ...]:
        return Crosscoder, (self._transport, self.info)

    @property
    def _version(self) -> str | None:
        """What requests name; None where the server did not say which version this is."""
        return self.version_id or None

    def _checked(self, version_id: str) -> str:
        """The version that a reply names. Raises VersionGone if it is another: old servers cannot be asked for one."""
        _check_version(self.name, self._version, version_id, self._transport.address)
        return version_id

    @property
    def _latents(self) -> LatentsStub:
        return self._transport.stub(LatentsStub)

    @property
    def _prompts(self) -> PromptsStub:
        return self._transport.stub(PromptsStub)

    def latents(
        self,
        where: Condition | Iterable[Condition] = (),
        order_by: str = "",
        limit: int | None = 50,
    ) -> LatentList:
        """Latents that meet all conditions, ordered by a column, "-" in front for descending, undefined values last.

        Columns are those of `Latent.to_row`, and the shares "dataset_share_NAME" and "role_share_ROLE"; a condition may
        also compare "top_tokens", "logit_tokens_base" or "logit_tokens_chat" with the text of a token.
        `limit=None` lists all of them, page by page as they are reached.
        Raises InvalidInput for an unknown column, and for an order that is undefined for every latent that matches.
        """
        filters = build_filters(where)
        order = check_text(order_by, "order_by")
        if limit is not None:
            check_count(limit, "limit", low=1)

        def read_page(page_token: str, page_size: int) -> LatentPage:
            request = latents_pb2.ListLatentsRequest(
                crosscoder=self.name,
                version_id=self._version,
                filters=filters,
                order_by=order,
                page_size=page_size,
                page_token=page_token,
            )
            reply = self._transport.unary(self._latents.ListLatents, request)
            version_id = self._checked(reply.version_id)
            found = [_decode.latent(message, self, version_id) for message in reply.latents]
            return LatentPage(found, reply.next_page_token, reply.num_matching, reply.num_undefined, tuple(reply.notes))

        return LatentList(read_page, limit, _LATENTS_A_PAGE)

    def latent(self, latent: int) -> Latent:
        """One latent's statistics."""
        request = latents_pb2.GetLatentRequest(
            crosscoder=self.name, version_id=self._version, latent=check_count(latent, "latent")
        )
        reply = self._transport.unary(self._latents.GetLatent, request)
        return _decode.latent(reply.latent, self, self._checked(reply.version_id))

    def examples(
        self,
        latent: int,
        *,
        limit: int = 10,
        group: ExampleGroup | str | None = None,
        dataset: str | None = None,
        context: int | None = None,
    ) -> ExampleList:
        """Texts on which a latent fires; see `Latent.examples`."""
        if group not in _GROUPS:
            raise InvalidInput.of("group", f"{group!r} is no group of examples; use 'top', 'quantile' or None for both")
        request = latents_pb2.ListExamplesRequest(
            crosscoder=self.name,
            version_id=self._version,
            latent=check_count(latent, "latent"),
            group=_GROUPS[group],
            dataset=check_text(dataset, "dataset") if dataset is not None else "",
            page_size=min(check_count(limit, "limit", low=1), _EXAMPLES_A_PAGE),
        )
        if context is not None:
            request.context = check_count(context, "context")
        found = ExampleList()
        while len(found) < limit:
            reply = self._transport.unary(self._latents.ListExamples, request)
            self._checked(reply.version_id)
            found.extend(map(_decode.example, reply.examples))
            if not reply.next_page_token:
                break
            request.page_token = reply.next_page_token
        return ExampleList(found[:limit])

    def atlas(self, columns: Sequence[str]) -> dict[str, "np.ndarray"]:
        """Whole columns of the statistics table, by name: [latent] float32 each, NaN where undefined.

        latent_class comes as the numbers of `crosscope.v1.LatentClass`: 1 chat_only, 2 base_only, 3 shared, 4 other,
        5 dead.
        """
        import numpy as np

        names = [check_text(column, "columns") for column in ([columns] if isinstance(columns, str) else columns)]
        request = latents_pb2.GetAtlasRequest(crosscoder=self.name, version_id=self._version, columns=names)
        pieces: dict[str, list[np.ndarray]] = {name: [] for name in names}
        versions: set[str] = set()
        for reply in self._transport.stream(self._latents.GetAtlas, request, self._transport.timeout_s):
            pieces.setdefault(reply.column, []).append(np.frombuffer(reply.values, dtype="<f4"))
            versions.add(self._checked(reply.version_id))
        atlas = {name: np.concatenate(parts) if parts else np.empty(0, np.float32) for name, parts in pieces.items()}
        if len(versions) > 1 or len({len(column) for column in atlas.values()}) > 1:
            raise ServerError(f"the atlas of {self.name} came in pieces that do not fit together; ask again")
        return atlas

    def training_curves(self) -> TrainingCurves:
        """Loss, FVE, L0, … over training."""
        request = latents_pb2.GetTrainingCurvesRequest(crosscoder=self.name, version_id=self._version)
        reply = self._transport.unary(self._latents.GetTrainingCurves, request)
        self._checked(reply.version_id)
        return _decode.training_curves(reply)

    def detectors(self) -> list[Detector]:
        """For each tagged behaviour of the analysis's conversations, the latents that detect it best."""
        request = latents_pb2.GetCrosscoderRequest(crosscoder=self.name, version_id=self._version)
        reply = self._transport.unary(self._latents.GetCrosscoder, request)
        self._checked(reply.crosscoder.version_id)
        return [_decode.detector(message) for message in reply.detectors]

    def tokenize(
        self,
        text: str | None = None,
        *,
        turns: Turns | None = None,
        add_generation_prompt: bool = False,
        parse_control_tokens: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> Tokens:
        """The tokens of a prompt and their roles; runs no model."""
        prompt = build_prompt(
            text,
            turns,
            add_generation_prompt=add_generation_prompt,
            parse_control_tokens=parse_control_tokens,
            chat_template_kwargs=chat_template_kwargs,
        )
        request = prompts_pb2.TokenizeRequest(crosscoder=self.name, version_id=self._version, prompt=prompt)
        reply = self._transport.unary(self._prompts.Tokenize, request)
        self._checked(reply.version_id)
        return _decode.tokens(reply.tokens)

    def encode(
        self,
        text: str | None = None,
        *,
        turns: Turns | None = None,
        top_k: int | None = None,
        add_generation_prompt: bool = False,
        parse_control_tokens: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> Encoding:
        """The sparse code of every token of a text or a conversation.

        `top_k` keeps that many latents a token, the strongest; None keeps all that fire. `add_generation_prompt`
        appends the header of an assistant turn. `parse_control_tokens` reads control tokens that are typed in the
        text ("<end_of_turn>") as control tokens. `chat_template_kwargs` is what the chat template is told beside the
        turns (enable_thinking, tools, documents, …), before what the recipe told it.
        """
        prompt = build_prompt(
            text,
            turns,
            add_generation_prompt=add_generation_prompt,
            parse_control_tokens=parse_control_tokens,
            chat_template_kwargs=chat_template_kwargs,
        )
        request = self._encode_request(prompt, top_k)
        reply = self._transport.unary(self._prompts.Encode, request)
        self._checked(reply.version_id)
        return _decode.encoding(reply, self.name)

    def _encode_request(self, prompt: types_pb2.Prompt, top_k: int | None) -> prompts_pb2.EncodeRequest:
        request = prompts_pb2.EncodeRequest(crosscoder=self.name, version_id=self._version, prompt=prompt)
        if top_k is not None:
            request.top_k = check_count(top_k, "top_k", low=1)
        return request

    def encode_many(
        self,
        prompts: Iterable[str | Turns],
        *,
        top_k: int | None = None,
        add_generation_prompt: bool = False,
        parse_control_tokens: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        in_flight: int = 32,
        on_error: Literal["raise", "return"] = "raise",
    ) -> Iterator[Encoding | CrosscopeError]:
        """Encodes many texts or conversations, lazily and in order; at most `in_flight` are under way at a time.

        With `on_error="return"` a prompt that fails yields its exception and the rest goes on; else it is raised.
        Prompts are drawn from the iterable in the caller's thread. Leaving the iterator early cancels the rest.
        """
        check_count(in_flight, "in_flight", low=1)

        def requests() -> Iterator[prompts_pb2.EncodeRequest]:
            for prompt in prompts:
                text, turns = (prompt, None) if isinstance(prompt, str | bytes) else (None, prompt)
                built = build_prompt(
                    text,  # pyright: ignore[reportArgumentType]
                    turns,
                    add_generation_prompt=add_generation_prompt and turns is not None,
                    parse_control_tokens=parse_control_tokens,
                    chat_template_kwargs=chat_template_kwargs if turns is not None else None,
                )
                yield self._encode_request(built, top_k)

        for outcome in encode_stream(self._transport, requests(), in_flight):
            if not isinstance(outcome, CrosscopeError):
                self._checked(outcome.version_id)
                yield _decode.encoding(outcome, self.name)
            elif on_error == "return":
                yield outcome
            else:
                raise outcome

    def top_latents(
        self,
        text: str | None = None,
        *,
        turns: Turns | None = None,
        rank: Rank = "max",
        limit: int = 20,
        max_frequency: float | None = None,
        skip_template_tokens: bool = False,
        include_left_out: bool = False,
        tokens: slice | None = None,
        add_generation_prompt: bool = False,
        parse_control_tokens: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> TopLatents:
        """The latents that a prompt fires, ranked by max, sum, count or share_of_max.

        `max_frequency` leaves out latents that fire on a larger share of tokens in the analysis, before the cut;
        `skip_template_tokens` leaves out BOS, role headers and turn ends, but not the last token of an assistant's
        header, where the model decides; `tokens` looks at a range only, for instance slice(3, 10) or slice(-1, None).
        Tokens that training left out (`Tokens.left_out`) are not ranked unless `include_left_out`: latents fire there
        as they do nowhere else.
        """
        if rank not in _RANKS:
            raise InvalidInput.of("rank", f"{rank!r} is no ranking; use one of {', '.join(_RANKS)}")
        prompt = build_prompt(
            text,
            turns,
            add_generation_prompt=add_generation_prompt,
            parse_control_tokens=parse_control_tokens,
            chat_template_kwargs=chat_template_kwargs,
        )
        request = prompts_pb2.TopLatentsRequest(
            crosscoder=self.name,
            version_id=self._version,
            prompt=prompt,
            rank=_RANKS[rank],
            limit=check_count(limit, "limit", low=1),
            skip_template_tokens=check_flag(skip_template_tokens, "skip_template_tokens"),
            include_left_out=check_flag(include_left_out, "include_left_out"),
        )
        if max_frequency is not None:
            request.max_frequency = check_number(max_frequency, "max_frequency")
        if tokens is not None:
            self._set_range(request, tokens)
        reply = self._transport.unary(self._prompts.TopLatents, request)
        self._checked(reply.version_id)
        return _decode.top_latents(reply, self.name, rank)

    def _set_range(self, request: prompts_pb2.TopLatentsRequest, tokens: slice) -> None:
        """A range as slices have it. Negative ends count from the prompt's last token, so they ask for its tokens."""
        if tokens.step not in (None, 1):
            raise InvalidInput.of("tokens", f"a range has step 1, not {tokens.step!r}")
        ends = {"start": tokens.start, "stop": tokens.stop}
        given = {name: check_whole(end, f"tokens.{name}") for name, end in ends.items() if end is not None}
        if any(end < 0 for end in given.values()):
            asked = prompts_pb2.TokenizeRequest(crosscoder=self.name, version_id=self._version, prompt=request.prompt)
            num_tokens = len(self._transport.unary(self._prompts.Tokenize, asked).tokens.ids)
            given = {name: max(0, end + num_tokens) if end < 0 else end for name, end in given.items()}
        if "start" in given:
            request.token_start = check_count(given["start"], "tokens.start")
        if "stop" in given:
            request.token_end = check_count(given["stop"], "tokens.stop")

    def __repr__(self) -> str:
        return _tables.crosscoder_line(self.info)

    def __str__(self) -> str:
        return _tables.crosscoder_card(self.info)

    def _repr_html_(self) -> str:
        return _html.page(_html.crosscoder(self.info))


def open_crosscoder(transport: Transport, name: str, version: str | None = None) -> Crosscoder:
    """A handle of the version with this id, else of the current one. Raises NotFound, or VersionGone."""
    wanted = version if version is None else check_text(version, "version")
    request = latents_pb2.GetCrosscoderRequest(crosscoder=check_text(name, "name"), version_id=wanted)
    reply = transport.unary(transport.stub(LatentsStub).GetCrosscoder, request)
    _check_version(name, wanted, reply.crosscoder.version_id, transport.address)
    return Crosscoder(transport, _decode.crosscoder_info(reply.crosscoder))


def _check_version(name: str, wanted: str | None, found: str, address: str) -> None:
    if wanted and found and found != wanted:
        raise VersionGone(
            f"{address} was asked for version {wanted} of {name} and answered from {found}: its software is older than "
            "this client's and knows the current version only; take a new handle with client.crosscoder(name)",
            found,
        )
