"""Sentences for conversations that cannot be tokenised: which turn is at fault, and what to change."""

from collections.abc import Sequence

import numpy as np

from crosscope_proto.roles import TokenRole
from crosscope_worker.tokenizer.chat_template import Turn
from crosscope_worker.tokenizer.control_tokens import PromptError
from crosscope_worker.tokenizer.printed import Printed, Saying, saying_roles

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles of turns."""
_SHOWN = 60
"""Characters of a text that a sentence shows."""


def check_turns(turns: Sequence[Turn]) -> None:
    """Raises PromptError for turns that no template could print."""
    if not turns:
        raise PromptError("the conversation is empty; give at least one message")
    for index, turn in enumerate(turns):
        if turn.role not in ROLES:
            raise PromptError(f"turn {index}: the role is {turn.role!r}; it must be one of {', '.join(ROLES)}")
        if turn.role != "assistant" and (turn.reasoning or turn.tool_calls):
            what = "reasoning" if turn.reasoning else "tool calls"
            raise PromptError(f"turn {index} ({turn.role}) has {what}, which only an assistant turn may have")
        if turn.role != "tool" and not (turn.content.strip() or turn.reasoning.strip() or turn.tool_calls):
            raise PromptError(f"turn {index} ({turn.role}) is empty; give it text or leave it out")
        is_last = index + 1 == len(turns)
        if turn.prefix and (turn.role != "assistant" or not is_last or not turn.content.strip() or turn.tool_calls):
            rule = "only the last turn, the assistant's, with text and without tool calls can be one"
            raise PromptError(f"turn {index} ({turn.role}) cannot be a prefix; {rule}")


def refused(turns: Sequence[Turn], message: str) -> str:
    """A sentence for a template that raised an error of its own."""
    if message.endswith("has no chat template"):
        return f"{message}; send plain text instead of a conversation"
    system = next((i for i, turn in enumerate(turns) if turn.role in ("system", "developer")), None)
    if system is not None and any(word in message.lower() for word in ("system", "developer")):
        return (
            f"turn {system}: the chat template takes no {turns[system].role} turn here ({message}); "
            "put its text into the first user turn"
        )
    roles = [turn.role for turn in turns if turn.role != "system"]
    if not set(roles) <= {"user", "assistant"}:
        return f"the chat template refuses these messages: {message}"
    first = len(turns) - len(roles)
    for index, role in enumerate(roles):
        expected = "assistant" if index % 2 else "user"
        if role != expected:
            return (
                f"turn {first + index}: the chat template refuses an {role} turn here ({message}); "
                f"turns must alternate, so this one must be {expected}"
            ).replace("an user", "a user")
    return f"the chat template refuses these messages: {message}"


def not_found(turns: Sequence[Turn], sayings: Sequence[Saying], printed: str) -> str:
    """A sentence for a template that changes a text so that its characters cannot be found again."""
    for saying in sayings:
        text = saying.text.strip()
        if saying.field == "call" or text in printed:  # a call may be printed as JSON
            continue
        same = 0  # characters from the beginning that are printed; halved steps keep long texts cheap
        step = len(text)
        while step:
            if text[: same + step] in printed:
                same += step
            else:
                step //= 2
        at, rest = printed.find(text[:same]) + same, text[same : same + _SHOWN]
        return f"{_changes(turns, saying)}: where it says {rest!r}, it prints {printed[at : at + len(rest)]!r}"
    return "the chat template prints these messages in a way that hides which text is whose"


def check_printed(turns: Sequence[Turn], sayings: Sequence[Saying], found: Printed) -> tuple[int, ...]:
    """The turns whose reasoning is not printed, or only in part.

    Raises PromptError if anything else but white space is dropped.
    """
    num_characters = sum(len(saying.text) for saying in sayings)
    is_printed = np.zeros(num_characters, bool)
    is_printed[found.indices[found.indices >= 0]] = True
    is_reasoning = saying_roles(sayings, turns) == TokenRole.REASONING
    dropped: set[int] = set()
    silent = {saying.turn for saying in sayings if saying.field == "call"}
    for saying in sayings:
        own = slice(saying.start, saying.start + len(saying.text))
        missing = ~is_printed[own]
        if saying.field == "call":
            silent -= {saying.turn} if not missing.all() else set()
            continue
        lost = [i for i in np.flatnonzero(missing).tolist() if not saying.text[i].isspace()]
        if any(is_reasoning[saying.start + i] and saying.text[i].isalnum() for i in lost):
            dropped.add(saying.turn)
        lost = [i for i in lost if not is_reasoning[saying.start + i]]
        if lost:
            end = next((i for i in range(lost[0], len(saying.text)) if not missing[i]), len(saying.text))
            raise PromptError(f"{_changes(turns, saying)}: it does not print {saying.text[lost[0] : end][:_SHOWN]!r}")
    if silent:
        turn = min(silent)
        raise PromptError(f"the chat template does not print the tool calls of turn {turn} ({turns[turn].role})")
    return tuple(sorted(dropped))


def _changes(turns: Sequence[Turn], saying: Saying) -> str:
    return f"the chat template changes the text of turn {saying.turn} ({turns[saying.turn].role})"
