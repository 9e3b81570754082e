"""What a row of a data set says: a document, or the turns of a conversation and the behaviours tagged in it.

Every shape of data that a recipe can name (DataSpec.format) becomes the same turns here. Does not know tokens or files.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from crosscope_proto.specs import ALPACA_COLUMNS, DataSpec
from crosscope_worker.data.rows import Columns, DataError, Row
from crosscope_worker.data.tally import reason_of
from crosscope_worker.tokenizer.tokens import Turn

_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
"""Our roles by their other names in ShareGPT data."""
_OPENAI_ROLES = {"function": "tool"}
_BESIDE = {"reasoning": ("reasoning_content", "reasoning"), "name": ("name",), "tool_call_id": ("tool_call_id",)}
"""Fields of Turn, and the keys that hold them."""


class RefusedText(DataError):
    """A text that is left out where the recipe allows it (DataSpec.skip_refused); otherwise it ends the job."""

    def __init__(self, place: str, sentence: str) -> None:
        super().__init__(f"{place}: {sentence}")
        self.reason = reason_of(sentence)
        """The same for all texts that are refused for the same reason."""


def columns(spec: DataSpec) -> Columns:
    """The columns of a data set that are read."""
    if spec.format == "alpaca":
        needed = [name for name, must in ALPACA_COLUMNS.items() if must]
        optional = tuple(name for name, must in ALPACA_COLUMNS.items() if not must)
    else:
        needed, optional = [name for name in (spec.text_column, spec.chat_column) if name], ()
    if spec.behaviours_column:
        needed.append(spec.behaviours_column)
    return Columns(tuple(dict.fromkeys(needed)), optional)


def document(spec: DataSpec, row: Row) -> str:
    """The text of a row. Raises RefusedText if there is none."""
    column = spec.text_column or "text"
    text = _value(row, column)
    if not isinstance(text, str):
        raise RefusedText(row.place, f"column {column!r} holds {_kind(text)}, not text")
    return text


def turns(spec: DataSpec, row: Row) -> list[Turn]:
    """The conversation of a row. Raises RefusedText if it has another shape than the recipe says."""
    if spec.format == "alpaca":
        return _alpaca(row)
    column = spec.chat_column or ""
    found = _value(row, column)
    if not isinstance(found, Sequence) or isinstance(found, str | bytes):
        raise RefusedText(row.place, f"column {column!r} holds {_kind(found)}, not a list of turns")
    read = {"messages": _message, "sharegpt": _sharegpt, "openai": _openai}[spec.format]
    return [_named(read, spec, row, index, turn) for index, turn in enumerate(found)]


def behaviours(spec: DataSpec, row: Row, turns: Sequence[Turn]) -> list[tuple[str, int, int, int]]:
    """The tags of a conversation: name, turn, first character of its content and one past the last.

    Raises DataError for a tag that is incomplete or lies outside its conversation.
    """
    if spec.behaviours_column is None:
        return []
    tags = _value(row, spec.behaviours_column) or ()
    if not isinstance(tags, Sequence) or isinstance(tags, str):
        raise DataError(f"{row.place}: column {spec.behaviours_column!r} holds {_kind(tags)}, not a list")
    result: list[tuple[str, int, int, int]] = []
    for tag in tags:
        try:
            name, turn, start, end = str(tag["behaviour"]), int(tag["turn"]), int(tag["start"]), int(tag["end"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{row.place}: a tagged behaviour needs turn, start, end and behaviour: {tag}") from error
        if not (0 <= turn < len(turns) and 0 <= start < end <= len(turns[turn].content)):
            raise DataError(f"{row.place}: behaviour {name!r} lies outside its conversation: {tag}")
        result.append((name, turn, start, end))
    return result


class _Shape(ValueError):
    """A turn of another shape; the sentence does not name the place."""


def _named(
    read: Callable[[DataSpec, Mapping[str, Any]], Turn], spec: DataSpec, row: Row, index: int, turn: object
) -> Turn:
    try:
        if not isinstance(turn, Mapping):
            raise _Shape(f"a turn must be an object, but is {_kind(turn)}")
        return read(spec, turn)
    except _Shape as error:
        raise RefusedText(f"{row.place}, turn {index}", str(error)) from error


def _message(spec: DataSpec, turn: Mapping[str, Any]) -> Turn:
    return Turn(_text(turn, spec.role_key), _text(turn, spec.content_key), **_said_beside(turn))


def _sharegpt(spec: DataSpec, turn: Mapping[str, Any]) -> Turn:
    del spec
    role = _text(turn, "from")
    return Turn(_SHAREGPT_ROLES.get(role, role), _text(turn, "value"))


def _openai(spec: DataSpec, turn: Mapping[str, Any]) -> Turn:
    del spec
    role = _text(turn, "role")
    role, content = _OPENAI_ROLES.get(role, role), turn.get("content")
    beside = _said_beside(turn)
    if isinstance(content, Sequence) and not isinstance(content, str):
        return Turn(role, "".join(map(_part, content)), **beside)
    if content is None and beside.get("tool_calls"):
        return Turn(role, "", **beside)
    return Turn(role, _text(turn, "content"), **beside)


def _said_beside(turn: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of Turn that a turn of the chat API has beside role and content."""
    found: dict[str, Any] = {}
    for name, keys in _BESIDE.items():
        value = next((turn[key] for key in keys if turn.get(key)), None)
        if value is not None:
            found[name] = _text({name: value}, name)
    calls = turn.get("tool_calls") or ([{"function": turn["function_call"]}] if turn.get("function_call") else [])
    if not isinstance(calls, Sequence) or isinstance(calls, str) or not all(isinstance(c, Mapping) for c in calls):
        raise _Shape(f"'tool_calls' must be a list of objects, but holds {_kind(calls)}")
    return found | ({"tool_calls": tuple(calls)} if calls else {})


