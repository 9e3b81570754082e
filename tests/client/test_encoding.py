import numpy as np
import pytest

from crosscope import BASE, CHAT, Client, InvalidInput, TokenRole


def test_encode(scripted: Client, prompts) -> None:
    encoding = scripted.crosscoder("demo").encode("abcd", top_k=10, parse_control_tokens=True)
    assert prompts.last.top_k == 10
    assert prompts.last.prompt.parse_control_tokens
    assert encoding.tokens.pieces == ("<bos>", "a", "b", "c", "d")
    assert encoding.tokens.roles[0] is TokenRole.BOS
    assert encoding.tokens.is_template == (True, False, False, False, False)
    assert encoding.tokens.text == "<bos>abcd"
    assert encoding.row_starts.tolist() == [0, 1, 3, 5, 6, 8]
    assert encoding.top(4) == [(4, 4.0), (3, 0.5)]
    assert encoding.top(-1, limit=1) == [(4, 4.0)]
    assert encoding.top(0) == [(3, 0.5)]
    np.testing.assert_array_equal(encoding.latent_values(3), np.float32([0.5, 0.5, 0.5, 3, 0.5]))
    np.testing.assert_array_equal(encoding.latent_values(99), np.zeros(5, np.float32))
    np.testing.assert_array_equal(encoding.strongest(), np.float32([0.5, 1, 2, 3, 4]))
    assert (encoding.cached, encoding.compute_ms, encoding.version_id) == (True, 1.5, "v1")
    with pytest.raises(IndexError, match="token 5 is outside the 5"):
        encoding.top(5)


def test_encoding_as_table_and_text(scripted: Client) -> None:
    encoding = scripted.crosscoder("demo").encode("a\nb")
    frame = encoding.to_pandas()
    assert frame["token"].tolist() == [0, 1, 1, 2, 2, 3]
    assert frame["piece"].tolist() == ["<bos>", "a", "a", "\n", "\n", "b"]
    assert frame["latent"].tolist() == [3, 1, 3, 2, 3, 3]
    assert str(encoding).splitlines() == [
        "token  piece  role  strongest latents",
        "0      <bos>  bos   3:0.5",
        "1      a      text  1:1  3:0.5",
        "2      ↵      text  2:2  3:0.5",
        "3      b      text  3:3",
    ]


def test_messages(scripted: Client, prompts) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    tokens = scripted.crosscoder("demo").tokenize(messages=messages, add_generation_prompt=True)
    assert tokens.text == "<bos>hiyo"
    assert prompts.last.prompt.conversation.add_generation_prompt
    begun = [messages[0], {**messages[1], "prefix": True}]
    count = scripted.crosscoder("demo").count_tokens(begun)
    assert [turn.prefix for turn in prompts.last.prompt.conversation.turns] == [False, True]
    assert (count.num_tokens, count.num_template, count.limit, count.fits) == (5, 1, 4, False)
    assert str(count) == "5 of 4 tokens, 1 of them the template's"
    with pytest.raises(InvalidInput, match="prefix"):
        scripted.crosscoder("demo").count_tokens([{**messages[0], "prefix": 1}])


def test_top_latents(scripted: Client, prompts) -> None:
    demo = scripted.crosscoder("demo")
    found = demo.top_latents(
        "abc",
        rank="share_of_max",
        limit=5,
        max_frequency=0.25,
        where=["verdict = supported", "nu_err < 0.2"],
        skip_template_tokens=True,
        tokens=slice(1, 3),
    )
    request = prompts.last
    assert [(each.column, each.text, each.number) for each in request.filters] == [
        ("verdict", "supported", 0),
        ("nu_err", "", 0.2),
    ]
    assert (request.rank, request.limit, request.max_frequency) == (4, 5, 0.25)
    assert (request.token_start, request.token_end, request.skip_template_tokens) == (1, 3, True)
    assert found.num_latents == 9
    assert found[0].latent == 7
    assert [entry.score for entry in found] == [2.5]
    assert str(found).splitlines()[-2:] == ["7       2.5    2.5  4    2      1 a", "… 8 more"]
    assert found.to_pandas()["peak_piece"].tolist() == ["a"]
    assert demo.top_latents("abc", tokens=slice(2, None)).tokens is not None
    assert not prompts.last.HasField("token_end")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"rank": "mean"}, "rank"),
        ({"limit": 0}, "limit"),
        ({"tokens": slice("a", None)}, "tokens.start"),
        ({"include_left_out": 1}, "include_left_out"),
        ({"tokens": slice(0, 4, 2)}, "tokens"),
        ({"max_frequency": "often"}, "max_frequency"),
        ({"where": "rare"}, "where"),
    ],
)
def test_top_latents_refuses(scripted: Client, options, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        scripted.crosscoder("demo").top_latents("abc", **options)
    assert caught.value.violations[0].field == field


@pytest.mark.parametrize("top_k", [0, -1, 10**12, 1.5, "10"])
def test_top_k_that_cannot_travel(scripted: Client, top_k) -> None:
    with pytest.raises(InvalidInput, match="top_k"):
        scripted.crosscoder("demo").encode("abc", top_k=top_k)


def test_models_are_named_by_index() -> None:
    assert (BASE, CHAT) == (0, 1)
