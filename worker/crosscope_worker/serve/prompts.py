"""Prompts as messages to the tokens that models read. Knows nothing about lengths or calls."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from crosscope_proto.roles import LeftOut
from crosscope_proto.template_kwargs import parse_template_kwargs, parse_tool_calls
from crosscope_proto.v1 import types_pb2
from crosscope_worker.effects.subject import Reading
from crosscope_worker.tokenizer.lengths import TooLong
from crosscope_worker.tokenizer.pieces import text_pieces
from crosscope_worker.tokenizer.token_policy import policy_reasons
from crosscope_worker.tokenizer.tokens import PromptError, TextTokenizer, TokenisedText, Turn

Parsed = TypeVar("Parsed")


def tokenise(
    tokenizer: TextTokenizer, prompt: types_pb2.Prompt, num_readable: int, most: int
) -> tuple[TokenisedText, types_pb2.Tokens]:
    """The tokens of a prompt, for the models and for the reply. Raises PromptError.

    `num_readable`: ids that the models can read. `most`: tokens of which a prompt may not have many times as many.
    """
    match prompt.WhichOneof("content"):
        case "text":
            text = tokenizer.text(prompt.text, prompt.parse_control_tokens, most)
        case "conversation":
            conversation = prompt.conversation
            text = tokenizer.conversation(
                [_turn(index, turn) for index, turn in enumerate(conversation.turns)],
                conversation.add_generation_prompt,
                prompt.parse_control_tokens,
                _parsed("chat_template_kwargs", parse_template_kwargs, conversation.chat_template_kwargs_json),
                most,
            )
        case "token_ids":
            if len(prompt.token_ids.ids) > most:
                raise TooLong(most)
            text = tokenizer.given(prompt.token_ids.ids, prompt.token_ids.roles, num_readable)
        case _:
            raise PromptError("the prompt holds neither text, conversation nor token ids; give one of them")
    pieces, roles = text_pieces(tokenizer, text.ids), text.roles.tolist()
    tokens = types_pb2.Tokens(
        ids=text.ids.tolist(), pieces=pieces, roles=roles, dropped_reasoning=text.dropped_reasoning
    )
    return text, tokens


def _turn(index: int, turn: types_pb2.Turn) -> Turn:
    calls = _parsed(f"turn {index}, tool_calls", parse_tool_calls, turn.tool_calls_json)
    return Turn(turn.role, turn.content, turn.reasoning, tuple(calls), turn.name, turn.tool_call_id, turn.prefix)


def _parsed(name: str, parse: Callable[[str], Parsed], text: str) -> Parsed:
    try:
        return parse(text)
    except ValueError as error:
        raise PromptError(f"{name}: {error}") from error


def left_out(reading: Reading, text: TokenisedText, outlying: np.ndarray) -> np.ndarray:
    """The reasons for which the training leaves out such tokens, [pos] uint8 (LeftOut); `outlying: [pos]` bool."""
    reasons = policy_reasons(text.roles, reading.policy)
    reasons[(reasons == LeftOut.KEPT) & outlying] = LeftOut.NORM
    return reasons