def _part(part: object) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or kind not in ("text", "input_text", "output_text"):
        raise _Shape(f"a part of the content is {kind or _kind(part)!r}, not text")
    return _text(part, "text")


def _text(turn: Mapping[str, Any], key: str) -> str:
    if key not in turn:
        raise _Shape(f"{key!r} must be a text, but is missing; there are {', '.join(sorted(map(str, turn)))[:80]}")
    if not isinstance(value := turn[key], str):
        hint = "; format: openai reads lists of parts" if isinstance(value, list) and key == "content" else ""
        raise _Shape(f"{key!r} must be a text, but holds {_kind(value)}{hint}")
    return value


def _alpaca(row: Row) -> list[Turn]:
    """Instruction and input become the user's turn, the output the assistant's; system and history come first."""
    found = {name: row.values.get(name) for name in ALPACA_COLUMNS}
    for name, must in ALPACA_COLUMNS.items():
        if must:
            _value(row, name)
    history = found.pop("history") or ()
    if not isinstance(history, Sequence) or any(
        isinstance(each, str) or not isinstance(each, Sequence) or [isinstance(p, str) for p in each] != [True, True]
        for each in history
    ):
        raise RefusedText(row.place, "column 'history' must hold pairs of an instruction and an output")
    for name, text in found.items():
        if not isinstance(text, str) and (text is not None or ALPACA_COLUMNS[name]):
            raise RefusedText(row.place, f"column {name!r} holds {_kind(text)}, not text")
    result = [Turn("system", str(found["system"]))] if found["system"] else []
    for instruction, output in history:
        result += [Turn("user", instruction), Turn("assistant", output)]
    asked = "\n\n".join(str(text) for text in (found["instruction"], found["input"]) if text)
    return [*result, Turn("user", asked), Turn("assistant", str(found["output"]))]


def _value(row: Row, column: str) -> Any:
    if column not in row.values:
        raise RefusedText(row.place, f"there is no column {column!r}; there are {', '.join(map(str, row.values))}")
    return row.values[column]


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
