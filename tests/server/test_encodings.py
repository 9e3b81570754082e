from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosscope_proto.v1 import types_pb2
from crosscope_proto.worker.v1 import inference_pb2
from crosscope_server.encodings import (
    ENCODINGS,
    Encoding,
    Prompt,
    Turn,
    prompt_message,
    read_encoding,
    strongest,
)
from crosscope_server.replies import pack, unpack
from crosscope_server.services import decode


def encoding(counts: list[int]) -> Encoding:
    n = len(counts)
    row_starts = np.cumsum([0, *counts]).tolist()
    total = row_starts[-1]
    pieces = [f"ä{i}\x00\ufffd" for i in range(n)]
    tokens = types_pb2.Tokens(ids=range(n), pieces=pieces, roles=[types_pb2.TOKEN_ROLE_TEXT] * n)
    code = types_pb2.SparseCode(row_starts=row_starts, latents=range(total), activations=range(total, 0, -1))
    return Encoding(tokens, code, 2.5)


@given(st.lists(st.integers(0, 5), max_size=6))
def test_what_is_packed_unpacks_to_the_same(counts):
    assert unpack(pack(encoding(counts), "k", ENCODINGS), "k", ENCODINGS) == encoding(counts)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=3), st.data())
def test_a_changed_byte_or_a_missing_end_is_noticed(counts, data):
    packed = bytearray(pack(encoding(counts), "k", ENCODINGS))
    place = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(ValueError, match="no cached answer"):
        unpack(bytes(packed[:place]), "k", ENCODINGS)
    packed[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match="no cached answer"):
        unpack(bytes(packed), "k", ENCODINGS)


@pytest.mark.parametrize("data", [b"", b"x", b"OK", b"\0" * 16, b"\xff" * 100])
def test_foreign_bytes_are_noticed(data):
    with pytest.raises(ValueError, match="no cached answer"):
        unpack(data, "k", ENCODINGS)


def test_another_keys_value_is_noticed():
    with pytest.raises(ValueError, match="no cached answer"):
        unpack(pack(encoding([1]), "k", ENCODINGS), "l", ENCODINGS)


def test_strongest_cuts_each_token():
    whole = encoding([3, 0, 1, 2])
    cut = strongest(whole.code, 1)
    assert list(cut.row_starts) == [0, 1, 1, 2, 3]
    assert list(cut.latents) == [0, 3, 4]
    assert list(cut.activations) == [6, 3, 2]
    assert strongest(whole.code, 3) == whole.code
    assert strongest(encoding([]).code, 1) == encoding([]).code


@given(st.lists(st.integers(0, 5), max_size=6))
def test_arrays_are_those_of_the_message(counts):
    read = encoding(counts)
    assert read.row_starts.dtype == read.latents.dtype == np.uint32
    assert read.activations.dtype == np.float32
    arrays = {name: getattr(read, name).tolist() for name in ("row_starts", "latents", "activations")}
    assert types_pb2.SparseCode(**arrays) == read.code


def test_a_workers_code_that_does_not_fit_together_is_a_bug():
    tokens = types_pb2.Tokens(ids=[1], pieces=["a"], roles=[types_pb2.TOKEN_ROLE_TEXT])
    code = types_pb2.SparseCode(row_starts=[0, 2], latents=[1], activations=[1.0])
    with pytest.raises(ValueError, match="do not fit together"):
        read_encoding(inference_pb2.EncodeResponse(tokens=tokens, code=code))


def test_prompts_that_differ_have_other_canonical_bytes():
    prompts = [
        Prompt("a"),
        Prompt("a", parse_control_tokens=True),
        Prompt(None, (Turn("user", "a"),)),
        Prompt(None, (Turn("user", "a"),), add_generation_prompt=True),
        Prompt(None, (Turn("assistant", "a"),)),
        Prompt(None, (Turn("user", "a"), Turn("user", ""))),
        Prompt('a",[]'),
        Prompt(None, token_ids=(1, 2)),
        Prompt(None, token_ids=(1, 2), token_roles=(2, 1)),
        Prompt(None, token_ids=(12,)),
        Prompt(None, stored_text=0),
    ]
    assert len({prompt.canonical() for prompt in prompts}) == len(prompts)
    assert Prompt("ä").canonical() == Prompt("ä").canonical()


def test_every_field_of_a_prompt_reaches_the_worker_and_the_cache_key():
    turn = Turn("assistant", "a", "b", '[{"name": "c"}]', "d", "e")
    prompt = Prompt(None, (turn,), True, True, '{"f": 1}')
    message = prompt_message(prompt)
    assert decode.prompt(types_pb2.Prompt.FromString(message.SerializeToString())) == prompt
    tokens = Prompt(None, token_ids=(5, 6), token_roles=(2, 1))
    assert decode.prompt(types_pb2.Prompt.FromString(prompt_message(tokens).SerializeToString())) == tokens
    for part, whole in ((turn, lambda changed: replace(prompt, turns=(changed,))), (prompt, lambda changed: changed)):
        for field in fields(part):
            value = getattr(part, field.name)
            others = {bool: not value, tuple: () if value else (1,), str: f"{value}x", type(None): "x"}
            other = others[type(value)]
            assert whole(replace(part, **{field.name: other})).canonical() != prompt.canonical(), field.name
