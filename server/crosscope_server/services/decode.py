"""Converts the public messages that several services share to and from the server's own. Knows nothing about calls."""

from crosscope_proto.v1 import latents_pb2, prompts_pb2, types_pb2
from crosscope_server.encodings import Prompt, Turn, strongest
from crosscope_server.examples import TextTokens
from crosscope_server.latents import Filter
from crosscope_server.prompts import Encoded

_COMPARISONS = {
    latents_pb2.LatentFilter.OP_LT: "<",
    latents_pb2.LatentFilter.OP_LE: "<=",
    latents_pb2.LatentFilter.OP_GT: ">",
    latents_pb2.LatentFilter.OP_GE: ">=",
    latents_pb2.LatentFilter.OP_EQ: "=",
    latents_pb2.LatentFilter.OP_NE: "!=",
    latents_pb2.LatentFilter.OP_CONTAINS: "contains",
}


def prompt(message: types_pb2.Prompt) -> Prompt:
    """The prompt in a message."""
    parse_control_tokens = message.parse_control_tokens
    match message.WhichOneof("content"):
        case "text":
            return Prompt(message.text, parse_control_tokens=parse_control_tokens)
        case "token_ids":
            ids, roles = tuple(message.token_ids.ids), tuple(message.token_ids.roles)
            return Prompt(None, parse_control_tokens=parse_control_tokens, token_ids=ids, token_roles=roles)
        case "stored_text":
            sequence_id = message.stored_text.sequence_id
            return Prompt(None, parse_control_tokens=parse_control_tokens, stored_text=sequence_id)
        case _:
            return _conversation(message.conversation, parse_control_tokens)


def _conversation(conversation: types_pb2.Conversation, parse_control_tokens: bool) -> Prompt:
    turns = tuple(
        Turn(turn.role, turn.content, turn.reasoning, turn.tool_calls_json, turn.name, turn.tool_call_id, turn.prefix)
        for turn in conversation.turns
    )
    kwargs = conversation.chat_template_kwargs_json
    return Prompt(None, turns, conversation.add_generation_prompt, parse_control_tokens, kwargs)


def latent_filter(message: latents_pb2.LatentFilter) -> Filter:
    """The condition in a message."""
    value = message.text if message.WhichOneof("value") == "text" else message.number
    return Filter(message.column, _COMPARISONS[message.op], value)


def tokens_message(tokens: TextTokens) -> types_pb2.Tokens:
    """The message of a text's tokens."""
    return types_pb2.Tokens(ids=tokens.ids, pieces=tokens.pieces, roles=tokens.roles)  # pyright: ignore[reportArgumentType]


def encode_message(encoded: Encoded, top_k: int | None) -> prompts_pb2.EncodeResponse:
    """The reply with a prompt's code, cut to top_k latents a token."""
    encoding = encoded.encoding
    return prompts_pb2.EncodeResponse(
        tokens=encoding.tokens,
        code=encoding.code if top_k is None else strongest(encoding.code, top_k),
        version_id=encoded.version_id,
        cached=encoded.cached,
        compute_ms=encoding.compute_ms,
    )
