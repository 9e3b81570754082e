"""Conversations of every shape become the same turns; others are refused with a reason that groups them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from crosscope_proto.specs import DataSpec, TokenPolicy
from crosscope_worker.data import chats
from crosscope_worker.data.chats import RefusedText
from crosscope_worker.data.rows import Row
from crosscope_worker.data.texts import TextStream
from crosscope_worker.models.pair import Pair
from crosscope_worker.tokenizer.tokens import TextTokenizer, Turn

ASKED = [Turn("user", "hi"), Turn("assistant", "hello"), Turn("user", "more"), Turn("assistant", "no")]


def spec(format_: str, **more: Any) -> DataSpec:
    column = {} if format_ == "alpaca" else {"chat_column": "c"}
    return DataSpec(**{"name": "c", "source": "jsonl", "path": "c.jsonl", "format": format_, **column, **more})


def turns(format_: str, values: Any) -> list[Turn]:
    row = values if format_ == "alpaca" else {"c": values}
    return chats.turns(spec(format_), Row("c.jsonl, line 1", row))


def sharegpt(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": role, "value": text} for role, text in turns]


def test_every_format_gives_the_same_turns() -> None:
    pairs = [("hi", "hello"), ("more", "no")]
    assert turns("messages", [{"role": t.role, "content": t.content} for t in ASKED]) == ASKED
    assert (
        turns("sharegpt", sharegpt(*((w, t) for p in pairs for w, t in zip(("human", "gpt"), p, strict=True)))) == ASKED
    )
    parts = [{"role": t.role, "content": [{"type": "text", "text": t.content}]} for t in ASKED]
    assert turns("openai", parts) == ASKED
    assert turns("alpaca", {"instruction": "more", "input": "", "output": "no", "history": [["hi", "hello"]]}) == ASKED


def test_roles_and_parts_are_mapped() -> None:
    told = sharegpt(("system", "s"), ("human", "h"), ("function_call", "f"), ("observation", "o"), ("gpt", "g"))
    assert [turn.role for turn in turns("sharegpt", told)] == ["system", "user", "assistant", "tool", "assistant"]
    assert [turn.role for turn in turns("sharegpt", sharegpt(("user", "u"), ("tool", "t")))] == ["user", "tool"]
    joined = [{"role": "developer", "content": [{"type": "text", "text": "a "}, {"type": "input_text", "text": "b"}]}]
    assert turns("openai", joined) == [Turn("developer", "a b")]
    assert turns("openai", [{"role": "function", "content": "4"}]) == [Turn("tool", "4")]
    full = {"instruction": "Add.", "input": "1 2", "output": "3", "system": "You add."}
    assert turns("alpaca", full) == [Turn("system", "You add."), Turn("user", "Add.\n\n1 2"), Turn("assistant", "3")]


@pytest.mark.parametrize("format_", ["messages", "openai"])
def test_what_stands_beside_role_and_content_is_read(format_: str) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    said = {"role": "assistant", "content": "x", "reasoning_content": "hm", "tool_calls": [call]}
    answer = {"role": "tool", "content": "4", "name": "add", "tool_call_id": "c1"}
    assert turns(format_, [said, answer]) == [
        Turn("assistant", "x", reasoning="hm", tool_calls=(call,)),
        Turn("tool", "4", name="add", tool_call_id="c1"),
    ]


def test_a_call_needs_no_content() -> None:
    call = {"name": "add", "arguments": "{}"}
    assert turns("openai", [{"role": "assistant", "content": None, "function_call": call}]) == [
        Turn("assistant", "", tool_calls=({"function": call},))
    ]


@pytest.mark.parametrize(
    ("format_", "values", "reason"),
    [
        ("messages", sharegpt(("human", "hi")), "'role' must be a text, but is missing; there are from, value"),
        ("messages", [{"role": "user", "content": None}], "'content' must be a text, but holds null"),
        ("messages", [{"role": "user", "content": []}], "holds list; format: openai reads lists of parts"),
        ("messages", None, "column 'c' holds null, not a list of turns"),
        ("messages", ["hi"], "a turn must be an object, but is str"),
        ("sharegpt", [{"from": "human", "value": 3}], "'value' must be a text, but holds int"),
        ("openai", [{"role": "user", "content": [{"type": "image_url"}]}], "a part of the content is 'image_url', not"),
        ("openai", [{"role": "user", "content": [{"type": "text"}]}], "'text' must be a text, but is missing"),
        ("openai", [{"role": "assistant", "content": None}], "'content' must be a text, but holds null"),
        (
            "openai",
            [{"role": "assistant", "content": None, "tool_calls": []}],
            "'content' must be a text, but holds null",
        ),
        (
            "openai",
            [{"role": "assistant", "content": "x", "tool_calls": "f"}],
            "'tool_calls' must be a list of objects",
        ),
        ("messages", [{"role": "assistant", "content": "x", "reasoning": 3}], "'reasoning' must be a text, but holds"),
        ("alpaca", {"instruction": "a"}, "there is no column 'output'; there are instruction"),
        ("alpaca", {"instruction": "a", "output": None}, "column 'output' holds null, not text"),
        ("alpaca", {"instruction": "a", "output": "b", "history": ["x"]}, "'history' must hold pairs"),
    ],
)
def test_other_shapes_are_refused_by_a_reason_without_their_place(format_: str, values: Any, reason: str) -> None:
    with pytest.raises(RefusedText, match=r"c\.jsonl, line 1") as refused:
        turns(format_, values)
    assert reason in refused.value.reason
    assert "line 1" not in refused.value.reason


def test_a_null_text_is_refused() -> None:
    documents = DataSpec(name="d", source="parquet", path="d", text_column="text")
    with pytest.raises(RefusedText, match="column 'text' holds null, not text"):
        chats.document(documents, Row("d, row 0", {"text": None}))


@pytest.mark.parametrize(
    "fields",
    [
        {"format": "alpaca", "chat_column": "c"},
        {"format": "sharegpt"},
        {"format": "sharegpt", "text_column": "t"},
        {"format": "openai", "chat_column": "c", "role_key": "from"},
        {"format": "vicuna", "chat_column": "c"},
        {"chat_column": "c", "max_refused_share": 0.2},
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DataSpec(**{"name": "c", "source": "jsonl", "path": "c.jsonl", **fields})


@pytest.fixture
def ids(tmp_path: Path, tiny_pair: Pair) -> Callable[[DataSpec], list[list[int]]]:
    def read(data: DataSpec) -> list[list[int]]:
        stream = TextStream([data], TextTokenizer(tiny_pair.tokenizer), TokenPolicy(), [tmp_path], "train")
        return [text.ids.tolist() for text in stream]

    return read


def test_the_format_reaches_the_tokens_of_files(ids: Callable[[DataSpec], list[list[int]]], tmp_path: Path) -> None:
    """From JSON lines and from Parquet, where missing keys of a turn are null."""
    values = {
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
        "sharegpt": sharegpt(("human", "hi"), ("gpt", "hello")),
        "openai": [
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "hello"}]},
        ],
    }
    found = []
    for format_, conversation in values.items():
        (tmp_path / "c.jsonl").write_text(json.dumps({"c": conversation}) + "\n")
        found.append(ids(spec(format_)))
        pq.write_table(pa.table({"c": [conversation]}), tmp_path / "c.parquet")
        found.append(ids(spec(format_, source="parquet", path="c.parquet")))
    for extra in ({}, {"input": [""], "other": [1]}):
        pq.write_table(pa.table({"instruction": ["hi"], "output": ["hello"], **extra}), tmp_path / "a.parquet")
        found.append(ids(spec("alpaca", source="parquet", path="a.parquet")))
    assert all(each == found[0] for each in found)
    assert len(found[0][0]) > 6
