"""Converts the public messages that several services share to and from the server's own. Knows nothing about calls."""

from crosscope_proto.v1 import prompts_pb2, types_pb2
from crosscope_server.encodings import Prompt, Turn
from crosscope_server.examples import TextTokens
from crosscope_server.prompts import Encoded


def prompt(message: types_pb2.Prompt) -> Prompt:
    """The prompt in a message."""
    if message.WhichOneof("content") == "text":
        return Prompt(message.text, parse_control_tokens=message.parse_control_tokens)
    conversation = message.conversation
    turns = tuple(
        Turn(turn.role, turn.content, turn.reasoning, turn.tool_calls_json, turn.name, turn.tool_call_id)
        for turn in conversation.turns
    )
    kwargs = conversation.chat_template_kwargs_json
    return Prompt(None, turns, conversation.add_generation_prompt, message.parse_control_tokens, kwargs)


def tokens_message(tokens: TextTokens) -> types_pb2.Tokens:
    """The message of a text's tokens."""
    return types_pb2.Tokens(ids=tokens.ids, pieces=tokens.pieces, roles=tokens.roles)  # pyright: ignore[reportArgumentType]


def encode_message(encoded: Encoded, top_k: int | None) -> prompts_pb2.EncodeResponse:
    """The reply with a prompt's code, cut to top_k latents a token."""
    encoding = encoded.encoding
    return prompts_pb2.EncodeResponse(
        tokens=encoding.tokens,
        code=encoding.code if top_k is None else encoding.strongest(top_k),
        version_id=encoded.version_id,
        cached=encoded.cached,
        compute_ms=encoding.compute_ms,
    )
