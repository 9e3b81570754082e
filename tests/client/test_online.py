"""Prompts through the real server, with a worker whose codes can be worked out by hand."""

import pytest

from crosscope import Client, Encoding, InvalidInput, LeftOut


def test_encode(online: Client) -> None:
    encoding = online.crosscoder("demo").encode("abcd")
    assert encoding.tokens.pieces == ("<bos>", "a", "b", "c", "d")
    assert [encoding.top(t) for t in range(5)] == [
        [(3, 0.5)],
        [(1, 1), (3, 0.5)],
        [(2, 2), (3, 0.5)],
        [(3, 3)],
        [(4, 4), (3, 0.5)],
    ]
    assert [len(encoding.top(t)) for t in range(5)] == [1, 2, 2, 1, 2]
    assert (encoding.version_id, encoding.crosscoder) == (online.crosscoder("demo").info.version_id, "demo")
    assert encoding.compute_ms == 1.5
    cut = online.crosscoder("demo").encode("abcd", top_k=1)
    assert [cut.top(t) for t in range(5)] == [[(3, 0.5)], [(1, 1)], [(2, 2)], [(3, 3)], [(4, 4)]]


def test_top_latents(online: Client) -> None:
    demo = online.crosscoder("demo")
    found = demo.top_latents("abcd", limit=2)
    assert [(entry.latent, entry.score, entry.peak_token) for entry in found] == [(4, 4, 4), (3, 3, 3)]
    assert found.num_latents == 4
    counted = demo.top_latents("abcd", rank="count", limit=1)[0]
    assert (counted.latent, counted.count, counted.sum) == (3, 5, 5.0)
    assert [entry.latent for entry in demo.top_latents("abcd", tokens=slice(1, 3))] == [2, 1, 3]
    assert demo.top_latents("abcd", skip_template_tokens=True, rank="count")[0].count == 4


@pytest.mark.parametrize(
    ("tokens", "latents"),
    [
        (slice(-1, None), [4, 3]),
        (slice(-3, -1), [3, 2]),
        (slice(None, -3), [1, 3]),
        (slice(-99, 2), [1, 3]),
        (slice(1, -2), [2, 1, 3]),
    ],
)
def test_ranges_count_from_the_end_as_slices_do(online: Client, tokens: slice, latents: list[int]) -> None:
    found = online.crosscoder("demo").top_latents("abcd", tokens=tokens)  # token t fires t with t, and 3
    assert [entry.latent for entry in found] == latents


def test_a_range_that_is_empty_is_said(online: Client) -> None:
    with pytest.raises(InvalidInput, match="token_start: is 4, but must be less than token_end, 2"):
        online.crosscoder("demo").top_latents("abcd", tokens=slice(-1, 2))


def test_tokens_that_training_left_out_are_marked_and_not_ranked(online: Client) -> None:
    demo = online.crosscoder("demo")
    encoding = demo.encode("ab!")
    assert encoding.tokens.left_out == (LeftOut.KEPT, LeftOut.KEPT, LeftOut.KEPT, LeftOut.NORM)
    assert "text, left out: norm" in str(encoding)
    assert encoding.to_pandas()["left_out"].tolist()[-1] == "norm"
    page = encoding._repr_html_()
    assert '<span class="left-out" title="token 3, text, left out: norm: ' in page
    assert "rgba(230,120,0,0.450)" in page.split("b</span>")[0], "colours are scaled by what training knows"
    found = demo.top_latents("ab!")
    assert ([entry.latent for entry in found], found.num_left_out) == ([2, 1, 3], 1)
    assert "1 token is not ranked, as training left such tokens out" in str(found)
    assert "1 token is not ranked" in found._repr_html_()
    everything = demo.top_latents("ab!", include_left_out=True)
    assert ([entry.latent for entry in everything], everything.num_left_out) == ([3, 2, 1], 0)
    assert "not ranked" not in str(everything)
    assert demo.encode("ab").tokens.left_out == ()


def test_stream(online: Client) -> None:
    texts = ["ab" * (i % 5 + 1) for i in range(60)]
    found = list(online.crosscoder("demo").encode_many(texts, in_flight=8))
    assert [e.tokens.text for e in found if isinstance(e, Encoding)] == [f"<bos>{text}" for text in texts]
    outcomes = list(online.crosscoder("demo").encode_many(["ab", "x" * 300_000, "cd"], on_error="return"))
    assert [type(outcome) for outcome in outcomes] == [Encoding, InvalidInput, Encoding]


@pytest.mark.parametrize("top_k", [10**9, 65537])
def test_limits_are_the_servers(online: Client, top_k: int) -> None:
    with pytest.raises(InvalidInput, match=f"65536, but is {top_k}"):
        online.crosscoder("demo").encode("abc", top_k=top_k)


def test_more_than_a_message_may_hold(online: Client) -> None:
    with pytest.raises(InvalidInput, match="262144 bytes"):
        online.crosscoder("demo").encode("x" * 1_000_000)
    with pytest.raises(InvalidInput, match="too large"):
        online.crosscoder("demo").encode("x" * 10_000_000)
