"""Two sets of prompts from conversations with and without a tagged behaviour. Asks no server."""

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from crosscope._errors import InvalidInput
from crosscope._public import public

MAX_PER_SET = 500
"""Prompts of a set that a contrast takes."""
_CHAT_COLUMNS = ("messages", "conversation", "conversations")

Prompt = list[dict[str, Any]]
Upto = Literal["decision", "answer"]


@public
@dataclass(frozen=True)
class TaggedSets:
    """Prompts from conversations with a tag (`first`) and without it (`second`), for `contrast`."""

    tag: str
    first: tuple[Prompt, ...]
    """Messages up to an answer that has the tag."""
    second: tuple[Prompt, ...]
    """Messages up to an answer of a conversation that has the tag nowhere."""
    upto: Upto
    """"decision": the answer is left out; "answer": it is the last message."""
    num_tagged: int
    """Conversations with the tag."""
    num_untagged: int
    num_without_answer: int
    """Conversations without an assistant message; they are in no set."""
    num_shared: int
    """Prompts that would be in both sets; they are in none."""
    num_repeats: int
    """Prompts that their set has already."""

    @property
    def add_generation_prompt(self) -> bool:
        """Whether the prompts want the header of an assistant's message behind them."""
        return self.upto == "decision"

    def __str__(self) -> str:
        """How many conversations there are, and what became of them."""
        said = f"{self.num_tagged} conversations with {self.tag!r}, {self.num_untagged} without; "
        said += f"{len(self.first)} and {len(self.second)} different prompts are compared"
        notes = (
            (self.num_shared, "are in both sets and left out"),
            (self.num_repeats, "are repeats"),
            (self.num_without_answer, "conversations have no assistant message"),
        )
        return "; ".join([said, *(f"{count} {what}" for count, what in notes if count)]) + "."


def tagged_sets(
    conversations: str | Path | Iterable[Mapping[str, Any]],
    tag: str,
    *,
    upto: Upto = "decision",
    per_set: int = 200,
    chat_column: str | None = None,
    tags_column: str = "behaviours",
    seed: int = 0,
) -> TaggedSets:
    """Two sets of prompts: conversations up to an answer with the tag, and up to one of a conversation without it.

    `conversations` is a JSONL file, or rows. A row has messages in `chat_column` (None: messages, conversation or
    conversations) and its tags in `tags_column`: names, or objects with "behaviour" and "turn", the index of the
    message that has it; a name alone is about the last assistant message. Each conversation gives one prompt; where
    it has several answers to choose from, and where a set would have more than `per_set` prompts, `seed` draws.
    Raises InvalidInput that names the row.
    """
    if upto not in ("decision", "answer"):
        raise InvalidInput.of("upto", f"{upto!r} is neither decision nor answer")
    if not 1 <= per_set <= MAX_PER_SET:
        raise InvalidInput.of("per_set", f"must be 1 to {MAX_PER_SET}, but is {per_set}")
    draw = random.Random(seed)
    found: tuple[list[Prompt], list[Prompt]] = ([], [])
    names: set[str] = set()
    num_without_answer = 0
    for place, row in _rows(conversations):
        messages, tags = _read(row, place, chat_column, tags_column)
        answers = [index for index, message in enumerate(messages) if message.get("role") == "assistant"]
        names.update(name for name, _ in tags)
        if not answers:
            num_without_answer += 1
            continue
        tagged = sorted({answers[-1] if turn is None else turn for name, turn in tags if name == tag})
        index = draw.choice(tagged or answers)
        found[not tagged].append(messages[: index + (upto == "answer")])
    if not found[0]:
        raise InvalidInput.of("tag", f"no conversation has {tag!r}; tags are {', '.join(sorted(names)) or 'none'}")
    keyed = [{json.dumps(prompt, sort_keys=True): prompt for prompt in prompts} for prompts in found]
    shared = keyed[0].keys() & keyed[1].keys()
    kept = [[prompt for key, prompt in prompts.items() if key not in shared] for prompts in keyed]
    first, second = (tuple(draw.sample(prompts, min(per_set, len(prompts)))) for prompts in kept)
    return TaggedSets(
        tag=tag,
        first=first,
        second=second,
        upto=upto,
        num_tagged=len(found[0]),
        num_untagged=len(found[1]),
        num_without_answer=num_without_answer,
        num_shared=len(shared),
        num_repeats=sum(map(len, found)) - sum(map(len, keyed)),
    )


def _rows(conversations: str | Path | Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not isinstance(conversations, str | Path):
        yield from ((f"row {index}", row) for index, row in enumerate(conversations))
        return
    try:
        with Path(conversations).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{conversations}, line {number}", json.loads(line)
    except OSError as error:
        raise InvalidInput.of("conversations", f"{conversations} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InvalidInput.of("conversations", f"{conversations} holds a line that is not JSON: {error}") from error


def _read(
    row: object, place: str, chat_column: str | None, tags_column: str
) -> tuple[Prompt, list[tuple[str, int | None]]]:
    """The messages of a row, and its tags: the name, and the message that has it."""
    if not isinstance(row, Mapping):
        raise InvalidInput.of("conversations", f"{place}: an object is needed, not {type(row).__name__}")
    columns = (chat_column,) if chat_column else _CHAT_COLUMNS
    column = next((name for name in columns if name in row), None)
    if column is None or tags_column not in row:
        needs = " or ".join(columns) if column is None else tags_column
        raise InvalidInput.of("conversations", f"{place}: there is no {needs}; there are {', '.join(map(str, row))}")
    messages = row[column]
    if not isinstance(messages, Sequence) or not all(isinstance(message, Mapping) for message in messages):
        raise InvalidInput.of("conversations", f"{place}: {column} must be a list of messages with role and content")
    tags: list[tuple[str, int | None]] = []
    for each in row[tags_column] or ():
        name, turn = (each.get("behaviour"), each.get("turn")) if isinstance(each, Mapping) else (each, None)
        is_known = isinstance(turn, int) and 0 <= turn < len(messages) and messages[turn].get("role") == "assistant"
        if not isinstance(name, str) or not (turn is None or is_known):
            problem = f"{tags_column} holds {each!r:.80}, but needs a name, or behaviour and turn, an assistant message"
            raise InvalidInput.of("conversations", f"{place}: {problem}")
        tags.append((name, turn))
    return [dict(message) for message in messages], tags
